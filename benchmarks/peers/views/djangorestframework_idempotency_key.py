"""The view that djangorestframework-idempotency-key protects. It keeps what a view returns, which is a dict here."""

from __future__ import annotations

from typing import Any

from django.urls import path

from benchmarks.interface import HELD, HOLD, PATH, STATUS, answer
from benchmarks.peers.loading import load

_once = load("rest_framework_idempotency_key.decorators").simple_idempotency_key_method
_response = load("rest_framework.response").Response


def post(self: Any, request: Any) -> Any:
    """Read the order, answer with as much."""
    body = request._request.body
    if HOLD in request.headers:
        HELD.wait()
    return _response({"charged": "x" * (len(answer(len(body))) - len('{"charged":""}'))}, STATUS)


_charges: Any = type("Charges", (load("rest_framework.views").APIView,), {"post": _once(post)})

urlpatterns = [path(PATH[1:], _charges.as_view())]
