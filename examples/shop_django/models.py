"""The shop's tables and what is done to them, in whatever transaction the caller is in.

No reference makes an effect safe to repeat, as in ``examples.shop``: what happens here commits together with the
response of the view, or not at all.
"""

# What the fields hold, only a plugin of mypy knows.
# mypy: disable-error-code="var-annotated"

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import F

from examples.evidence import effect
from examples.provider import Charge
from examples.shop import STOCK, OutOfStock, Receipt, Reservation, UnknownProduct


class Product(models.Model):
    """What can be had. ``price``: of one, in cents."""

    sku = models.CharField(max_length=40, primary_key=True)
    price = models.IntegerField()
    available = models.IntegerField()

    class Meta:
        """The tables have the same names in every example."""

        db_table = "stock"


class ReservedGoods(models.Model):
    """Goods that are kept for one customer."""

    reference = models.CharField(max_length=40, primary_key=True)
    sku = models.CharField(max_length=40)
    quantity = models.IntegerField()
    amount = models.IntegerField()

    class Meta:
        """See above."""

        db_table = "reservations"


class WrittenReceipt(models.Model):
    """What a customer got for the money."""

    id = models.CharField(max_length=60, primary_key=True)
    sku = models.CharField(max_length=40)
    quantity = models.IntegerField()
    amount = models.IntegerField()

    class Meta:
        """See above."""

        db_table = "receipts"


def stock_up() -> None:
    """The first goods."""
    products = [Product(sku=sku, price=price, available=available) for sku, price, available in STOCK]
    Product.objects.bulk_create(products, ignore_conflicts=True)


@effect("reserve")
def reserve(sku: str, quantity: int) -> Reservation:
    """Take goods out of the stock. Raises ``UnknownProduct``, ``OutOfStock``."""
    product = Product.objects.filter(sku=sku).first()
    if product is None:
        raise UnknownProduct(f"there is no {sku}")
    enough = Product.objects.filter(sku=sku, available__gte=quantity)
    if not enough.update(available=F("available") - quantity):
        raise OutOfStock(f"{product.available} left of {sku}")
    reservation = Reservation(uuid.uuid4().hex, sku, quantity, product.price * quantity)
    ReservedGoods.objects.create(reference=reservation.reference, sku=sku, quantity=quantity, amount=reservation.amount)
    return reservation


@effect("receipt")
def write_receipt(reservation: Reservation, charge: Charge) -> Receipt:
    """The receipt of a charge."""
    receipt = Receipt(charge.id, reservation.sku, reservation.quantity, charge.amount)
    WrittenReceipt.objects.create(id=receipt.id, sku=receipt.sku, quantity=receipt.quantity, amount=receipt.amount)
    return receipt


def find_receipt(charge_id: str) -> Receipt | None:
    """The receipt of this charge, if there is one."""
    found = WrittenReceipt.objects.filter(id=charge_id).first()
    return Receipt(found.id, found.sku, found.quantity, found.amount) if found else None
