-- The ledger: stages and answers that commit together with the application's own rows. Times are seconds since 1970.
CREATE TABLE open_idempotency_ledger (
    record_id varbinary(64) NOT NULL PRIMARY KEY,
    token bigint NOT NULL,
    fingerprint varbinary(128) NOT NULL,
    response longblob,
    expires_at double NOT NULL,
    KEY open_idempotency_ledger_expires_at (expires_at)
) ENGINE = InnoDB;

CREATE TABLE open_idempotency_ledger_stages (
    record_id varbinary(64) NOT NULL,
    stage_id varbinary(32) NOT NULL,
    name varchar(200) CHARACTER SET utf8mb4 NOT NULL,
    stage_key varchar(200) CHARACTER SET utf8mb4 NOT NULL,
    frame longblob,
    PRIMARY KEY (record_id, stage_id)
) ENGINE = InnoDB;
