-- What a claim says about itself, for operators, is stored with the record: ``about``, opaque bytes.
--
-- `claim` and `claims` get one argument more. Those without it stay for workers of the version before: the record that
-- they lease says nothing. Their insertions name no columns, so the new one is the last and has a default.

ALTER TABLE open_idempotency.records ADD COLUMN about bytea NOT NULL DEFAULT ''::bytea;

-- The same as without ``p_about``, which makes a record anew that vanished under its owner.
CREATE FUNCTION open_idempotency.insert_record(
    p_now double precision, l open_idempotency.lease, p_status integer, p_response bytea, p_about bytea
) RETURNS boolean LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO open_idempotency.records (
        record_id, record_version, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl, expires_at,
        final, awaited, response, about
    ) VALUES (
        l.record_id, 1, l.fingerprint, p_status, l.owner, l.token, l.attempt, p_now,
        CASE p_status WHEN 1 THEN p_now + l.duration ELSE p_now END, l.ttl,
        CASE p_status WHEN 1 THEN p_now + l.duration + l.ttl ELSE p_now + l.ttl END, false, false, p_response, p_about
    ) ON CONFLICT (record_id) DO NOTHING;
    RETURN FOUND;
END $$;

-- 0 leased, 1 busy, 2 finished, 3 refused (reason), 4 mismatch.
CREATE FUNCTION open_idempotency.claim(
    p_now double precision, l open_idempotency.lease, p_resume_failed boolean, p_resume_abandoned boolean,
    p_max_attempts integer, p_about bytea,
    OUT code integer, OUT reason text, OUT token bigint, OUT attempt integer, OUT elapsed double precision,
    OUT remaining double precision, OUT response bytea, OUT names bytea[], OUT keys bytea[], OUT frames bytea[]
) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r open_idempotency.records;
    moment double precision;
    present boolean;
    locked boolean := false;
    mine boolean;
    before xid8;
    until double precision;
BEGIN
    LOOP
        before := pg_snapshot_xmax(pg_current_snapshot());
        IF locked THEN
            SELECT * INTO r FROM open_idempotency.records WHERE record_id = l.record_id FOR UPDATE;
        ELSE
            SELECT * INTO r FROM open_idempotency.records WHERE record_id = l.record_id;
        END IF;
        present := FOUND;
        moment := open_idempotency.seconds(p_now);
        mine := false;
        attempt := 0;
        IF present AND NOT open_idempotency.is_sound(r) THEN code := -1; RETURN; END IF;
        IF present AND r.expires_at > moment THEN
            attempt := r.attempt;
            IF r.fingerprint <> l.fingerprint THEN code := 4; RETURN; END IF;
            IF r.status = 2 THEN code := 2; response := r.response; RETURN; END IF;
            -- This claim was sent again after a lost reply: its sender owns the record.
            mine := r.status = 1 AND r.owner = l.owner;
            IF NOT mine THEN
                IF r.status = 1 AND r.lease_end > moment THEN
                    code := 1; elapsed := greatest(0, moment - r.claimed_at); remaining := r.lease_end - moment;
                    RETURN;
                END IF;
                -- Attempt 0: every attempt was given back, so none has failed.
                reason := CASE
                    WHEN r.status = 3 AND (r.final OR (r.attempt > 0 AND NOT p_resume_failed)) THEN 'failed'
                    WHEN r.status = 1 AND NOT p_resume_abandoned THEN 'abandoned'
                    WHEN r.attempt >= p_max_attempts THEN 'attempts'
                END;
                IF reason IS NOT NULL THEN code := 3; response := r.response; RETURN; END IF;
            END IF;
        END IF;
        IF present AND NOT locked THEN locked := true; CONTINUE; END IF;

        IF NOT present THEN
            l.token := floor(moment * 1000000)::bigint;
            l.attempt := 1;
            IF NOT open_idempotency.insert_record(moment, l, 1, NULL, p_about) THEN locked := true; CONTINUE; END IF;
            until := moment;
            moment := open_idempotency.seconds(p_now);
        END IF;
        IF EXISTS (
            SELECT 1 FROM open_idempotency.reservations w
            WHERE w.scope_id = open_idempotency.withdrawn_id(l.owner) AND w.record_id = l.record_id AND w.ends > moment
        ) THEN
            IF NOT present THEN DELETE FROM open_idempotency.records WHERE record_id = l.record_id; END IF;
            code := 3; reason := 'withdrawn';
            RETURN;
        END IF;
        code := 0;
        -- Above the last token and, by the clock, above any that a deleted record may have had.
        token := greatest(floor(moment * 1000000)::bigint, r.token + 1);
        IF NOT present THEN
            attempt := 1;
            IF before = pg_current_xact_id() AND moment - until < 0.005 THEN
                -- Nothing was written between the snapshot and the insertion, so nobody has claimed this record and given
                -- it back since the first look at the clock. That time is as good, and is on record; a lease is only not to
                -- be shorter by a wait.
                token := l.token;
            ELSE
                -- When it was claimed is in an index, and may be somewhat earlier.
                UPDATE open_idempotency.records t SET token = claim.token, lease_end = moment + l.duration,
                    expires_at = moment + l.duration + l.ttl
                WHERE t.record_id = l.record_id;
            END IF;
            -- Now and then a newcomer takes some of the expired with it, so that the table does not grow for ever.
            IF random() < 0.02 THEN PERFORM open_idempotency.purge(p_now, 100); END IF;
            RETURN;
        END IF;
        IF r.expires_at <= moment THEN
            DELETE FROM open_idempotency.stages WHERE record_id = l.record_id;
            attempt := 1;
        ELSIF mine THEN
            token := r.token;
        ELSE
            attempt := r.attempt + 1;
        END IF;
        UPDATE open_idempotency.records t SET
            fingerprint = l.fingerprint, status = 1, owner = l.owner, token = claim.token, attempt = claim.attempt,
            claimed_at = CASE WHEN mine THEN r.claimed_at ELSE moment END, lease_end = moment + l.duration, ttl = l.ttl,
            expires_at = moment + l.duration + l.ttl, final = false, response = NULL, about = p_about
        WHERE t.record_id = l.record_id;
        SELECT array_agg(s.name ORDER BY s.position), array_agg(s.key ORDER BY s.position),
            array_agg(s.frame ORDER BY s.position)
        INTO names, keys, frames FROM open_idempotency.stages s WHERE s.record_id = l.record_id;
        RETURN;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION open_idempotency.claim(
    p_now double precision, l open_idempotency.lease, p_resume_failed boolean, p_resume_abandoned boolean,
    p_max_attempts integer,
    OUT code integer, OUT reason text, OUT token bigint, OUT attempt integer, OUT elapsed double precision,
    OUT remaining double precision, OUT response bytea, OUT names bytea[], OUT keys bytea[], OUT frames bytea[]
) LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM open_idempotency.claim(
        p_now, l, p_resume_failed, p_resume_abandoned, p_max_attempts, ''::bytea
    )
