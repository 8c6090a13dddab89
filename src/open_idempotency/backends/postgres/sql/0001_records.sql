-- What is kept: one row for each record, one for each stage, one for each key that counts towards a quota.
-- Times are seconds since 1970 on the server's clock; names, keys, frames and responses are opaque bytes.
CREATE SCHEMA IF NOT EXISTS open_idempotency;

CREATE TABLE open_idempotency.migrations (
    name text PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE open_idempotency.records (
    record_id bytea PRIMARY KEY,
    record_version integer NOT NULL,
    fingerprint bytea NOT NULL,
    status integer NOT NULL,             -- 1 in progress, 2 completed, 3 failed
    owner bytea NOT NULL,
    token bigint NOT NULL,
    attempt integer NOT NULL,
    claimed_at double precision NOT NULL,
    lease_end double precision NOT NULL,
    ttl double precision NOT NULL,
    expires_at double precision NOT NULL,
    final boolean NOT NULL,              -- failed for good
    awaited boolean NOT NULL,            -- somebody wants to be told of the end of the attempt
    response bytea
);
-- Responses are often compressed already, and each is read at most a few times.
ALTER TABLE open_idempotency.records ALTER COLUMN response SET STORAGE EXTERNAL;
-- What an attempt changes on its way, its expiry above all, is in no index: so a completion and a renewal write the row
-- alone, mostly on the same page (HOT). An attempt expires at this moment or somewhat later, by as long as it ran.
CREATE INDEX records_by_age ON open_idempotency.records ((claimed_at + ttl));

CREATE TABLE open_idempotency.stages (
    record_id bytea NOT NULL REFERENCES open_idempotency.records ON DELETE CASCADE,
    name bytea NOT NULL,
    key bytea NOT NULL,
    position bigint GENERATED ALWAYS AS IDENTITY,
    frame bytea NOT NULL,
    PRIMARY KEY (record_id, name, key)
);

CREATE TABLE open_idempotency.reservations (
    scope_id bytea NOT NULL,
    record_id bytea NOT NULL,
    ends double precision NOT NULL,
    PRIMARY KEY (scope_id, record_id)
);
CREATE INDEX reservations_by_end ON open_idempotency.reservations (ends);
