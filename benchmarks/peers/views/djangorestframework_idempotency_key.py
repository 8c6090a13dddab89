"""The view that djangorestframework-idempotency-key protects. It keeps what a view returns, which is a dict here."""

from __future__ import annotations

import json
from typing import Any

from django.urls import path

from benchmarks.interface import HELD, HOLD, OTHER_PATH, PATH, STATUS, body_of
from benchmarks.peers.loading import load

_once = load("rest_framework_idempotency_key.decorators").simple_idempotency_key_method
_response = load("rest_framework.response").Response


def post(self: Any, request: Any) -> Any:
    """Read the order, respond with as much."""
    body = request._request.body
    if HOLD in request.headers:
        reply = HELD.wait()
        if reply is not None:
            return _response(json.loads(b"".join(reply.parts)), reply.status)
    return _response({"charged": "x" * (len(body_of(len(body))) - len('{"charged":""}'))}, STATUS)


_charges: Any = type("Charges", (load("rest_framework.views").APIView,), {"post": _once(post), "patch": _once(post)})

urlpatterns = [path(each[1:], _charges.as_view()) for each in (PATH, OTHER_PATH)]
