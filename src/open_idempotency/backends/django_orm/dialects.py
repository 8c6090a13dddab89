"""What differs between the databases: their clocks, how a transaction begins, and how each wait is bounded.

Nothing here depends on a session: PostgreSQL's settings last for one transaction, so a pooler may stand in between.
MySQL has no such settings; there they are made once, on a connection of the backend's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from open_idempotency.backends._shared import sizes, sql_rows

Options = dict[str, Any]

#: libpq raises shorter ones to this
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
    sent=sql_rows.MICROSECONDS,
    seconds=sql_rows.in_seconds,
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
