"""A worker of any version of the package, by its path: a Flask application that takes requests from stdin.

``python worker.py STORE EFFECTS LEDGER``. STORE: the records' URL, or the path of a SQLite file with ``django:`` before
it. EFFECTS: a file that gets a line for each effect. LEDGER: the application's own database, with the ledger in it.
Each line of JSON on stdin is a command, and gets one line as its reply. It imports nothing from the tests, which are of
another version.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import flask

from open_idempotency import idem, open_backend
from open_idempotency.backend import Backend, Claim
from open_idempotency.encryption import EncryptionKeys
from open_idempotency.flask import Idempotency

#: seconds: stored records never expire, and a takeover soon succeeds
TTL, LEASE = 1.5e9, 3.0
#: the policies of the applications, which share one store
POLICIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sealed": {"encryption": EncryptionKeys({"2026": bytes(range(32))})},
    "other cipher": {"encryption": EncryptionKeys({"c": bytes(32)}, cipher="chacha20-poly1305")},
    "json": {"fingerprint": "json", "fingerprint_headers": ["X-Tenant"]},
    "short": {"max_response_bytes": 10},
    "replaying failures": {"on_failed": "replay"},
    "few keys": {"max_live_keys": 1, "scope_by_route": True},
}


class Declined(Exception):
    """An error that a stage records."""


def backend_of(store: str) -> Backend:
    """The backend of the records."""
    if not store.startswith("django:"):
        return open_backend(store)
    import django
    from django.conf import settings

    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": store.removeprefix("django:")}
    settings.configure(DATABASES={"default": database}, INSTALLED_APPS=["open_idempotency.django"], USE_TZ=True)
    django.setup()
    return open_backend("django://default")


def application(backend: Backend, effects: str, ledger: str, fields: dict[str, Any]) -> flask.Flask:
    """An application whose views write a line for each effect, and end as the header ``X-End`` says."""
    app = flask.Flask("formats")

    def effect(name: str) -> dict[str, str]:
        value = uuid4().hex
        with open(effects, "a", encoding="utf-8") as file:
            file.write(f"{name} {value}\n")
        return {name: value}

    def decline() -> None:
        effect("decline")
        raise Declined("no money")

    def end(where: str) -> None:
        if flask.request.headers.get("X-End") == where:
            os.kill(os.getpid(), signal.SIGKILL)

    @app.post("/done")
    def done() -> flask.Response:
        response = flask.make_response(b"\x00\xff" + uuid4().hex.encode(), 201)
        response.headers["Content-Type"] = "application/octet-stream"
        response.headers["Location"] = "/done/1"
        response.headers.add("X-Twice", "one")
        response.headers.add("X-Twice", "two")
        effect("done")
        return response

    @app.post("/login")
    def login() -> flask.Response:
        response = flask.make_response(uuid4().hex, 201)
        response.headers["Location"] = "/login/1"
        response.set_cookie("session", "secret")
        return response

    @app.post("/stages")
    def stages() -> Any:
        values: dict[str, Any] = {}
        values["reserve"] = idem.run("reserve", effect, "reserve", key="1")
        values["nothing"] = idem.save_stage("nothing \u00fc", None)
        values["charge"] = idem.run("charge", effect, "charge", external=True)
        try:
            idem.run("decline", decline, memo_errors=(Declined,))
        except Exception as error:
            values["decline"] = str(error)
        with sqlite3.connect(ledger) as connection:
            values["row"] = idem.run("row", effect, "row", tx=connection)
        connection.close()
        idem.run("doubt", lambda: end("in doubt") or effect("doubt"), external=True)
        end("die")
        if flask.request.headers.get("X-End") == "fail":
            return flask.jsonify(failure=uuid4().hex), 500
        return flask.jsonify(attempt=idem.attempt, **values)

    @app.post("/atomic")
    def atomic() -> Any:
        connection = sqlite3.connect(ledger)
        try:
            with connection, idem.atomic(connection) as block:
                connection.execute("INSERT INTO orders VALUES (1)")
                respond = getattr(block, "respond", None) or block.answer  # as versions before 0.1 have it
                return respond(flask.make_response(effect("atomic"), 201))
        finally:
            connection.close()

    Idempotency(app, backend, **fields)
    return app


class Worker:
    """Its methods are the commands."""

    def __init__(self, store: str, effects: str, ledger: str) -> None:
        self.backend = backend_of(store)
        both = {"ttl": TTL, "lease": max(LEASE, 1.5 * self.backend.call_timeout)}
        make = partial(application, self.backend, effects, ledger)
        self.applications = {name: make({**both, **fields}) for name, fields in POLICIES.items()}

    def post(
        self, path: str, key: str, app: str = "plain", body: str = "{}", end: str = "", caller: str = ""
    ) -> dict[str, Any]:
        """Send a request."""
        headers = {"Idempotency-Key": key, "X-End": end, "Content-Type": "application/json", "X-Tenant": "t"}
        if caller:
            headers["Authorization"] = f"Bearer {caller}"
        response = self.applications[app].test_client().post(path, headers=headers, data=body.encode())
        return {
            "status": response.status_code,
            "body": response.data.decode("latin-1"),
            "headers": [pair for pair in response.headers.items() if pair[0] in ("Location", "X-Twice")],
            "replayed": response.headers.get("Idempotent-Replayed") == "true",
        }

    def migrate(self) -> list[str]:
        """Create the store's tables, or migrate them."""
        return list(self.backend.migrate())

    def claim(self, record: str, owner: str) -> str:
        """Claim a record; the name of the type of the result."""
        return type(self.backend.claim(self._claim(record, owner))).__name__

    def withdraw(self, record: str, owner: str) -> None:
        """Withdraw a claim; the first versions cannot."""
        from open_idempotency.backend import Withdraw

        self.backend.withdraw(Withdraw(self._claim(record, owner)))

    def records(self) -> list[str]:
        """The ids of all records."""
        return sorted(record.record_id.hex() for record in self.backend.scan())

    def purge(self) -> int:
        """Delete expired records."""
        return self.backend.purge()

    @staticmethod
    def _claim(record: str, owner: str) -> Claim:
        c = Claim(bytes.fromhex(record), b"\x01 one request", owner.encode(), LEASE, TTL)
        return replace(c)


def _say(result: Any) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Execute commands until stdin ends."""
    worker = Worker(*sys.argv[1:])
    _say("ready")
    for line in sys.stdin:
        verb, arguments = json.loads(line)
        try:
            result = getattr(worker, verb)(**arguments)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        _say(result)


if __name__ == "__main__":
    main()
