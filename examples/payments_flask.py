"""The payments API on Flask: ``python -m examples.payments_flask``.

The three effects of ``POST /charges`` are stages: a worker that dies between two of them is resumed by the retry.
"""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, abort, jsonify, request, url_for

from examples.orders import BadOrder, Order
from examples.provider import CardDeclined, Charge, PaymentProvider
from examples.serving import serve_wsgi
from examples.shop import OutOfStock, Receipt, Reservation, Shop, UnknownProduct
from open_idempotency import idem
from open_idempotency.flask import Idempotency

shop = Shop()
provider = PaymentProvider()

app = Flask(__name__)
app.config["IDEMPOTENCY_BACKEND"] = os.environ.get("IDEMPOTENCY_BACKEND", "sqlite:///idempotency.db")
app.config["IDEMPOTENCY_LEASE"] = float(os.environ.get("IDEMPOTENCY_LEASE", "30"))
Idempotency(app)


@app.post("/charges")
def create_charge() -> Any:
    """Reserve the goods, charge the card, write the receipt."""
    order = Order.from_body(request.get_data())
    # The return annotations of these methods say how a later attempt reads the recorded values.
    reservation: Reservation = idem.run("reserve", shop.reserve, order.sku, order.quantity, idem.key_for("reserve"))
    try:
        # The provider gets a key of its own, the same one on every attempt.
        charge: Charge = idem.run("charge", provider.charge, reservation.amount, order.card, idem.key_for("charge"))
    except CardDeclined:
        shop.release(reservation)
        raise
    receipt: Receipt = idem.run("receipt", shop.write_receipt, reservation, charge)
    return jsonify(receipt), 201, {"Location": url_for("read_charge", charge_id=receipt.id)}


@app.get("/charges/<charge_id>")
def read_charge(charge_id: str) -> Any:
    """The receipt of a charge."""
    return jsonify(shop.find_receipt(charge_id) or abort(404))


@app.errorhandler(BadOrder)
def bad_order(error: BadOrder) -> Any:
    """400: not an order."""
    return {"error": str(error)}, 400


@app.errorhandler(CardDeclined)
def card_declined(error: CardDeclined) -> Any:
    """402: the bank said no. This is an outcome: it is kept, and a retry gets it again."""
    return {"error": str(error)}, 402


@app.errorhandler(UnknownProduct)
def unknown_product(error: UnknownProduct) -> Any:
    """404: nothing of that name."""
    return {"error": str(error)}, 404


@app.errorhandler(OutOfStock)
def out_of_stock(error: OutOfStock) -> Any:
    """409: of the moment only. It is not kept, and a retry tries again."""
    return {"error": str(error)}, 409


if __name__ == "__main__":
    serve_wsgi(app)