$$;

-- 0 leased, as attempt 1 without stages; 1 busy, 2 finished, 4 mismatch. Claims that only read write nothing.
CREATE FUNCTION open_idempotency.claims(
    p_now double precision, p_records bytea[], p_owners bytea[], p_fingerprints bytea[], p_durations double precision[],
    p_ttls double precision[], p_abouts bytea[]
) RETURNS SETOF open_idempotency.reply LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off AS $$
DECLARE
    before xid8 := pg_snapshot_xmax(pg_current_snapshot());
    until double precision := open_idempotency.seconds(p_now);
    moment double precision;
    fresh bigint := floor(until * 1000000)::bigint;
    made bytea[];
    late bytea[];
BEGIN
    WITH inserted AS (
        INSERT INTO open_idempotency.records (
            record_id, record_version, fingerprint, status, owner, token, attempt, claimed_at, lease_end, ttl,
            expires_at, final, awaited, about
        )
        SELECT c.record_id, 1, c.fingerprint, 1, c.owner, fresh, 1, until, until + c.duration, c.ttl,
            until + c.duration + c.ttl, false, false, c.about
        FROM unnest(p_records, p_owners, p_fingerprints, p_durations, p_ttls, p_abouts) WITH ORDINALITY
            AS c (record_id, owner, fingerprint, duration, ttl, about, number)
        WHERE NOT EXISTS (SELECT 1 FROM open_idempotency.records r WHERE r.record_id = c.record_id)
        ORDER BY c.record_id, c.number
        ON CONFLICT (record_id) DO NOTHING
        RETURNING owner
    ) SELECT array_agg(owner) INTO made FROM inserted;
    moment := open_idempotency.seconds(p_now);
    IF made IS NOT NULL THEN
        -- Late ones are left: their askers are gone.
        WITH refused AS (
            DELETE FROM open_idempotency.records r USING (
                SELECT c.record_id, c.owner FROM unnest(p_records, p_owners) AS c (record_id, owner)
                JOIN open_idempotency.reservations s
                    ON s.scope_id = open_idempotency.withdrawn_id(c.owner) AND s.record_id = c.record_id
                WHERE s.ends > moment
            ) w WHERE r.record_id = w.record_id AND r.owner = w.owner AND r.owner = ANY (made) AND r.token = fresh
            RETURNING r.owner
        ) SELECT array_agg(owner) INTO late FROM refused;
        IF late IS NOT NULL THEN
            SELECT array_agg(owner) INTO made FROM unnest(made) AS m (owner) WHERE owner <> ALL (late);
        END IF;
        -- As in the function of the verb.
        IF before <> pg_current_xact_id() OR moment - until >= 0.005 THEN
            UPDATE open_idempotency.records r SET token = floor(moment * 1000000)::bigint,
                lease_end = moment + c.duration, expires_at = moment + c.duration + c.ttl
            FROM unnest(p_records, p_owners, p_durations, p_ttls) AS c (record_id, owner, duration, ttl)
            WHERE r.record_id = c.record_id AND r.owner = c.owner AND r.owner = ANY (made) AND r.token = fresh;
            fresh := floor(moment * 1000000)::bigint;
        END IF;
    END IF;
    IF random() < 0.02 * cardinality(made) THEN PERFORM open_idempotency.purge(p_now, 100); END IF;
    IF cardinality(made) = cardinality(p_records) THEN
        RETURN QUERY SELECT 0, 0::bigint, 0, fresh, NULL::double precision, NULL::double precision, NULL::bytea;
        RETURN;
    END IF;
    -- What the insertion met, of this batch or of another, is seen from here on.
    RETURN QUERY SELECT 0, d.number, d.code, fresh, d.elapsed, d.remaining, CASE d.code WHEN 2 THEN d.response END
    FROM (
        SELECT c.number, greatest(0, moment - r.claimed_at) AS elapsed, r.lease_end - moment AS remaining, r.response,
            CASE
                -- Of two claims with one owner each is told that it owns the record.
                WHEN r.owner = c.owner AND r.token = fresh AND r.status = 1 AND c.owner = ANY (made) THEN 0
                WHEN r.expires_at <= moment OR NOT open_idempotency.is_sound(r) THEN NULL
                WHEN r.fingerprint <> c.fingerprint THEN 4
                WHEN r.status = 2 THEN 2
                WHEN r.status = 1 AND r.owner <> c.owner AND r.lease_end > moment THEN 1
            END AS code
        FROM unnest(p_records, p_owners, p_fingerprints) WITH ORDINALITY AS c (record_id, owner, fingerprint, number)
        JOIN open_idempotency.records r ON r.record_id = c.record_id
    ) d WHERE d.code IS NOT NULL;
