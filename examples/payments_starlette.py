"""The payments API on Starlette: ``python -m examples.payments_starlette``.

The three effects of ``POST /charges`` are stages: a worker that dies between two of them is resumed by the retry.
"""

from __future__ import annotations

import os
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from examples.orders import BadOrder, Order
from examples.provider import CardDeclined, PaymentProvider
from examples.serving import serve_asgi
from examples.shop import OutOfStock, Receipt, Reservation, Shop, UnknownProduct
from open_idempotency import idem
from open_idempotency.starlette import IdempotencyMiddleware

shop = Shop()
provider = PaymentProvider()


async def create_charge(request: Request) -> JSONResponse:
    """Reserve the goods, charge the card, write the receipt."""
    try:
        order = Order.from_body(await request.body())
    except BadOrder as error:
        raise HTTPException(400, str(error)) from error
    reservation: Reservation = await idem.arun("reserve", reserve, order)
    try:
        # The provider gets a key of its own, the same one on every attempt.
        charge = await idem.arun(
            "charge", provider.charge_async, reservation.amount, order.card, idem.key_for("charge")
        )
    except CardDeclined as error:
        await run_in_threadpool(shop.release, reservation)
        raise HTTPException(402, str(error)) from error
    # A function without the right return annotation: returns= says how a later attempt reads the recorded value.
    receipt: Receipt = await idem.arun(
        "receipt", run_in_threadpool, shop.write_receipt, reservation, charge, returns=Receipt
    )
    return JSONResponse(asdict(receipt), 201, {"Location": f"/charges/{receipt.id}"})


async def reserve(order: Order) -> Reservation:
    """Take the goods out of the stock; what cannot be had is the client's problem."""
    try:
        return await run_in_threadpool(shop.reserve, order.sku, order.quantity, idem.key_for("reserve"))
    except UnknownProduct as error:
        raise HTTPException(404, str(error)) from error
    except OutOfStock as error:
        raise HTTPException(409, str(error)) from error


async def read_charge(request: Request) -> JSONResponse:
    """The receipt of a charge."""
    receipt = await run_in_threadpool(shop.find_receipt, request.path_params["charge_id"])
    if receipt is None:
        raise HTTPException(404, "no such charge")
    return JSONResponse(asdict(receipt))


app = Starlette(
    routes=[
        Route("/charges", create_charge, methods=["POST"]),
        Route("/charges/{charge_id}", read_charge),
    ],
    middleware=[
        Middleware(
            IdempotencyMiddleware,
            backend=os.environ.get("IDEMPOTENCY_BACKEND", "sqlite:///idempotency.db"),
            lease=float(os.environ.get("IDEMPOTENCY_LEASE", "30")),
        )
    ],
)

if __name__ == "__main__":
    serve_asgi(app)
