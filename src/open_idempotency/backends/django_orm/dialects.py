"""The databases under Django: the meaning of their errors, their differences, and the SQL statements.

Django raises the errors of every driver as its own classes, with the driver's error as the cause. Each is wrapped once.

Databases differ in their clocks, in how a transaction begins, and in how each wait is bounded. Nothing depends on a
session: PostgreSQL's settings last for one transaction, so a pooler may be in between. MySQL has no such settings, so
they are made once for each connection of the backend.

No value ever becomes part of a statement. ``transactions`` appends what locks rows, and what skips rows that others
have locked. ``with_times`` fills in how the database sends a time.
"""

# ruff: noqa: S608 (the names of tables and columns are constants of this module)
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from django.db import DatabaseError, Error, IntegrityError, connections

from open_idempotency.backends._shared import sizes, sql_verbs
from open_idempotency.exceptions import BackendUnavailable, IdempotencyError, RecordUnreadable, first_line

# Errors

#: PostgreSQL: serialization failure, deadlock; MySQL: deadlock
_OVERTAKEN = frozenset({"40001", "40P01", 1213})
_MISSING = ("does not exist", "doesn't exist", "no such table", "no such column", "has no column", "unknown column")


class Overtaken(BackendUnavailable):
    """Another call was first, and nothing has changed: the transaction may be tried again."""


def is_overtaken(error: Error) -> bool:
    """Whether this transaction was rolled back because of a conflict with another one."""
    return isinstance(error, IntegrityError) or _code(error) in _OVERTAKEN


def _code(error: Error) -> object:
    cause = error.__cause__
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return code or (error.args[0] if error.args else None)


def wrapped(error: Error, alias: str, vendor: str) -> IdempotencyError:
    """The error of this package for an error of Django's; the caller keeps the latter as the cause."""
    if is_overtaken(error):
        return Overtaken(f"Django's database {alias!r}: another call was in the way")
    # A malformed file, or one that is no database, raises this very class; all other errors are subclasses.
    if vendor == "sqlite" and type(error) is DatabaseError:
        return RecordUnreadable(f"Django's database {alias!r} cannot be read: {error}")
    text = first_line(error)
    if sizes.is_refused(_code(error), text):
        return sizes.too_large(f"Django's database {alias!r}", error)
    return BackendUnavailable(f"Django's database {alias!r}: {type(error).__name__}: {text}{_hint(text, alias)}")


def _hint(text: str, alias: str) -> str:
    lowered = text.lower()
    # A column is named without its table. No statement but the backend's own is sent on its connections.
    if ("open_idempotency" in lowered or "column" in lowered) and any(words in lowered for words in _MISSING):
        return f"; {how_to_migrate(alias)}"
    if "locked" in lowered and connections[alias].in_atomic_block:
        return (
            f"; SQLite has one writer, and this thread's own transaction on {alias!r} may be the one that writes: "
            "that of a TestCase (take a TransactionTestCase, or memory://) or of ATOMIC_REQUESTS"
        )
    return ""


def how_to_migrate(alias: str) -> str:
    """The command that makes the tables."""
    return "run `manage.py migrate open_idempotency" + ("`" if alias == "default" else f" --database {alias}`")


# Differences between databases

Options = dict[str, Any]

#: seconds; libpq raises shorter timeouts to this
_SHORTEST_CONNECT = 2


@dataclass(frozen=True)
class Dialect:
    """One kind of database. All functions take the ``timeout`` in seconds.

    ``clock``: an expression for the seconds since 1970, None where this machine's clock is the database's. ``begin``:
    what begins a transaction that writes, ``begin_reading`` one whose statements all see the same state. ``prepare``:
    the first statements of a new connection. ``options``: added to the alias's own OPTIONS, without ``drops``.
    ``slowest``: how long one try of a call may take. ``one_writer``: writers wait for each other anyway.
    ``is_mysql``: bytes are marked as such, and no number is infinite. ``sent``: how a time is sent, around ``{}``, and
    ``seconds`` what makes seconds of that. ``largest``: the most bytes of a value; None where its error is enough.
    """

    clock: str | None
    begin: Callable[[float], tuple[str, ...]]
    begin_reading: Callable[[float], tuple[str, ...]]
    options: Callable[[float], Options]
    slowest: Callable[[float], float]
    drops: frozenset[str] = frozenset()
    prepare: Callable[[float], tuple[str, ...]] = lambda timeout: ()
    lock: str = " FOR UPDATE"
    largest: sizes.Limit | None = None
    is_mysql: bool = False
    one_writer: bool = False
    sent: str = "{}"
    seconds: Callable[[Any], Any] | None = None


