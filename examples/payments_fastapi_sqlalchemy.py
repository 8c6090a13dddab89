"""The payments API on FastAPI and SQLAlchemy, in two transactions: ``python -m examples.payments_fastapi_sqlalchemy``.

The reservation commits together with its stage, the receipt together with the response; the charge, which is somebody
else's, stands between them. No moment is left in which a crash, or a backend that lost its records, makes the shop do
anything twice.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict

from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from examples import database
from examples import shop_sqlalchemy as shop
from examples.provider import CardDeclined, Charge, PaymentProvider
from examples.serving import serve_asgi
from examples.shop import OutOfStock, Receipt, Reservation, UnknownProduct
from open_idempotency import NOT_DONE, Finding, Found, idem
from open_idempotency.fastapi import IdempotencyMiddleware

provider = PaymentProvider()
engine = create_async_engine(database.for_sqlalchemy())
sessions = async_sessionmaker(engine)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """Make the tables at start, the ledger's among them; close the connections in the end."""
    with database.one_worker_at_a_time():
        await shop.make_tables(engine)
    yield
    await engine.dispose()


app = FastAPI(title="Payments", lifespan=lifespan)
app.add_middleware(
    IdempotencyMiddleware,
    backend=os.environ.get("IDEMPOTENCY_BACKEND", "sqlite:///idempotency.db"),
    lease=float(os.environ.get("IDEMPOTENCY_LEASE", "30")),
)


class Order(BaseModel):
    """Goods, how many of them, and the token of the card that pays."""

    sku: str = Field(min_length=1)
    quantity: int = Field(ge=1, le=100)
    card: str = Field(min_length=1)


@app.post("/charges", status_code=201, response_model=Receipt)
async def create_charge(order: Order) -> JSONResponse:
    """Reserve the goods, charge the card, write the receipt."""
    reservation = await reserve(order)
    try:
        charge = await charge_card(reservation, order.card)
    except CardDeclined as error:
        async with sessions.begin() as session, idem.atomic(session) as block:
            await shop.release(session, reservation)
            return block.respond(JSONResponse({"detail": str(error)}, 402))
    async with sessions.begin() as session, idem.atomic(session) as block:
        receipt = await shop.write_receipt(session, reservation, charge)
        return block.respond(JSONResponse(asdict(receipt), 201, {"Location": f"/charges/{receipt.id}"}))


async def reserve(order: Order) -> Reservation:
    """The first transaction: the rows and the stage commit together."""
    try:
        async with sessions.begin() as session:
            reservation: Reservation = await idem.arun(
                "reserve", shop.reserve, session, order.sku, order.quantity, tx=session
            )
            return reservation
    except UnknownProduct as error:
        raise HTTPException(404, str(error)) from error
    except OutOfStock as error:
        raise HTTPException(409, str(error)) from error


async def charge_card(reservation: Reservation, card: str) -> Charge:
    """In no transaction: on record before and after. The provider gets a key of its own, the same on every attempt."""
    charge: Charge = await idem.arun(
        "charge",
        provider.charge_async,
        reservation.amount,
        card,
        idem.key_for("charge"),
        reconcile=find_charge,
        memo_errors=(CardDeclined,),
    )
    return charge


async def find_charge(amount: int, card: str, key: str) -> Found[Charge] | Finding:
    """Asked by the retry when a worker died while it charged the card."""
    charge = await provider.find_async(key)
    return NOT_DONE if charge is None else Found(charge)


@app.get("/charges/{charge_id}")
async def read_charge(charge_id: str) -> Receipt:
    """The receipt of a charge."""
    async with sessions() as session:
        receipt = await shop.find_receipt(session, charge_id)
    if receipt is None:
        raise HTTPException(404, "no such charge")
    return receipt


if __name__ == "__main__":
    serve_asgi(app)
