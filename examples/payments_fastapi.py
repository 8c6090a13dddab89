"""The payments API on FastAPI: ``python -m examples.payments_fastapi``.

The three effects of ``POST /charges`` are stages: a worker that dies between two of them is resumed by the retry.
"""

from __future__ import annotations

import os

from fastapi import FastAPI, HTTPException, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from examples.provider import CardDeclined, Charge, PaymentProvider
from examples.serving import serve_asgi
from examples.shop import OutOfStock, Receipt, Reservation, Shop, UnknownProduct
from open_idempotency import idem
from open_idempotency.fastapi import IdempotencyMiddleware

shop = Shop()
provider = PaymentProvider()

app = FastAPI(title="Payments")
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


@app.post("/charges", status_code=201)
async def create_charge(order: Order, response: Response) -> Receipt:
    """Reserve the goods, charge the card, write the receipt."""
    reservation = await reserve(order)
    try:
        charge = await charge_card(reservation, order.card)
    except CardDeclined as error:
        await run_in_threadpool(shop.release, reservation)
        raise HTTPException(402, str(error)) from error
    receipt = await write_receipt(reservation, charge)
    response.headers["Location"] = f"/charges/{receipt.id}"
    return receipt


@app.get("/charges/{charge_id}")
def read_charge(charge_id: str) -> Receipt:
    """The receipt of a charge."""
    receipt = shop.find_receipt(charge_id)
    if receipt is None:
        raise HTTPException(404, "no such charge")
    return receipt


@idem.stage("reserve")
async def reserve(order: Order) -> Reservation:
    """The first stage. Its return annotation says how a later attempt reads the recorded value."""
    try:
        return await run_in_threadpool(shop.reserve, order.sku, order.quantity, idem.key_for("reserve"))
    except UnknownProduct as error:
        raise HTTPException(404, str(error)) from error
    except OutOfStock as error:
        raise HTTPException(409, str(error)) from error


@idem.stage("charge")
async def charge_card(reservation: Reservation, card: str) -> Charge:
    """The second stage. The provider gets a key of its own, the same one on every attempt."""
    return await provider.charge_async(reservation.amount, card, idem.key_for("charge"))


@idem.stage("receipt")
async def write_receipt(reservation: Reservation, charge: Charge) -> Receipt:
    """The third stage."""
    return await run_in_threadpool(shop.write_receipt, reservation, charge)


if __name__ == "__main__":
    serve_asgi(app)