def _postgresql_begin(mode: str) -> Callable[[float], tuple[str, ...]]:
    def begin(timeout: float) -> tuple[str, ...]:
        limit = max(1, round(timeout * 1000))
        return (
            f"BEGIN ISOLATION LEVEL {mode}; SET LOCAL lock_timeout = {limit}; SET LOCAL statement_timeout = {limit}",
        )

    return begin


def _postgresql_options(timeout: float) -> Options:
    whole = math.ceil(timeout)
    return {
        "connect_timeout": max(_SHORTEST_CONNECT, whole),
        # A server that has vanished is noticed by the operating system, whatever the driver.
        "tcp_user_timeout": max(1, round(timeout * 1000)),
        "keepalives_idle": whole,
        "keepalives_interval": 1,
        "keepalives_count": 2,
    }


def _mysql_prepare(timeout: float) -> tuple[str, ...]:
    whole = math.ceil(timeout)
    return (f"SET SESSION innodb_lock_wait_timeout = {whole}, SESSION lock_wait_timeout = {whole}",)


def _mysql_options(timeout: float) -> Options:
    whole = math.ceil(timeout)
    # A second more than the server waits for a lock, so that the server's own error comes first.
    silence = {"read_timeout": whole + 1, "write_timeout": whole + 1}
    return {"connect_timeout": whole, "isolation_level": "read committed", **silence}


POSTGRESQL = Dialect(
    clock="extract(epoch FROM clock_timestamp())::double precision",
    begin=_postgresql_begin("READ COMMITTED READ WRITE"),
    begin_reading=_postgresql_begin("REPEATABLE READ READ ONLY"),
    options=_postgresql_options,
    slowest=lambda timeout: 2 * timeout + max(_SHORTEST_CONNECT, timeout),
    # Django's own pool would be emptied by requests that each hold one of its connections and ask for another.
    drops=frozenset({"pool", "isolation_level", "prepare_threshold"}),
    sent=sql_verbs.MICROSECONDS,
    seconds=sql_verbs.in_seconds,
    largest=sizes.OF_POSTGRESQL,
)

MYSQL = Dialect(
    # Not the local time, which repeats an hour when summer time ends.
    clock="TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6",
    begin=lambda timeout: ("START TRANSACTION",),
    begin_reading=lambda timeout: (
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
    ),
    options=_mysql_options,
    prepare=_mysql_prepare,
    largest=sizes.OF_MYSQL,
    # Some client libraries wait for a reply three times before they give up.
    slowest=lambda timeout: timeout + 3 * (math.ceil(timeout) + 1),
    is_mysql=True,
)

SQLITE = Dialect(
    clock=None,
    begin=lambda timeout: ("BEGIN IMMEDIATE",),
    begin_reading=lambda timeout: ("BEGIN",),
    options=lambda timeout: {"timeout": timeout},
    slowest=lambda timeout: 3 * timeout,
    drops=frozenset({"transaction_mode"}),
    lock="",
    one_writer=True,
)

#: by the name that Django has for them
DIALECTS: Mapping[str, Dialect] = {"postgresql": POSTGRESQL, "mysql": MYSQL, "sqlite": SQLITE}


# SQL that all of them understand

RECORDS = "open_idempotency_django_records"
STAGES = "open_idempotency_django_stages"
RESERVATIONS = "open_idempotency_django_reservations"
SCOPES = "open_idempotency_django_scopes"

#: the columns that ``INSERT`` and ``UPDATE`` write, in the order of their parameters
WRITTEN = (*sql_verbs.HEADER, "response", "record_id")
# A claim needs the response only to replay it, so not while it runs and not for another request.
_RESPONSE_FOR_CLAIM = "CASE WHEN status <> 1 AND fingerprint = %s THEN response END"

