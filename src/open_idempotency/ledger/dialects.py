"""The ledger's SQL statements for each kind of database, and what a database's errors mean for the ledger.

All statements have named parameters; no value ever becomes part of a statement. ``steps`` has the order in which a
transaction runs them. Every dialect guarantees: after ``fence`` the record's row is locked until the transaction ends,
and the statements after it read nothing older than that lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from open_idempotency.exceptions import ConfigurationError, LedgerMissing

_ROW = """
    SELECT token, fingerprint, CASE WHEN expires_at <= {now} THEN 1 ELSE 0 END, response, {number}
    FROM open_idempotency_ledger WHERE record_id = :record_id
"""
_FIND_RESPONSE = """
    SELECT fingerprint, CASE WHEN expires_at <= {now} THEN 1 ELSE 0 END, response
    FROM open_idempotency_ledger WHERE record_id = :record_id
"""
_FIND_STAGE = "SELECT frame FROM open_idempotency_ledger_stages WHERE record_id = :record_id AND stage_id = :stage_id"
_FENCE = """
    INSERT INTO open_idempotency_ledger (record_id, token, fingerprint, expires_at)
    VALUES (:record_id, :token, :fingerprint, {now} + :retention)
    ON CONFLICT (record_id) DO UPDATE SET
        token = CASE WHEN excluded.token > open_idempotency_ledger.token
            THEN excluded.token ELSE open_idempotency_ledger.token END,
        expires_at = CASE WHEN open_idempotency_ledger.expires_at > {now}
            THEN excluded.expires_at ELSE open_idempotency_ledger.expires_at END
"""
_RENEW = """
    UPDATE open_idempotency_ledger SET fingerprint = :fingerprint, response = NULL, expires_at = {now} + :retention
    WHERE record_id = :record_id
"""
_SAVE_RESPONSE = """
    UPDATE open_idempotency_ledger SET response = :response, expires_at = {now} + :retention
    WHERE record_id = :record_id AND token = :token
"""
_HELD_BY = "SELECT token, {number} FROM open_idempotency_ledger WHERE record_id = :record_id"
_INSERT_STAGE = """
    INSERT INTO open_idempotency_ledger_stages (record_id, stage_id, name, stage_key, frame)
    VALUES (:record_id, :stage_id, :name, :key, :frame)
"""
# Inserts behind the fence only: if the caller's block has ended the transaction, nothing is inserted or returned.
_RETURNING_STAGE = """
    INSERT INTO open_idempotency_ledger_stages (record_id, stage_id, name, stage_key, frame)
    SELECT record_id, :stage_id, :name, :key, :frame FROM open_idempotency_ledger
    WHERE record_id = :record_id AND token = :token RETURNING {number}
"""
_EXPIRED = """
    SELECT count(*), {latest} FROM (
        SELECT expires_at FROM open_idempotency_ledger WHERE expires_at <= {now}{where} ORDER BY expires_at LIMIT :limit
    ) expired
