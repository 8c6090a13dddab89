"""A service that pays through a bank without idempotency keys: ``python -m tests.crash.bank external``.

The arguments are the options of the payment's stage. With ``SHOP_DIE=after-transfer`` the worker is killed after the
transfer and before it is on record. The bank's transfers are in its journal.
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
    """The effect. The bank does not detect repeated transfers."""
    return "transferred"


def statement() -> Found[str] | Finding:
    """Ask the bank whether the transfer happened."""
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