NOW = "SELECT {clock}"
NOW_AND_RESERVATION = f"SELECT {{clock}}, (SELECT {{ends}} FROM {RESERVATIONS} WHERE scope_id = %s AND record_id = %s)"
PEEK = f"SELECT {{clock}}, {{header}}, {_RESPONSE_FOR_CLAIM} FROM {RECORDS} WHERE record_id = %s"
READ_FOR_CLAIM = f"SELECT {{header}}, {_RESPONSE_FOR_CLAIM} FROM {RECORDS} WHERE record_id = %s"
READ_HEADER = f"SELECT {{header}}, NULL FROM {RECORDS} WHERE record_id = %s"
READ_WHOLE = f"SELECT {{header}}, response FROM {RECORDS} WHERE record_id = %s"
# In one order, so that no two calls deadlock.
READ_MANY = f"SELECT record_id, {{header}}, NULL FROM {RECORDS} WHERE record_id IN ({{many}}) ORDER BY record_id"
INSERT = f"INSERT INTO {RECORDS} ({', '.join(WRITTEN)}) VALUES ({', '.join(['%s'] * len(WRITTEN))})"
UPDATE = f"UPDATE {RECORDS} SET {', '.join(f'{name} = %s' for name in WRITTEN[:-1])} WHERE record_id = %s"
EXTEND = f"UPDATE {RECORDS} SET lease_end = %s, expires_at = %s + ttl WHERE record_id IN ({{many}})"
DELETE = f"DELETE FROM {RECORDS} WHERE record_id IN ({{many}})"
SCAN = f"SELECT record_id FROM {RECORDS} WHERE record_id > %s AND expires_at > %s ORDER BY record_id LIMIT %s"
SCAN_HEADERS = (
    f"SELECT record_id, {{header}}, NULL FROM {RECORDS} "
    "WHERE record_id > %s AND expires_at > %s ORDER BY record_id LIMIT %s"
)
FIND_EXPIRED = f"SELECT record_id FROM {RECORDS} WHERE expires_at <= %s ORDER BY expires_at LIMIT %s"

READ_STAGES = f"SELECT name, stage_key, frame FROM {STAGES} WHERE record_id = %s ORDER BY id"
READ_STAGE = f"SELECT name, stage_key, frame FROM {STAGES} WHERE record_id = %s AND stage_id = %s"
READ_FIRST_STAGE = READ_STAGES + " LIMIT 1"
ADD_STAGE = f"INSERT INTO {STAGES} (record_id, stage_id, name, stage_key, frame) VALUES (%s, %s, %s, %s, %s)"
DELETE_STAGES = f"DELETE FROM {STAGES} WHERE record_id IN ({{many}})"

READ_SCOPE = f"SELECT ends FROM {SCOPES} WHERE scope_id = %s"
INSERT_SCOPE = f"INSERT INTO {SCOPES} (scope_id, ends) VALUES (%s, %s)"
EXTEND_SCOPE = f"UPDATE {SCOPES} SET ends = %s WHERE scope_id = %s AND ends < %s"
FIND_EXPIRED_SCOPES = f"SELECT scope_id FROM {SCOPES} WHERE ends <= %s ORDER BY scope_id LIMIT %s"
DELETE_SCOPES = f"DELETE FROM {SCOPES} WHERE scope_id IN ({{many}})"
READ_RESERVATION = f"SELECT ends FROM {RESERVATIONS} WHERE scope_id = %s AND record_id = %s"
# The first end, if there are more than the last parameter. Skipping rows is the cheapest way to count.
FIRST_OF_MORE_THAN = f"""
    SELECT (SELECT {{first_end}} FROM {RESERVATIONS} WHERE scope_id = %s AND ends > %s)
    FROM {RESERVATIONS} WHERE scope_id = %s AND ends > %s ORDER BY ends LIMIT 1 OFFSET %s
"""
INSERT_RESERVATION = f"INSERT INTO {RESERVATIONS} (ends, scope_id, record_id) VALUES (%s, %s, %s)"
UPDATE_RESERVATION = f"UPDATE {RESERVATIONS} SET ends = %s WHERE scope_id = %s AND record_id = %s"
DELETE_RESERVATION = f"DELETE FROM {RESERVATIONS} WHERE scope_id = %s AND record_id = %s"
FIND_EXPIRED_RESERVATIONS = f"SELECT id FROM {RESERVATIONS} WHERE ends <= %s ORDER BY id LIMIT %s"
DELETE_RESERVATIONS = f"DELETE FROM {RESERVATIONS} WHERE id IN ({{many}})"


def with_times(statement: str, clock: str, sent: str) -> str:
    """A statement that reads times. ``clock``: the expression for now; ``sent``: how a time is sent, around ``{}``."""
    header = ", ".join(sent.format(name) if name in sql_verbs.SECONDS else name for name in sql_verbs.HEADER)
    times = {"clock": sent.format(clock), "ends": sent.format("ends"), "first_end": sent.format("min(ends)")}
    return statement.format(header=header, many="{many}", **times)


@lru_cache(maxsize=512)
def for_many(statement: str, count: int) -> str:
    """A statement for ``count`` rows."""
    return statement.format(many=", ".join(["%s"] * count))


@lru_cache(maxsize=512)
def with_marked_bytes(statement: str, are_bytes: tuple[bool, ...]) -> str:
    """The statement with its bytes marked as such, for MySQL, which takes them for text otherwise."""
    first, *others = statement.split("%s")
    marks = ("_binary %s" if marked else "%s" for marked in are_bytes)
    return first + "".join(mark + other for mark, other in zip(marks, others, strict=True))
