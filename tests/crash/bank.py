"""A service that pays through a bank which knows no idempotency keys: ``python -m tests.crash.bank external``.

The words say on what terms the payment is a stage. With ``SHOP_DIE=after-transfer`` the worker is killed when the money
is gone and before that is on record. What the bank did is its journal.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from flask import Flask

from examples.evidence import FOLDER, effect, read_journal
from examples.serving import serve_wsgi
from open_idempotency import NOT_DONE, Finding, Found, idem
from open_idempotency.flask import Idempotency

app = Flask(__name__)
Idempotency(app, backend=os.environ["IDEMPOTENCY_BACKEND"], lease=float(os.environ["IDEMPOTENCY_LEASE"]))


@effect("transfer")
def transfer() -> str:
    """The effect. The bank has no idea that it was asked before."""
    return "transferred"


def statement() -> Found[str] | Finding:
    """Asks the bank whether it has done it."""
    return Found("found on the statement") if read_journal(FOLDER) else NOT_DONE


TERMS: dict[str, dict[str, Any]] = {
    "external": {"external": True},
    "rerun": {"external": True, "on_doubt": "rerun"},
    "reconcile": {"reconcile": statement},
}


@app.post("/charges")
def create_charge() -> tuple[str, int]:
    """Pay, in one stage."""
    return idem.run("transfer", transfer, **TERMS[sys.argv[1]]), 201


if __name__ == "__main__":
    serve_wsgi(app)
