-- The ledger: stages and answers that commit together with the application's own rows. Times are seconds since 1970.
CREATE TABLE open_idempotency_ledger (
    record_id bytea NOT NULL PRIMARY KEY,
    token bigint NOT NULL,
    fingerprint bytea NOT NULL,
    response bytea,
    expires_at double precision NOT NULL
);
CREATE INDEX open_idempotency_ledger_expires_at ON open_idempotency_ledger (expires_at);

CREATE TABLE open_idempotency_ledger_stages (
    record_id bytea NOT NULL,
    stage_id bytea NOT NULL,
    name varchar(200) NOT NULL,
    stage_key varchar(200) NOT NULL,
    frame bytea,
    PRIMARY KEY (record_id, stage_id)
);
