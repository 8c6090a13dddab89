-- The verbs, one function each, so that each is one statement, one round trip and one transaction of its own. They say
-- what the module open_idempotency.decisions says. A first argument that is not null is the time of a test's clock.
--
-- What only reads (a replay, a 409, a 422) takes no lock and writes nothing. What writes locks the row first and decides
-- again: each statement of a volatile function sees what was committed before it. `code` is the verb's own answer from 0,
-- or -1 unreadable, -2 lost, -3 completed already.

CREATE FUNCTION open_idempotency.seconds(p_now double precision) RETURNS double precision
LANGUAGE sql VOLATILE AS $$ SELECT coalesce(p_now, extract(epoch FROM clock_timestamp())) $$;

CREATE TYPE open_idempotency.lease AS (
    record_id bytea, owner bytea, token bigint, attempt integer, fingerprint bytea,
    duration double precision, ttl double precision
);

-- A record for this lease, made anew where it vanished or has expired; false where somebody else made one meanwhile.
CREATE FUNCTION open_idempotency.insert_record(
    p_now double precision, l open_idempotency.lease, p_status integer, p_response bytea
) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    INSERT INTO open_idempotency.records VALUES (
        l.record_id, 1, l.fingerprint, p_status, l.owner, l.token, l.attempt, p_now,
        CASE p_status WHEN 1 THEN p_now + l.duration ELSE p_now END, l.ttl,
        CASE p_status WHEN 1 THEN p_now + l.duration + l.ttl ELSE p_now + l.ttl END, false, false, p_response
    ) ON CONFLICT (record_id) DO NOTHING;
    RETURN FOUND;
END $$;

CREATE FUNCTION open_idempotency.is_sound(r open_idempotency.records) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$ SELECT r.record_version = 1 AND r.status BETWEEN 1 AND 3 $$;

-- Tell those who wait that an attempt has ended. Only where somebody does: notifications are queued under one lock for
-- the whole database.
CREATE FUNCTION open_idempotency.tell(r open_idempotency.records) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF r.awaited THEN PERFORM pg_notify('open_idempotency', encode(r.record_id, 'hex')); END IF;
END $$;

