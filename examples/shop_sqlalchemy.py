"""The shop's tables on SQLAlchemy, and what is done to them, in whatever transaction the caller's session is in.

No reference makes an effect safe to repeat, as in ``examples.shop``: what happens here commits together with a stage or
a response in the ledger, or not at all.
"""

from __future__ import annotations

import uuid

from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from examples.evidence import effect
from examples.provider import Charge
from examples.shop import STOCK, OutOfStock, Receipt, Reservation, UnknownProduct
from open_idempotency import ledger


class Base(DeclarativeBase):
    """Every table of the application; the ledger's two are among them, so that Alembic finds them too."""


ledger.metadata(Base.metadata)


class Product(Base):
    """What can be had. ``price``: of one, in cents."""

    __tablename__ = "stock"
    sku: Mapped[str] = mapped_column(primary_key=True)
    price: Mapped[int]
    available: Mapped[int]


class ReservedGoods(Base):
    """Goods that are kept for one customer."""

    __tablename__ = "reservations"
    reference: Mapped[str] = mapped_column(primary_key=True)
    sku: Mapped[str]
    quantity: Mapped[int]
    amount: Mapped[int]


class WrittenReceipt(Base):
    """What a customer got for the money."""

    __tablename__ = "receipts"
    id: Mapped[str] = mapped_column(primary_key=True)
    sku: Mapped[str]
    quantity: Mapped[int]
    amount: Mapped[int]


async def make_tables(engine: AsyncEngine) -> None:
    """All tables, and the first goods; an application has migrations for this."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session, session.begin():
        for sku, price, available in STOCK:
            if await session.get(Product, sku) is None:
                session.add(Product(sku=sku, price=price, available=available))


async def reserve(session: AsyncSession, sku: str, quantity: int) -> Reservation:
    """Take goods out of the stock. Raises ``UnknownProduct``, ``OutOfStock``."""
    with effect("reserve"):
        product = await session.get(Product, sku)
        if product is None:
            raise UnknownProduct(f"there is no {sku}")
        enough = (Product.sku == sku, Product.available >= quantity)
        taken = update(Product).where(*enough).values(available=Product.available - quantity).returning(Product.sku)
        if await session.scalar(taken) is None:
            raise OutOfStock(f"{product.available} left of {sku}")
        reservation = Reservation(uuid.uuid4().hex, sku, quantity, product.price * quantity)
        session.add(
            ReservedGoods(reference=reservation.reference, sku=sku, quantity=quantity, amount=reservation.amount)
        )
        await session.flush()
        return reservation


async def release(session: AsyncSession, reservation: Reservation) -> None:
    """Put reserved goods back."""
    with effect("release"):
        await session.execute(delete(ReservedGoods).where(ReservedGoods.reference == reservation.reference))
        back = Product.available + reservation.quantity
        await session.execute(update(Product).where(Product.sku == reservation.sku).values(available=back))


async def write_receipt(session: AsyncSession, reservation: Reservation, charge: Charge) -> Receipt:
    """The receipt of a charge."""
    with effect("receipt"):
        receipt = Receipt(charge.id, reservation.sku, reservation.quantity, charge.amount)
        session.add(WrittenReceipt(id=receipt.id, sku=receipt.sku, quantity=receipt.quantity, amount=receipt.amount))
        await session.flush()
        return receipt


async def find_receipt(session: AsyncSession, charge_id: str) -> Receipt | None:
    """The receipt of this charge, if there is one."""
    found = await session.get(WrittenReceipt, charge_id)
    return Receipt(found.id, found.sku, found.quantity, found.amount) if found else None
