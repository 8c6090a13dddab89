"""The ledger's statements in each dialect of SQL, with named parameters. No value ever becomes part of a statement.

The order in which a transaction runs them is in ``steps``. What a dialect has to promise: after ``fence`` the row is
locked until the transaction ends, and what the following statements read is not older than that lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_ROW = """
    SELECT token, fingerprint, CASE WHEN expires_at <= {now} THEN 1 ELSE 0 END, response
    FROM open_idempotency_ledger WHERE record_id = :record_id
"""
_STAGE = "SELECT frame FROM open_idempotency_ledger_stages WHERE record_id = :record_id AND stage_id = :stage_id"
_FENCE = """
    INSERT INTO open_idempotency_ledger (record_id, token, fingerprint, expires_at)
    VALUES (:record_id, :token, :fingerprint, {now} + :kept)
    ON CONFLICT (record_id) DO UPDATE SET
        token = CASE WHEN excluded.token > open_idempotency_ledger.token
            THEN excluded.token ELSE open_idempotency_ledger.token END,
        expires_at = CASE WHEN open_idempotency_ledger.expires_at > {now}
            THEN excluded.expires_at ELSE open_idempotency_ledger.expires_at END
"""
_RENEW = """
    UPDATE open_idempotency_ledger SET fingerprint = :fingerprint, response = NULL, expires_at = {now} + :kept
    WHERE record_id = :record_id
"""
_ANSWER = """
    UPDATE open_idempotency_ledger SET response = :response, expires_at = {now} + :kept
    WHERE record_id = :record_id AND token = :token
"""
_WHOSE = "SELECT token FROM open_idempotency_ledger WHERE record_id = :record_id"
_INSERT_STAGE = """
    INSERT INTO open_idempotency_ledger_stages (record_id, stage_id, name, stage_key, frame)
    VALUES (:record_id, :stage_id, :name, :key, :frame)
"""
_EXPIRED = """
    SELECT count(*) FROM (SELECT 1 AS one FROM open_idempotency_ledger WHERE expires_at <= {now} LIMIT :limit) expired
"""
_FORGET_STAGES = "DELETE FROM open_idempotency_ledger_stages WHERE record_id = :record_id"


@dataclass(frozen=True)
class Dialect:
    """What the ledger runs on one kind of database. ``place``: run before a stage is looked for, where it has to be."""

    name: str
    fence: str
    row: str
    stage: str
    save_stage: str
    renew: str
    answer: str
    expired: str
    purge: str
    purge_stages: str
    token: str = _WHOSE
    forget_stages: str = _FORGET_STAGES
    place: str | None = None

    def schema(self) -> str:
        """The script that makes the two tables."""
        from importlib.resources import files  # a deployment asks, no request does

        return (files("open_idempotency.ledger") / "sql" / f"{self.name}.sql").read_text(encoding="utf-8")


def _with_conflicts(name: str, now: str, lock: str = "") -> Dialect:
    """A dialect that knows ON CONFLICT."""
    return Dialect(
        name=name,
        fence=_FENCE.format(now=now),
        row=_ROW.format(now=now),
        stage=_STAGE,
        save_stage=_INSERT_STAGE,
        renew=_RENEW.format(now=now),
        answer=_ANSWER.format(now=now),
        expired=_EXPIRED.format(now=now),
        purge=f"""
            DELETE FROM open_idempotency_ledger WHERE record_id IN (
                SELECT record_id FROM open_idempotency_ledger WHERE expires_at <= {now} LIMIT :limit {lock}
            )
        """,  # noqa: S608 (no value is part of it)
        purge_stages="""
            DELETE FROM open_idempotency_ledger_stages WHERE record_id IN (
                SELECT s.record_id FROM open_idempotency_ledger_stages s
                LEFT JOIN open_idempotency_ledger l ON l.record_id = s.record_id
                WHERE l.record_id IS NULL LIMIT :limit
            )
        """,
    )


POSTGRESQL = _with_conflicts("postgresql", "extract(epoch FROM clock_timestamp())", "FOR UPDATE SKIP LOCKED")
SQLITE = _with_conflicts("sqlite", "((julianday('now') - 2440587.5) * 86400.0)")

_MYSQL_NOW = "UNIX_TIMESTAMP(NOW(6))"
# Reads that lock see what was committed last, whatever the snapshot; of an absent row they would lock the gap, which
# two transactions may do at once and then both wait for each other. So a row without a frame is placed there first.
MYSQL = Dialect(
    name="mysql",
    fence=f"""
        INSERT INTO open_idempotency_ledger (record_id, token, fingerprint, expires_at)
        VALUES (:record_id, :token, :fingerprint, {_MYSQL_NOW} + :kept)
        ON DUPLICATE KEY UPDATE
            token = GREATEST(token, VALUES(token)),
            expires_at = IF(expires_at > {_MYSQL_NOW}, VALUES(expires_at), expires_at)
    """,  # noqa: S608 (no value is part of it)
    row=_ROW.format(now=_MYSQL_NOW) + " FOR UPDATE",
    place="""
        INSERT IGNORE INTO open_idempotency_ledger_stages (record_id, stage_id, name, stage_key, frame)
        VALUES (:record_id, :stage_id, :name, :key, NULL)
    """,
    stage=_STAGE + " FOR UPDATE",
    save_stage="""
        UPDATE open_idempotency_ledger_stages SET frame = :frame WHERE record_id = :record_id AND stage_id = :stage_id
    """,
    renew=_RENEW.format(now=_MYSQL_NOW),
    answer=_ANSWER.format(now=_MYSQL_NOW),
    token=_WHOSE + " FOR UPDATE",
    expired=_EXPIRED.format(now=_MYSQL_NOW),
    purge=f"DELETE FROM open_idempotency_ledger WHERE expires_at <= {_MYSQL_NOW} LIMIT :limit",  # noqa: S608
    purge_stages="""
        DELETE FROM open_idempotency_ledger_stages WHERE NOT EXISTS (
            SELECT 1 FROM open_idempotency_ledger l WHERE l.record_id = open_idempotency_ledger_stages.record_id
        ) LIMIT :limit
    """,
)

#: by the name that SQLAlchemy and Django have for them
DIALECTS: Mapping[str, Dialect] = {
    "postgresql": POSTGRESQL,
    "sqlite": SQLITE,
    "mysql": MYSQL,
    "mariadb": MYSQL,
}