END $$;

-- As `get`, with what the record is about.
CREATE FUNCTION open_idempotency.read(
    p_now double precision, p_record bytea
) RETURNS TABLE (
    sound boolean, fingerprint bytea, status integer, owner bytea, token bigint, attempt integer,
    claimed_at double precision, lease_end double precision, ttl double precision, expires_at double precision,
    final boolean, response bytea, names bytea[], keys bytea[], frames bytea[], about bytea
) LANGUAGE sql VOLATILE AS $$
    SELECT open_idempotency.is_sound(r), r.fingerprint, r.status, r.owner, r.token, r.attempt, r.claimed_at, r.lease_end,
        r.ttl, r.expires_at, r.final, r.response, s.names, s.keys, s.frames, r.about
    FROM open_idempotency.records r, LATERAL (
        SELECT array_agg(name ORDER BY position) AS names, array_agg(key ORDER BY position) AS keys,
            array_agg(frame ORDER BY position) AS frames
        FROM open_idempotency.stages WHERE record_id = r.record_id
    ) s
    WHERE r.record_id = p_record AND r.expires_at > open_idempotency.seconds(p_now)
$$;

-- The live records after one of them, in order, without their large values.
CREATE FUNCTION open_idempotency.headers(
    p_now double precision, p_after bytea, p_limit integer
) RETURNS TABLE (
    record_id bytea, sound boolean, fingerprint bytea, status integer, owner bytea, token bigint, attempt integer,
    claimed_at double precision, lease_end double precision, ttl double precision, expires_at double precision,
    final boolean, about bytea
) LANGUAGE sql VOLATILE AS $$
    SELECT r.record_id, open_idempotency.is_sound(r), r.fingerprint, r.status, r.owner, r.token, r.attempt,
        r.claimed_at, r.lease_end, r.ttl, r.expires_at, r.final, r.about
    FROM open_idempotency.records r
    WHERE r.record_id > p_after AND r.expires_at > open_idempotency.seconds(p_now) ORDER BY r.record_id LIMIT p_limit
$$;
