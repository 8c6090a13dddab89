"""A merchant's checkout for agents, by ACP and by UCP, on FastAPI: ``python -m examples.agentic_checkout``.

``AGENTIC_PROTOCOL`` is ``acp`` (the default) or ``ucp``. The two protocols differ in the path, in what makes two bodies
the same, and in the form and status of errors. The business code does not know which one it is: the goods are reserved
together with the record of that step, the card is charged between two records, and the order commits together with its
response.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Mapped, mapped_column

from examples import database
from examples import shop_sqlalchemy as shop
from examples.provider import CardDeclined, Charge, PaymentProvider
from examples.serving import serve_asgi
from examples.shop import OutOfStock, Reservation, UnknownProduct
from open_idempotency import NOT_DONE, Finding, Found, IdempotencyPolicy, idem
from open_idempotency.fastapi import IdempotencyMiddleware
from open_idempotency.hooks import Problem, Response

DAY = 86_400

# What the two protocols say of keys

ACP_CODES = {
    "key-missing": "idempotency_key_required",
    "key-reused": "idempotency_conflict",
    "in-progress": "idempotency_in_flight",
}


def as_acp_error(problem: Problem) -> Response:
    """The flat error of ACP, section 3.1, with the codes of section 6.4."""
    kind = "invalid_request" if problem.status < 500 else "service_unavailable"
    code = ACP_CODES.get(problem.name, problem.name.replace("-", "_"))
    return _error(problem, problem.status, {"type": kind, "code": code, "message": problem.detail})


def as_ucp_error(problem: Problem) -> Response:
    """The error of UCP's REST binding; a reused key is 409 there."""
    status = 409 if problem.name == "key-reused" else problem.status
    return _error(problem, status, {"code": problem.name.replace("-", "_"), "content": problem.detail})


def _error(problem: Problem, status: int, members: dict[str, str]) -> Response:
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    if problem.retry_after is not None:
        headers.append((b"retry-after", b"%d" % problem.retry_after))
    return Response(status, headers, json.dumps(members).encode())


#: a key on each POST, for one caller and one path; bodies compared by value; all outcomes kept for a day, errors too
ACP = IdempotencyPolicy(
    required=True,
    scope_by_route=True,
    fingerprint="jcs",
    fingerprint_parts=("body",),
    ttl=DAY,
    error_ttl=DAY,
    echo_key=True,
    render_problem=as_acp_error,
)
#: a key where the client sends one; bodies compared by their bytes; kept for the two days that UCP recommends
UCP = IdempotencyPolicy(
    methods=["POST", "PUT"],
    scope_by_route=True,
    fingerprint="auto",
    fingerprint_parts=("body",),
    ttl=2 * DAY,
    error_ttl=2 * DAY,
    render_problem=as_ucp_error,
)
PROTOCOLS = {"acp": (ACP, "/checkout_sessions"), "ucp": (UCP, "/checkout-sessions")}

# The merchant

provider = PaymentProvider()
engine = create_async_engine(database.for_sqlalchemy())
sessions = async_sessionmaker(engine)


class Checkout(shop.Base):
    """A checkout session: goods that are reserved, and the order once they are paid."""

    __tablename__ = "checkouts"
    id: Mapped[str] = mapped_column(primary_key=True)
    sku: Mapped[str]
    quantity: Mapped[int]
    amount: Mapped[int]
    charge: Mapped[str | None]

    def shown(self) -> dict[str, Any]:
        """The session as both protocols show it, as far as this example goes. Amounts are in cents."""
        line = {"id": self.id, "item": {"id": self.sku}, "quantity": self.quantity, "total": self.amount}
        said = {"id": self.id, "currency": "eur", "line_items": [line], "status": "ready_for_payment"}
        if self.charge is None:
            return said
        link = f"https://shop.example/orders/{self.charge}"
        return {**said, "status": "completed", "order": {"id": self.charge, "permalink_url": link}}


class Item(BaseModel):
    """Goods, and how many of them."""

    id: str = Field(min_length=1)
    quantity: int = Field(ge=1, le=100)


class NewCheckout(BaseModel):
    """What both protocols have in common here: the goods."""

    items: list[Item] = Field(min_length=1, max_length=1)
    currency: str = "eur"


class Payment(BaseModel):
    """The token of the card that pays."""

    token: str = Field(min_length=1)


async def create(new: NewCheckout) -> JSONResponse:
    """Reserve the goods, and open the session: one transaction, with the response in it (ACP 6.8)."""
    item = new.items[0]
    try:
        async with sessions.begin() as session, idem.atomic(session) as block:
            kept = await shop.reserve(session, item.id, item.quantity)
            checkout = Checkout(id=kept.reference, sku=item.id, quantity=item.quantity, amount=kept.amount, charge=None)
            session.add(checkout)
            return block.respond(JSONResponse(checkout.shown(), 201))
    except (UnknownProduct, OutOfStock) as error:
        raise HTTPException(400, str(error)) from error


async def complete(checkout_id: str, payment: Payment) -> JSONResponse:
    """Charge the card, which is a recovery point, then write the order together with the response (ACP 6.8)."""
    async with sessions() as session:
        checkout = await session.get(Checkout, checkout_id)
    if checkout is None:
        raise HTTPException(404, "there is no such checkout")
    if checkout.charge is not None:
        raise HTTPException(405, "this checkout is completed")
    try:
        charge = await charge_card(checkout.amount, payment.token)
    except CardDeclined as error:
        raise HTTPException(402, str(error)) from error
    async with sessions.begin() as session, idem.atomic(session) as block:
        paid = await session.get_one(Checkout, checkout_id)
        paid.charge = charge.id
        kept = Reservation(paid.id, paid.sku, paid.quantity, paid.amount)
        await shop.write_receipt(session, kept, charge)
        return block.respond(JSONResponse(paid.shown(), 200))


async def charge_card(amount: int, token: str) -> Charge:
    """On record before and after; a retry whose worker died in between asks the provider."""
    charge: Charge = await idem.arun(
        "charge",
        provider.charge_async,
        amount,
        token,
        idem.key_for("charge"),
        reconcile=find_charge,
        memo_errors=(CardDeclined,),
    )
    return charge


async def find_charge(amount: int, token: str, key: str) -> Found[Charge] | Finding:
    """Whether the provider has charged the card with this key."""
    charge = await provider.find_async(key)
    return NOT_DONE if charge is None else Found(charge)


# The application


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """Make the tables at start, the ledger's among them; close the connections in the end."""
    with database.one_worker_at_a_time():
        await shop.make_tables(engine)
    yield
    await engine.dispose()


def make_app(protocol: str, backend: str | None = None) -> FastAPI:
    """The checkout by ``acp`` or by ``ucp``."""
    policy, path = PROTOCOLS[protocol]
    app = FastAPI(title=f"Checkout by {protocol.upper()}", lifespan=lifespan)
    app.add_middleware(
        IdempotencyMiddleware,
        backend=backend or os.environ.get("IDEMPOTENCY_BACKEND", "sqlite:///idempotency.db"),
        policy=policy,
        lease=float(os.environ.get("IDEMPOTENCY_LEASE", "30")),
    )
    app.post(path, status_code=201)(create)
    app.post(f"{path}/{{checkout_id}}/complete")(complete)
    return app


app = make_app(os.environ.get("AGENTIC_PROTOCOL", "acp"))

if __name__ == "__main__":
    serve_asgi(app)
