"""Stores for the workers, and their contents as files: how they are saved and loaded."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import redis
from psycopg import sql

from open_idempotency.backends.postgres import backend
from tests.postgres_server import PostgresServer

FILES = ("sqlite", "sqlalchemy", "django")
KINDS = (*FILES, "redis", "postgres")
#: a call is to be shorter than its lease
BRISK = "timeout=0.5"
TABLES = ("migrations", "records", "stages", "reservations")
_URLS = {"sqlite": "sqlite:///{}?" + BRISK, "sqlalchemy": "sqlalchemy+sqlite:///{}?" + BRISK, "django": "django:{}"}


def url_of_file(kind: str, path: Path) -> str:
    """The URL of a SQLite file for a worker."""
    return _URLS[kind].format(path)


def save_file(path: Path, target: Path) -> None:
    """Save a SQLite database without its log, as one file."""
    target.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(target),))


def load_file(source: Path, path: Path) -> None:
    """Copy the file to where it may be written."""
    shutil.copyfile(source, path)


def save_redis(url: str, prefix: str, target: Path) -> None:
    """Save all keys under a prefix, without it: hashes and sorted sets, in base 64."""
    with closing(redis.Redis.from_url(url)) as server:
        keys = sorted(server.scan_iter(f"{prefix}*"))
        found = {_text(key[len(prefix) :]): _value(server, key) for key in keys}
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _value(server: Any, key: bytes) -> dict[str, Any]:
    if server.type(key) == b"hash":
        return {"hash": {_text(field): _text(value) for field, value in sorted(server.hgetall(key).items())}}
    return {"zset": {_text(member): score for member, score in server.zrange(key, 0, -1, withscores=True)}}


def load_redis(source: Path, url: str, prefix: str) -> None:
    """Load the keys under a prefix."""
    with closing(redis.Redis.from_url(url)) as server:
        for name, value in json.loads(source.read_text(encoding="utf-8")).items():
            key = prefix.encode() + _bytes(name)
            if "hash" in value:
                server.hset(key, mapping={_bytes(field): _bytes(data) for field, data in value["hash"].items()})
            else:
                server.zadd(key, {_bytes(member): score for member, score in value["zset"].items()})


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def save_postgres(url: str, target: Path) -> None:
    """Save the rows of all tables as COPY writes them, and the digests of the migrations."""
    with psycopg.connect(url) as connection:
        rows = {table: b"".join(_copied(connection, table)).decode() for table in TABLES}
        applied = [name for (name,) in connection.execute("SELECT name FROM open_idempotency.migrations ORDER BY name")]
    digests = {name: hashlib.sha256(backend.migrations()[name].encode()).hexdigest() for name in applied}
    target.write_text(json.dumps({"migrations": digests, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _copied(connection: psycopg.Connection[Any], table: str) -> Iterator[bytes]:
    name = sql.Identifier("open_idempotency", table)
    with connection.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(name)) as copy:
        yield from map(bytes, copy)


def load_postgres(source: Path, server: PostgresServer, database: str) -> str:
    """Make a database by that version's migrations and load its rows; the URL."""
    found = json.loads(source.read_text(encoding="utf-8"))
    url = server.create_database(database)
    scripts = backend.migrations()
    with psycopg.connect(url) as connection:
        for name in found["migrations"]:
            connection.execute(scripts[name].encode())
        for table, rows in found["rows"].items():
            name = sql.Identifier("open_idempotency", table)
            with connection.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(name)) as copy:
                copy.write(rows)
        connection.execute(
            "SELECT setval(pg_get_serial_sequence('open_idempotency.stages', 'position'), max(position) + 1)"
            " FROM open_idempotency.stages"
        )
    return url


def changed_migrations(source: Path) -> list[str]:
    """The migrations of that version that have changed since."""
    found = json.loads(source.read_text(encoding="utf-8"))
    now = {name: hashlib.sha256(script.encode()).hexdigest() for name, script in backend.migrations().items()}
    return [name for name, digest in found["migrations"].items() if now.get(name) != digest]