-- 0 leased, 1 busy, 2 finished, 3 refused (reason), 4 mismatch.
CREATE FUNCTION open_idempotency.claim(
    p_now double precision, l open_idempotency.lease, p_resume_failed boolean, p_resume_abandoned boolean,
    p_max_attempts integer,
    OUT code integer, OUT reason text, OUT token bigint, OUT attempt integer, OUT elapsed double precision,
    OUT remaining double precision, OUT response bytea, OUT names bytea[], OUT keys bytea[], OUT frames bytea[]
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    r open_idempotency.records;
    moment double precision;
    present boolean;
    locked boolean := false;
    mine boolean;
BEGIN
    LOOP
        IF locked THEN
            SELECT * INTO r FROM open_idempotency.records WHERE record_id = l.record_id FOR UPDATE;
        ELSE
            SELECT * INTO r FROM open_idempotency.records WHERE record_id = l.record_id;
        END IF;
        present := FOUND;
        moment := open_idempotency.seconds(p_now);
        mine := false;
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

        code := 0;
        -- Above the last token and, by the clock, above any that a deleted record may have had.
        token := greatest(floor(moment * 1000000)::bigint, r.token + 1);
        attempt := 1;
        IF NOT present THEN
            l.token := token;
            l.attempt := attempt;
            IF open_idempotency.insert_record(moment, l, 1, NULL) THEN
                -- Now and then a newcomer takes some of the expired with it, so that the table does not grow for ever.
                IF random() < 0.02 THEN PERFORM open_idempotency.purge(p_now, 100); END IF;
                RETURN;
            END IF;
            locked := true;
            CONTINUE;
        END IF;
        IF r.expires_at <= moment THEN
            DELETE FROM open_idempotency.stages WHERE record_id = l.record_id;
        ELSIF mine THEN
            token := r.token;
            attempt := r.attempt;
        ELSE
            attempt := r.attempt + 1;
        END IF;
        UPDATE open_idempotency.records t SET
            fingerprint = l.fingerprint, status = 1, owner = l.owner, token = claim.token, attempt = claim.attempt,
            claimed_at = CASE WHEN mine THEN r.claimed_at ELSE moment END, lease_end = moment + l.duration, ttl = l.ttl,
            expires_at = moment + l.duration + l.ttl, final = false, response = NULL
        WHERE t.record_id = l.record_id;
        SELECT array_agg(s.name ORDER BY s.position), array_agg(s.key ORDER BY s.position),
            array_agg(s.frame ORDER BY s.position)
        INTO names, keys, frames FROM open_idempotency.stages s WHERE s.record_id = l.record_id;
        RETURN;
    END LOOP;
END $$;

-- For each lease in order: 0 owned, 1 lost, 2 vanished. A record that cannot be read is lost: it must not keep the others
-- from being renewed. Rows are locked in one order, so that two such calls cannot wait for each other.
CREATE FUNCTION open_idempotency.renew(
    p_now double precision, p_records bytea[], p_owners bytea[], p_tokens bigint[], p_durations double precision[]
) RETURNS integer[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    moment double precision;
    answers integer[];
BEGIN
    PERFORM 1 FROM open_idempotency.records WHERE record_id = ANY (p_records) ORDER BY record_id FOR UPDATE;
    moment := open_idempotency.seconds(p_now);
    SELECT array_agg(CASE
        WHEN r.record_id IS NULL OR r.expires_at <= moment THEN 2
        WHEN NOT open_idempotency.is_sound(r) OR r.owner <> l.owner OR r.token <> l.token OR r.status = 3 THEN 1
        ELSE 0
    END ORDER BY l.number) INTO answers
    FROM unnest(p_records, p_owners, p_tokens) WITH ORDINALITY AS l (record_id, owner, token, number)
    LEFT JOIN open_idempotency.records r ON r.record_id = l.record_id;
    UPDATE open_idempotency.records r SET lease_end = moment + l.duration, expires_at = moment + l.duration + r.ttl
    FROM unnest(p_records, p_durations, answers) AS l (record_id, duration, answer)
    WHERE r.record_id = l.record_id AND l.answer = 0 AND r.status = 1;
    RETURN answers;
END $$;

-- Locks the record for its owner's verbs: 0 where it is theirs, 1 where it is absent, 2 where it has expired.
CREATE FUNCTION open_idempotency.lock_own(
    p_now double precision, l open_idempotency.lease,
    OUT code integer, OUT moment double precision, OUT r open_idempotency.records
) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    SELECT * INTO r FROM open_idempotency.records WHERE record_id = l.record_id FOR UPDATE;
    code := CASE WHEN FOUND THEN 0 ELSE 1 END;
    moment := open_idempotency.seconds(p_now);
    IF code = 1 THEN RETURN; END IF;
    IF NOT open_idempotency.is_sound(r) THEN code := -1;
    ELSIF r.expires_at <= moment THEN code := 2;
    ELSIF r.owner <> l.owner OR r.token <> l.token THEN code := -2;
    END IF;
END $$;

-- 0 saved, 1 saved into a record made anew, 2 there already; the frame on record.
CREATE FUNCTION open_idempotency.save_stage(
    p_now double precision, l open_idempotency.lease, p_name bytea, p_key bytea, p_frame bytea,
    OUT code integer, OUT frame bytea
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    own record;
BEGIN
    LOOP
        SELECT * INTO own FROM open_idempotency.lock_own(p_now, l);
        code := own.code;
        IF code = 0 THEN
            IF (own.r).status = 2 THEN code := -3; RETURN; END IF;
            IF (own.r).status = 3 THEN code := -2; RETURN; END IF;
            SELECT s.frame INTO frame FROM open_idempotency.stages s
            WHERE s.record_id = l.record_id AND s.name = p_name AND s.key = p_key;
            IF FOUND THEN code := 2; RETURN; END IF;
            UPDATE open_idempotency.records SET lease_end = own.moment + l.duration,
                expires_at = own.moment + l.duration + ttl
            WHERE record_id = l.record_id;
        ELSIF code < 0 THEN
            RETURN;
        ELSE
            IF code = 2 THEN DELETE FROM open_idempotency.records WHERE record_id = l.record_id; END IF;
            CONTINUE WHEN NOT open_idempotency.insert_record(own.moment, l, 1, NULL);
            code := 1;
        END IF;
        INSERT INTO open_idempotency.stages (record_id, name, key, frame)
        VALUES (l.record_id, p_name, p_key, p_frame);
        frame := p_frame;
        RETURN;
    END LOOP;
END $$;

-- 0 completed, 1 completed and made anew.
CREATE FUNCTION open_idempotency.complete(
    p_now double precision, l open_idempotency.lease, p_response bytea, OUT code integer
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    own record;
BEGIN
    -- Nearly always this is all there is to do. Waiting for a lock makes it read the row, and the time, once more.
    UPDATE open_idempotency.records r SET status = 2, response = p_response,
        lease_end = open_idempotency.seconds(p_now), expires_at = open_idempotency.seconds(p_now) + r.ttl
    WHERE r.record_id = l.record_id AND r.owner = l.owner AND r.token = l.token AND r.status = 1 AND NOT r.awaited
        AND r.expires_at - open_idempotency.seconds(p_now) > 0 AND open_idempotency.is_sound(r);
    IF FOUND THEN code := 0; RETURN; END IF;
    LOOP
        SELECT * INTO own FROM open_idempotency.lock_own(p_now, l);
        code := own.code;
        IF code < 0 THEN RETURN; END IF;
        IF code = 0 THEN
            IF (own.r).status = 2 THEN RETURN; END IF;
            IF (own.r).status = 3 THEN code := -2; RETURN; END IF;
            UPDATE open_idempotency.records SET status = 2, response = p_response, lease_end = own.moment,
                expires_at = own.moment + ttl, awaited = false
            WHERE record_id = l.record_id;
            PERFORM open_idempotency.tell(own.r);
            RETURN;
        END IF;
        IF code = 2 THEN DELETE FROM open_idempotency.records WHERE record_id = l.record_id; END IF;
        CONTINUE WHEN NOT open_idempotency.insert_record(own.moment, l, 2, p_response);
        code := 1;
        RETURN;
    END LOOP;
END $$;

-- 0 failed, or failed before, or nothing there to fail.
CREATE FUNCTION open_idempotency.fail(
    p_now double precision, l open_idempotency.lease, p_final boolean, p_response bytea, OUT code integer
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    own record;
BEGIN
    SELECT * INTO own FROM open_idempotency.lock_own(p_now, l);
    code := least(own.code, 0);
    IF own.code <> 0 OR (own.r).status = 3 THEN RETURN; END IF;
    IF (own.r).status = 2 THEN code := -2; RETURN; END IF;
    UPDATE open_idempotency.records SET status = 3, final = p_final, response = p_response, lease_end = own.moment,
        expires_at = own.moment + ttl, awaited = false
    WHERE record_id = l.record_id;
    PERFORM open_idempotency.tell(own.r);
END $$;

-- 0 given back, or nothing there to give back. Without stages or earlier attempts nothing is left of the record.
CREATE FUNCTION open_idempotency.release(p_now double precision, l open_idempotency.lease, OUT code integer)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    own record;
BEGIN
    SELECT * INTO own FROM open_idempotency.lock_own(p_now, l);
    code := least(own.code, 0);
    IF own.code <> 0 OR ((own.r).status = 3 AND NOT (own.r).final) THEN RETURN; END IF;
    IF (own.r).status <> 1 THEN code := -2; RETURN; END IF;
    IF (own.r).attempt = 1 AND NOT EXISTS (SELECT 1 FROM open_idempotency.stages WHERE record_id = l.record_id) THEN
        DELETE FROM open_idempotency.records WHERE record_id = l.record_id;
    ELSE
        UPDATE open_idempotency.records SET status = 3, final = false, response = NULL, attempt = attempt - 1,
            lease_end = own.moment, expires_at = own.moment + ttl, awaited = false
        WHERE record_id = l.record_id;
    END IF;
    PERFORM open_idempotency.tell(own.r);
END $$;

-- One record with its stages; no row where it is absent or has expired.
CREATE FUNCTION open_idempotency.get(
    p_now double precision, p_record bytea
) RETURNS TABLE (
    sound boolean, fingerprint bytea, status integer, owner bytea, token bigint, attempt integer,
    claimed_at double precision, lease_end double precision, ttl double precision, expires_at double precision,
    final boolean, response bytea, names bytea[], keys bytea[], frames bytea[]
) LANGUAGE sql VOLATILE AS $$
    SELECT open_idempotency.is_sound(r), r.fingerprint, r.status, r.owner, r.token, r.attempt, r.claimed_at, r.lease_end,
        r.ttl, r.expires_at, r.final, r.response, s.names, s.keys, s.frames
    FROM open_idempotency.records r, LATERAL (
        SELECT array_agg(name ORDER BY position) AS names, array_agg(key ORDER BY position) AS keys,
            array_agg(frame ORDER BY position) AS frames
        FROM open_idempotency.stages WHERE record_id = r.record_id
    ) s
    WHERE r.record_id = p_record AND r.expires_at > open_idempotency.seconds(p_now)
$$;

-- The ids of live records after one of them, in order.
CREATE FUNCTION open_idempotency.scan(p_now double precision, p_after bytea, p_limit integer) RETURNS SETOF bytea
LANGUAGE sql VOLATILE AS $$
    SELECT record_id FROM open_idempotency.records
    WHERE record_id > p_after AND expires_at > open_idempotency.seconds(p_now) ORDER BY record_id LIMIT p_limit
$$;

-- Whether there was a live one.
CREATE FUNCTION open_idempotency.forget(p_now double precision, p_record bytea) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    r open_idempotency.records;
BEGIN
    DELETE FROM open_idempotency.records WHERE record_id = p_record RETURNING * INTO r;
    IF NOT FOUND THEN RETURN false; END IF;
    PERFORM open_idempotency.tell(r);
    RETURN r.expires_at > open_idempotency.seconds(p_now) OR NOT open_idempotency.is_sound(r);
END $$;

-- How many expired records and reservations went; what another purge is deleting is left to it.
CREATE FUNCTION open_idempotency.purge(p_now double precision, p_limit integer) RETURNS integer
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    moment double precision := open_idempotency.seconds(p_now);
    records integer;
    reservations integer;
BEGIN
    DELETE FROM open_idempotency.records WHERE record_id IN (
        SELECT record_id FROM open_idempotency.records WHERE claimed_at + ttl <= moment AND expires_at <= moment
        ORDER BY claimed_at + ttl LIMIT p_limit FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS records = ROW_COUNT;
    DELETE FROM open_idempotency.reservations WHERE (scope_id, record_id) IN (
        SELECT scope_id, record_id FROM open_idempotency.reservations WHERE ends <= moment
        ORDER BY ends LIMIT p_limit - records FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS reservations = ROW_COUNT;
    RETURN records + reservations;
END $$;

-- Ask to be told of the end of the attempt that runs; whether one does. Need not survive a crash of the server.
CREATE FUNCTION open_idempotency.await(p_now double precision, p_record bytea) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE open_idempotency.records SET awaited = true
    WHERE record_id = p_record AND status = 1 AND NOT awaited AND expires_at > open_idempotency.seconds(p_now);
    RETURN FOUND OR EXISTS (
        SELECT 1 FROM open_idempotency.records
        WHERE record_id = p_record AND status = 1 AND expires_at > open_idempotency.seconds(p_now)
    );
END $$;

-- 0 reserved; 1 over the quota, with the seconds until the first reservation ends. One caller's calls come one by one.
CREATE FUNCTION open_idempotency.reserve(
    p_now double precision, p_scope bytea, p_record bytea, p_limit integer, p_needed double precision,
    p_kept double precision, OUT code integer, OUT remaining double precision
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    moment double precision := open_idempotency.seconds(p_now);
    before double precision;
    taken integer;
    first double precision;
BEGIN
    code := 0;
    SELECT ends INTO before FROM open_idempotency.reservations WHERE scope_id = p_scope AND record_id = p_record;
    IF before >= moment + p_needed THEN RETURN; END IF;
    IF before IS NULL OR before <= moment THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(encode(p_scope, 'hex'), 0));
        moment := open_idempotency.seconds(p_now);
        SELECT count(*), min(ends) INTO taken, first FROM (
            SELECT ends FROM open_idempotency.reservations
            WHERE scope_id = p_scope AND record_id <> p_record AND ends > moment ORDER BY ends LIMIT p_limit
        ) counted;
        IF taken >= p_limit THEN code := 1; remaining := first - moment; RETURN; END IF;
    END IF;
    INSERT INTO open_idempotency.reservations VALUES (p_scope, p_record, moment + p_kept)
    ON CONFLICT (scope_id, record_id) DO UPDATE SET ends = greatest(reservations.ends, excluded.ends);
END $$;

CREATE FUNCTION open_idempotency.unreserve(p_now double precision, p_scope bytea, p_record bytea) RETURNS void
LANGUAGE sql VOLATILE AS $$
    DELETE FROM open_idempotency.reservations WHERE scope_id = p_scope AND record_id = p_record
$$;

-- A function or operator that somebody else has made in a schema of the caller's search_path must not come before the
-- server's own. Those that are not in PL/pgSQL are inlined, which this would prevent, and call nothing that could fit.
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
        WHERE p.pronamespace = 'open_idempotency'::regnamespace AND l.lanname = 'plpgsql'
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, pg_temp', f);
    END LOOP;
END $$;
