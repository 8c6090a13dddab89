"""Rules from ``open_idempotency.rules``, in applications that never import the library's module for their framework."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from open_idempotency.rules import idempotent, rules_on

_FLASK = """
from flask import Flask
from open_idempotency.rules import idempotent
app = Flask("shop")

@app.post("/charges")
@idempotent
def charge():
    return "done"

print(app.test_client().post("/charges", headers={"Idempotency-Key": "8e03978e-40d5-43e8"}).status_code)
"""
_STARLETTE = """
import asyncio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from open_idempotency.rules import idempotent

@idempotent
async def charge(request):
    return PlainTextResponse("done")

async def send(message):
    print(message.get("status", ""))

app = Starlette(routes=[Route("/charges", charge, methods=["POST"])])
headers = [(b"idempotency-key", b"8e03978e-40d5-43e8")]
scope = {"type": "http", "method": "POST", "path": "/charges", "query_string": b"", "headers": headers}
asyncio.run(app(scope, None, send))
"""


@pytest.mark.parametrize("program", [_FLASK, _STARLETTE], ids=["flask", "starlette"])
def test_a_mark_that_nothing_reads_is_an_error_wherever_the_decorator_comes_from(program: str) -> None:
    """O-25."""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.strip() == "500"
    assert "ConfigurationError: POST /charges" in ended.stderr


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_a_mark_above_a_static_or_class_method_is_on_its_function(kind: Any) -> None:
    """O-27: the class attribute is another object than the marked one, and leads to the rule all the same."""

    class Payments:
        charge = idempotent(required=True)(kind(lambda *args: None))

    (rule,) = rules_on(Payments.charge, "POST")
    assert rule.fields == {"required": True}
