-- Version 2: which keys count towards which caller's quota, and until when.
CREATE TABLE open_idempotency_reservations (
    scope_id BLOB NOT NULL,
    record_id BLOB NOT NULL,
    ends REAL NOT NULL,
    PRIMARY KEY (scope_id, record_id)
);
CREATE INDEX open_idempotency_reservations_count ON open_idempotency_reservations (scope_id, ends);
CREATE INDEX open_idempotency_reservations_expiry ON open_idempotency_reservations (ends);
UPDATE open_idempotency_schema SET version = 2;
