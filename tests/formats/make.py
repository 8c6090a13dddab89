"""Makes the files of one version: ``python -m tests.formats.make NAME``, with ``NAME`` in ``VERSIONS``.

Run it once for each version that stores something in a new way, and never again for a version with a folder: its files
stand for users' stores. The version's own code is taken from the history, and runs in separate processes; this module
only saves what they leave.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import sys
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from open_idempotency import ledger
from tests.formats import VERSIONS, stores
from tests.formats.running import HERE, Worker, killed, tree_of
from tests.postgres_server import PostgresServer
from tests.servers import Server

#: what is left by a request that got a response: its path, its application
REPLACED = {
    "done": ("/done", "plain"),
    "stages": ("/stages", "plain"),
    "sealed": ("/done", "sealed"),
    "other cipher": ("/done", "other cipher"),
    "json": ("/done", "json"),
    "too long": ("/done", "short"),
    "counted": ("/done", "few keys"),
    "atomic": ("/atomic", "plain"),
}
#: and by one that failed, or whose worker died: its application, its end
UNFINISHED = {
    "failed": ("plain", "fail"),
    "sealed and failed": ("sealed", "fail"),
    "failure to replay": ("replaying failures", "fail"),
    "abandoned": ("plain", "die"),
    "sealed and abandoned": ("sealed", "die"),
    "in doubt": ("plain", "in doubt"),
    "sealed and in doubt": ("sealed", "in doubt"),
}
CALLER = "a caller with a quota"


def make_ledger(path: Path) -> None:
    """The application's own database."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(ledger.schema("sqlite") + ";CREATE TABLE orders (number integer)")


def fill(tree: Path, store: str, folder: Path) -> dict[str, Any]:
    """Leave something of each kind in a store; the clients' responses, and the number of effects."""
    effects, database = folder / "effects.txt", folder / "ledger.db"
    make_ledger(database)
    start = partial(Worker, tree, store, effects, database)
    got: dict[str, Any] = {}
    with start() as worker:
        worker.ask("migrate")
        for key, (path, app) in REPLACED.items():
            got[key] = worker.post(path, key, app=app, caller=CALLER if app == "few keys" else "")
        for key, (app, end) in UNFINISHED.items():
            if end == "fail":
                got[key] = worker.post("/stages", key, app=app, end=end)
    unexpected = [got[key] for key in got if got[key]["status"] >= 400 and "failure" not in got[key]["body"]]
    assert not unexpected, unexpected
    for key, (app, end) in UNFINISHED.items():
        if end != "fail":
            killed(start, "/stages", key, end, app=app)
    return {"got": got, "effects": effects.read_text(encoding="utf-8").splitlines()}


def main(name: str) -> None:
    """Make the folder."""
    target = HERE / name
    target.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        work.chmod(0o755)
        tree = tree_of(VERSIONS[name], work / "tree")
        for kind in stores.KINDS:
            folder = work / kind
            folder.mkdir()
            expected = _made(kind, tree, folder, target)
            stores.save_file(folder / "ledger.db", target / f"{kind}-ledger.sqlite3")
            text = json.dumps(expected, indent=1) + "\n"
            (target / f"{kind}-expected.json").write_text(text, encoding="utf-8")


def _made(kind: str, tree: Path, folder: Path, target: Path) -> dict[str, Any]:
    if kind in stores.FILES:
        path = folder / "records.db"
        expected = fill(tree, stores.url_of_file(kind, path), folder)
        stores.save_file(path, target / f"{kind}.sqlite3")
        return expected
    if kind == "redis":
        prefix, valkey = f"{secrets.token_hex(8)}:", Server("valkey").start()
        try:
            expected = fill(tree, f"{valkey.url}?prefix={prefix}&{stores.BRISK}", folder)
            stores.save_redis(valkey.url, prefix, target / "redis.json")
        finally:
            valkey.stop()
        return expected
    postgres = PostgresServer(16, "fsync=off").start()
    try:
        expected = fill(tree, f"{postgres.url()}?{stores.BRISK}", folder)
        stores.save_postgres(postgres.url(), target / "postgres.json")
    finally:
        postgres.stop()
    return expected


if __name__ == "__main__":
    main(sys.argv[1])