"""
COUNT_ENTRIES = "SELECT count(*) FROM open_idempotency_ledger WHERE record_id = :record_id"
FORGET_ENTRY = "DELETE FROM open_idempotency_ledger WHERE record_id = :record_id"
_FORGET_STAGES = "DELETE FROM open_idempotency_ledger_stages WHERE record_id = :record_id"


@dataclass(frozen=True)
class Dialect:
    """The ledger's statements for one kind of database.

    ``fence``: inserts or locks the record's row, and raises its token. ``row``: reads it behind the fence.
    ``find_stage``, ``save_stage``: one stage of the record. ``placeholder``: inserts an empty row for a stage before
    ``find_stage``, if the database needs a row to lock. ``renew``: takes over an expired row. ``save_response``: adds
    the response. ``token``: reads the row's token. ``find_response``: reads a response without a lock. ``expired``:
    counts the entries to purge and returns the latest expiry among them, which ``purge`` takes as ``:until``.
    ``purge``: run in order. ``expired_in_passing``: ``expired`` for a transaction of the application, None if that
    would delay or fail other transactions. ``forget_stages``: deletes the stages of an expired row.
    ``save_returns_row``: whether ``save_stage`` returns a row exactly if the fence is still held; if false, ``token``
    must be run to find out.

    The rows of ``row``, ``token`` and ``save_stage`` end with the number of the transaction, which is constant until
    the transaction ends. It is 0 if the database has no such number that every user may read.
    """

    name: str
    fence: str
    row: str
    find_response: str
    find_stage: str
    save_stage: str
    renew: str
    save_response: str
    token: str
    expired: str
    purge: tuple[str, ...]
    save_returns_row: bool = False
    expired_in_passing: str | None = None
    forget_stages: str = _FORGET_STAGES
    placeholder: str | None = None

    def schema(self) -> str:
        """The SQL script that creates the two tables."""
        from importlib.resources import files  # imported here, since deployments need it and requests do not

        return (files("open_idempotency.ledger") / "sql" / f"{self.name}.sql").read_text(encoding="utf-8")


def _with_on_conflict(
    name: str,
    now: str,
    lock: str,
    save_stage: str,
    save_returns_row: bool,
    number: str = "0",
    latest: str = "max(expires_at)",
    until: str = ":until",
    in_passing: str = "",
) -> Dialect:
    """A dialect with ON CONFLICT. ``lock``: the clause that locks the rows to purge and skips locked rows.

    ``latest``: the expression that returns the latest expiry. ``until``: the expression that reads it back.
    ``in_passing``: the condition under which a transaction of the application may purge.
    """
    due = f"SELECT record_id FROM open_idempotency_ledger l WHERE expires_at <= {until}"  # noqa: S608 (of constants)
    bounds = f"ORDER BY expires_at LIMIT :limit {lock}"
    return Dialect(
        name=name,
        fence=_FENCE.format(now=now),
        row=_ROW.format(now=now, number=number),
        find_response=_FIND_RESPONSE.format(now=now),
        find_stage=_FIND_STAGE,
        save_stage=save_stage.format(number=number),
        save_returns_row=save_returns_row,
        token=_HELD_BY.format(number=number),
        renew=_RENEW.format(now=now),
        save_response=_SAVE_RESPONSE.format(now=now),
        # A subquery, so the time is read once: read for each row, it could not use an index.
        expired=_EXPIRED.format(now=f"(SELECT {now})", latest=latest, where=""),
        expired_in_passing=_EXPIRED.format(now=f"(SELECT {now})", latest=latest, where=in_passing),
        # Stages first: a later record with the same id would take leftover stages as its own.
        purge=(
            f"DELETE FROM open_idempotency_ledger_stages WHERE record_id IN ({due} {bounds})",  # noqa: S608 (no value is part of it)
            f"""
                DELETE FROM open_idempotency_ledger WHERE record_id IN (
                    {due} AND NOT EXISTS (
                        SELECT 1 FROM open_idempotency_ledger_stages s WHERE s.record_id = l.record_id
                    ) {bounds}
                )
            """,  # noqa: S608 (no value is part of it)
        ),
    )


POSTGRESQL = _with_on_conflict(
    name="postgresql",
    # As a float, like the column: a comparison with another type could not use its index.
    now="CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
    lock="FOR UPDATE SKIP LOCKED",
    save_stage=_RETURNING_STAGE,
    save_returns_row=True,
    number="txid_current()",  # the same in savepoints; already assigned, since the fence has written
    # As an integer: the digits of a float depend on a setting of the session (B-20). One microsecond more than the
    # entry that expires last, since a float may be rounded down.
    latest="CAST(ceil(LEAST(max(expires_at), 9e12) * 1000000) + 1 AS bigint)",
    until="CAST(:until AS double precision) / 1000000",
    # At other levels two transactions that purge the same entries could not be serialized, and one would fail.
    in_passing=" AND current_setting('transaction_isolation') = 'read committed'",
)
SQLITE = _with_on_conflict(
    name="sqlite",
    now="((julianday('now') - 2440587.5) * 86400.0)",
    lock="",
    save_stage=_INSERT_STAGE,
    save_returns_row=False,  # SQLite before 3.35 has no RETURNING
)

# Not UNIX_TIMESTAMP: it depends on the session's time zone, and repeats an hour when summer time ends.
_MYSQL_NOW = "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6)"
# Locking reads (FOR UPDATE) return the latest commit whatever the snapshot. For an absent row they lock the gap, which
# two transactions can do at the same time, and then deadlock. So a placeholder row without a frame is inserted first.
MYSQL = Dialect(
    name="mysql",
    fence=f"""
        INSERT INTO open_idempotency_ledger (record_id, token, fingerprint, expires_at)
        VALUES (:record_id, :token, :fingerprint, {_MYSQL_NOW} + :retention)
        ON DUPLICATE KEY UPDATE
            token = GREATEST(token, VALUES(token)),
            expires_at = IF(expires_at > {_MYSQL_NOW}, VALUES(expires_at), expires_at)
    """,  # noqa: S608 (no value is part of it)
    row=_ROW.format(now=_MYSQL_NOW, number=0) + " FOR UPDATE",
    find_response=_FIND_RESPONSE.format(now=_MYSQL_NOW),
    placeholder="""
        INSERT IGNORE INTO open_idempotency_ledger_stages (record_id, stage_id, name, stage_key, frame)
        VALUES (:record_id, :stage_id, :name, :key, NULL)
    """,
    find_stage=_FIND_STAGE + " FOR UPDATE",
    save_stage=_INSERT_STAGE + " ON DUPLICATE KEY UPDATE frame = VALUES(frame)",
    renew=_RENEW.format(now=_MYSQL_NOW),
    save_response=_SAVE_RESPONSE.format(now=_MYSQL_NOW),
    token=_HELD_BY.format(number=0) + " FOR UPDATE",
    expired=_EXPIRED.format(now=_MYSQL_NOW, latest="max(expires_at)", where=""),
    # Rows and stages in one statement, each read with its lock. MySQL allows no LIMIT here.
    purge=(
        """
            DELETE l, s FROM open_idempotency_ledger l
            LEFT JOIN open_idempotency_ledger_stages s ON s.record_id = l.record_id WHERE l.expires_at <= :until
        """,
    ),
)

#: by the names that SQLAlchemy and Django use
DIALECTS: Mapping[str, Dialect] = {
    "postgresql": POSTGRESQL,
    "sqlite": SQLITE,
    "mysql": MYSQL,
    "mariadb": MYSQL,
}


# Errors


def dialect_named(name: str) -> Dialect:
    """The dialect of a database, by its name. Raises ``ConfigurationError`` if the ledger has none."""
    try:
        return DIALECTS[name]
    except KeyError:
        known = ", ".join(sorted(DIALECTS))
        raise ConfigurationError(f"tx=: the ledger supports {known}; this database is {name}") from None


def no_transaction(what: str, begin: str) -> ConfigurationError:
    """The error for a connection that commits each statement by itself. ``begin``: how to begin a transaction."""
    return ConfigurationError(f"tx=: {what} is in no transaction; {begin}")


def explain(error: Exception, driver: BaseException | None, dialect: Dialect) -> None:
    """Raise a clearer error if a database error is about the ledger's tables or a failed transaction; otherwise return.

    ``error``: what the statement raised. ``driver``: the driver's own error, which SQLAlchemy and Django wrap.
    Raises ``LedgerMissing`` and ``ConfigurationError``, with ``error`` as the cause.
    """
    if driver is None:
        return
    if _is_missing(driver):
        raise _missing(error, dialect) from error
    if _code(driver) == _FAILED:
        raise ConfigurationError("tx=: the transaction has failed; roll it back first") from error


# Servers translate their messages, so codes are compared: SQLSTATE of PostgreSQL and MySQL, and MySQL's own number.
_UNDEFINED_TABLE = ("42P01", "42S02", 1146)
_FAILED = "25P02"


def _missing(error: Exception, dialect: Dialect) -> LedgerMissing:
    return LedgerMissing(
        "tx=: the ledger's tables are not in this database; create them with a migration: Django's, with "
        '"open_idempotency.django" in INSTALLED_APPS and `manage.py migrate open_idempotency --database ALIAS`, '
        "Alembic's with `open_idempotency.ledger.metadata()`, or the script that "
        f"`open-idempotency ledger {dialect.name}` prints ({type(error).__name__})"
    )


def _is_missing(driver: BaseException) -> bool:
    """Whether one of the ledger's tables is missing, and not a table that a trigger of the application uses."""
    text = str(driver)
    if "open_idempotency_ledger" not in text:
        return False
    return _code(driver) in _UNDEFINED_TABLE or any(words in text for words in ("does not exist", "no such table"))


def _code(driver: BaseException) -> object:
    """The error's code.

    It is ``sqlstate`` in psycopg, asyncpg and PyMySQL, ``pgcode`` in psycopg2, the member ``C`` of the first argument
    in pg8000, and the first argument itself in other drivers of MySQL.
    """
    first = driver.args[0] if driver.args else None
    if isinstance(first, dict):
        first = first.get("C")
    return getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None) or first
