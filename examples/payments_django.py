"""The payments API on Django in one file: ``python -m examples.payments_django``, or with ``--asgi`` under uvicorn.

The three effects of ``POST /charges`` are stages: a worker that dies between two of them is resumed by the retry.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict

import django
from django.conf import settings

settings.configure(
    SECRET_KEY=os.environ.get("SECRET_KEY", "only-for-this-example"),
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["open_idempotency.django"],
    MIDDLEWARE=["open_idempotency.django.IdempotencyMiddleware"],
    IDEMPOTENCY_BACKEND=os.environ.get("IDEMPOTENCY_BACKEND", "sqlite:///idempotency.db"),
    IDEMPOTENCY_LEASE=float(os.environ.get("IDEMPOTENCY_LEASE", "30")),
)
django.setup()

from django.core.asgi import get_asgi_application  # noqa: E402 (after the settings, which are above)
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpRequest, JsonResponse  # noqa: E402
from django.urls import path, reverse  # noqa: E402
from django.views.decorators.http import require_GET, require_POST  # noqa: E402

from examples.orders import BadOrder, Order  # noqa: E402
from examples.provider import CardDeclined, Charge, PaymentProvider  # noqa: E402
from examples.serving import serve_asgi, serve_wsgi  # noqa: E402
from examples.shop import OutOfStock, Receipt, Reservation, Shop, UnknownProduct  # noqa: E402
from open_idempotency import idem  # noqa: E402

shop = Shop()
provider = PaymentProvider()


@require_POST
def create_charge(request: HttpRequest) -> JsonResponse:
    """Turn what can go wrong into a response; the work is in ``checkout``."""
    try:
        receipt = checkout(Order.from_body(request.body))
    except BadOrder as error:
        return JsonResponse({"error": str(error)}, status=400)
    except CardDeclined as error:
        return JsonResponse({"error": str(error)}, status=402)
    except UnknownProduct as error:
        return JsonResponse({"error": str(error)}, status=404)
    except OutOfStock as error:
        return JsonResponse({"error": str(error)}, status=409)
    location = reverse("charge", args=[receipt.id])
    return JsonResponse(asdict(receipt), status=201, headers={"Location": location})


def checkout(order: Order) -> Receipt:
    """Reserve the goods, charge the card, write the receipt."""
    # The return annotations of these methods say how a later attempt reads the recorded values.
    reservation: Reservation = idem.run("reserve", shop.reserve, order.sku, order.quantity, idem.key_for("reserve"))
    try:
        # The provider gets a key of its own, the same one on every attempt.
        charge: Charge = idem.run("charge", provider.charge, reservation.amount, order.card, idem.key_for("charge"))
    except CardDeclined:
        shop.release(reservation)
        raise
    receipt: Receipt = idem.run("receipt", shop.write_receipt, reservation, charge)
    return receipt


@require_GET
def read_charge(request: HttpRequest, charge_id: str) -> JsonResponse:
    """The receipt of a charge."""
    receipt = shop.find_receipt(charge_id)
    if receipt is None:
        return JsonResponse({"error": "no such charge"}, status=404)
    return JsonResponse(asdict(receipt))


urlpatterns = [
    path("charges", create_charge),
    path("charges/<charge_id>", read_charge, name="charge"),
]

wsgi_application = get_wsgi_application()
asgi_application = get_asgi_application()

if __name__ == "__main__":
    if "--asgi" in sys.argv:
        serve_asgi(asgi_application)
    else:
        serve_wsgi(wsgi_application)
