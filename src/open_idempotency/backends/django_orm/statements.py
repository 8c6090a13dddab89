"""The SQL of the Django backend, in what all its databases understand. No value ever becomes part of it.

``transactions`` appends what locks rows, and what skips rows that others have locked. ``with_times`` fills in how the
database sends a time.
"""

# ruff: noqa: S608 (the names of tables and columns are constants of this module)
from __future__ import annotations

from functools import lru_cache

from open_idempotency.backends._shared import sql_rows

RECORDS = "open_idempotency_django_records"
STAGES = "open_idempotency_django_stages"
RESERVATIONS = "open_idempotency_django_reservations"
SCOPES = "open_idempotency_django_scopes"

#: the columns that ``INSERT`` and ``UPDATE`` write, in the order of their parameters
WRITTEN = (*sql_rows.HEADER, "response", "record_id")
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
# The first end, where there are more than so many. Skipping rows is the cheapest way to count.
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
    header = ", ".join(sent.format(name) if name in sql_rows.SECONDS else name for name in sql_rows.HEADER)
    times = {"clock": sent.format(clock), "ends": sent.format("ends"), "first_end": sent.format("min(ends)")}
    return statement.format(header=header, many="{many}", **times)


@lru_cache(maxsize=512)
def for_many(statement: str, count: int) -> str:
    """A statement about so many rows."""
    return statement.format(many=", ".join(["%s"] * count))


@lru_cache(maxsize=512)
def with_marked_bytes(statement: str, are_bytes: tuple[bool, ...]) -> str:
    """The statement with its bytes marked as such, for MySQL, which takes them for text otherwise."""
    first, *others = statement.split("%s")
    marks = ("_binary %s" if marked else "%s" for marked in are_bytes)
    return first + "".join(mark + other for mark, other in zip(marks, others, strict=True))
