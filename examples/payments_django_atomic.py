"""The payments API on Django, in one transaction a request: ``python -m examples.payments_django_atomic``.

What the view writes and its response commit together, so no moment is left in which a crash, or a backend that lost
its records, makes the shop do anything twice. Only the charge, which is somebody else's, is still a stage.
"""

from __future__ import annotations

import os
from dataclasses import asdict

import django
from django.conf import settings

from examples import database

settings.configure(
    SECRET_KEY=os.environ.get("SECRET_KEY", "only-for-this-example"),
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    DATABASES={"default": database.for_django()},
    INSTALLED_APPS=["open_idempotency.django", "examples.shop_django"],
    MIDDLEWARE=["open_idempotency.django.IdempotencyMiddleware"],
    IDEMPOTENCY_BACKEND=os.environ.get("IDEMPOTENCY_BACKEND", "sqlite:///idempotency.db"),
    IDEMPOTENCY_LEASE=float(os.environ.get("IDEMPOTENCY_LEASE", "30")),
)
django.setup()

from django.core.management import call_command  # noqa: E402 (after the settings, which are above)
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import transaction  # noqa: E402
from django.http import HttpRequest, JsonResponse  # noqa: E402
from django.urls import path, reverse  # noqa: E402
from django.views.decorators.http import require_GET, require_POST  # noqa: E402

from examples.orders import BadOrder, Order  # noqa: E402
from examples.provider import CardDeclined, Charge, PaymentProvider  # noqa: E402
from examples.serving import serve_wsgi  # noqa: E402
from examples.shop import OutOfStock, Receipt, UnknownProduct  # noqa: E402
from examples.shop_django import models as shop  # noqa: E402
from open_idempotency import NOT_DONE, Finding, Found, idem  # noqa: E402
from open_idempotency.django import idempotent  # noqa: E402

provider = PaymentProvider()


@require_POST
@idempotent(atomic=True)
def create_charge(request: HttpRequest) -> JsonResponse:
    """Turn what can go wrong into a response; the work is in ``checkout``."""
    try:
        order = Order.from_body(request.body)
        with transaction.atomic():  # a savepoint: what goes wrong takes its rows back, and its response is stored
            receipt = checkout(order)
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
    """Reserve the goods, charge the card, write the receipt.

    A crash in between takes the reservation back, though the card may be charged by then. Where somebody else can buy
    the last poster meanwhile, reserve in a transaction of its own, as ``payments_fastapi_sqlalchemy`` does.
    """
    reservation = shop.reserve(order.sku, order.quantity)
    charge: Charge = idem.run(
        "charge",
        provider.charge,
        reservation.amount,
        order.card,
        idem.key_for("charge"),
        reconcile=find_charge,
        memo_errors=(CardDeclined,),
    )
    return shop.write_receipt(reservation, charge)


def find_charge(amount: int, card: str, key: str) -> Found[Charge] | Finding:
    """Asked by the retry when a worker died while it charged the card."""
    charge = provider.find(key)
    return NOT_DONE if charge is None else Found(charge)


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


def make_tables() -> None:
    """Migrate, which makes the ledger's tables too; the shop's have no migrations of their own."""
    with database.one_worker_at_a_time():
        call_command("migrate", run_syncdb=True, verbosity=0)
        shop.stock_up()


make_tables()
wsgi_application = get_wsgi_application()

if __name__ == "__main__":
    serve_wsgi(wsgi_application)
