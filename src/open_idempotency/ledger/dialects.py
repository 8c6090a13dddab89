"""The ledger's statements in each dialect of SQL, with named parameters. No value ever becomes part of a statement.

The order in which a transaction runs them is in ``steps``. What a dialect has to promise: after ``fence`` the row is
locked until the transaction ends, and what the following statements read is not older than that lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_ROW = """
    SELECT token, fingerprint, CASE WHEN expires_at <= {now} THEN 1 ELSE 0 END, response, {number}
    FROM open_idempotency_ledger WHERE record_id = :record_id
"""
_LOOK = """
    SELECT fingerprint, CASE WHEN expires_at <= {now} THEN 1 ELSE 0 END, response
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
_WHOSE = "SELECT token, {number} FROM open_idempotency_ledger WHERE record_id = :record_id"
_INSERT_STAGE = """
    INSERT INTO open_idempotency_ledger_stages (record_id, stage_id, name, stage_key, frame)
    VALUES (:record_id, :stage_id, :name, :key, :frame)
"""
# Only behind the fence: where it is gone, since the caller's block ended its transaction, nothing is inserted or told.
_RETURNING_STAGE = """
    INSERT INTO open_idempotency_ledger_stages (record_id, stage_id, name, stage_key, frame)
    SELECT record_id, :stage_id, :name, :key, :frame FROM open_idempotency_ledger
    WHERE record_id = :record_id AND token = :token RETURNING {number}
"""
_EXPIRED = """
    SELECT count(*), max(expires_at) FROM (
        SELECT expires_at FROM open_idempotency_ledger WHERE expires_at <= {now} ORDER BY expires_at LIMIT :limit
    ) expired
"""
_FORGET_STAGES = "DELETE FROM open_idempotency_ledger_stages WHERE record_id = :record_id"


@dataclass(frozen=True)
class Dialect:
    """What the ledger runs on one kind of database.

    ``look``: as ``row``, and locks nothing. ``place``: run before a stage is looked for, where it has to be. ``purge``:
    in order; what has expired ``:until`` then, the stages before their record's row, which is locked. ``told``: whether
    ``save_stage`` returns a row where the fence holds, and none where it does not; else ``token`` tells. ``row``,
    ``token`` and that row end with the transaction's number, the same until it ends; 0 where the database has none that
    everybody may read.
    """

    name: str
    fence: str
    row: str
    look: str
    stage: str
    save_stage: str
    renew: str
    answer: str
    token: str
    expired: str
    purge: tuple[str, ...]
    told: bool = False
    forget_stages: str = _FORGET_STAGES
    place: str | None = None

    def schema(self) -> str:
        """The script that makes the two tables."""
        from importlib.resources import files  # a deployment asks, no request does

        return (files("open_idempotency.ledger") / "sql" / f"{self.name}.sql").read_text(encoding="utf-8")


def _with_conflicts(name: str, now: str, lock: str, save_stage: str, told: bool, number: str = "0") -> Dialect:
    """A dialect that knows ON CONFLICT. ``lock``: how what is to be purged is locked, and what is locked left alone."""
    due = "SELECT record_id FROM open_idempotency_ledger l WHERE expires_at <= :until"
    bounds = f"ORDER BY expires_at LIMIT :limit {lock}"
    return Dialect(
        name=name,
        fence=_FENCE.format(now=now),
        row=_ROW.format(now=now, number=number),
        look=_LOOK.format(now=now),
        stage=_STAGE,
        save_stage=save_stage.format(number=number),
        told=told,
        token=_WHOSE.format(number=number),
        renew=_RENEW.format(now=now),
        answer=_ANSWER.format(now=now),
        expired=_EXPIRED.format(now=now),
        # A row goes after its stages: a key that comes back to no row takes whatever stages are there for its own.
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


POSTGRESQL = _with_conflicts(
    name="postgresql",
    now="extract(epoch FROM clock_timestamp())",
    lock="FOR UPDATE SKIP LOCKED",
    save_stage=_RETURNING_STAGE,
    told=True,
    number="txid_current()",  # savepoints have none of their own; the fence has made the server give it already
)
SQLITE = _with_conflicts(
    "sqlite", "((julianday('now') - 2440587.5) * 86400.0)", "", _INSERT_STAGE, told=False
)  # whose older versions know no RETURNING

# Not UNIX_TIMESTAMP, which goes by the session's time zone and repeats an hour when summer time ends.
_MYSQL_NOW = "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6)"
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
    row=_ROW.format(now=_MYSQL_NOW, number=0) + " FOR UPDATE",
    look=_LOOK.format(now=_MYSQL_NOW),
    place="""
        INSERT IGNORE INTO open_idempotency_ledger_stages (record_id, stage_id, name, stage_key, frame)
        VALUES (:record_id, :stage_id, :name, :key, NULL)
    """,
    stage=_STAGE + " FOR UPDATE",
    save_stage=_INSERT_STAGE + " ON DUPLICATE KEY UPDATE frame = VALUES(frame)",
    renew=_RENEW.format(now=_MYSQL_NOW),
    answer=_ANSWER.format(now=_MYSQL_NOW),
    token=_WHOSE.format(number=0) + " FOR UPDATE",
    expired=_EXPIRED.format(now=_MYSQL_NOW),
    # Rows and stages at once, each read with its lock; without LIMIT, which such a statement does not take.
    purge=(
        """
            DELETE l, s FROM open_idempotency_ledger l
            LEFT JOIN open_idempotency_ledger_stages s ON s.record_id = l.record_id WHERE l.expires_at <= :until
        """,
    ),
)

#: by the name that SQLAlchemy and Django have for them
DIALECTS: Mapping[str, Dialect] = {
    "postgresql": POSTGRESQL,
    "sqlite": SQLITE,
    "mysql": MYSQL,
    "mariadb": MYSQL,
}
