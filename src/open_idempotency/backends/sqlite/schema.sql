-- Version 1. The names are prefixed, since the file may be an application's own database.
-- Times are seconds since the epoch. record_version tells how a row is to be read.
CREATE TABLE open_idempotency_schema (version INTEGER NOT NULL);
INSERT INTO open_idempotency_schema (version) VALUES (1);

-- The response comes last: a row is read up to the last column that is asked for.
CREATE TABLE open_idempotency_records (
    record_id BLOB NOT NULL PRIMARY KEY,
    record_version INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,
    status INTEGER NOT NULL,
    owner BLOB NOT NULL,
    token INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    claimed_at REAL NOT NULL,
    lease_end REAL NOT NULL,
    ttl REAL NOT NULL,
    expires_at REAL NOT NULL,
    final INTEGER NOT NULL,
    about BLOB NOT NULL DEFAULT x'',
    response BLOB
);
-- What an attempt changes on its way, its expiry above all, is in no index, so that a completion writes the row alone.
-- An attempt expires at this moment or somewhat later, by as long as it ran.
CREATE INDEX open_idempotency_records_age ON open_idempotency_records (claimed_at + ttl);

-- position grows with every row, so it is the order of a record's stages. Names are UTF-8.
CREATE TABLE open_idempotency_stages (
    position INTEGER PRIMARY KEY,
    record_id BLOB NOT NULL,
    name BLOB NOT NULL,
    key BLOB NOT NULL,
    frame BLOB NOT NULL,
    UNIQUE (record_id, name, key)
);
