-- Many verbs in one statement and one transaction, for what was asked while the last batch was on its way. Each function
-- carries out what is plain, and leaves the rest, which its asker then sends alone to the function of the verb: takeovers,
-- verbs sent again, lost leases, records that cannot be read. Number 0 in a reply stands for all questions of the verb; a
-- question that no reply names was left.
--
-- A batch waits for no row that somebody else has locked: it leaves the question. Only the insertion of one record at two
-- places waits, in the order of the record ids and before anything else is locked, so that no two transactions wait for
-- each other; and not for long, so that a record which somebody keeps locked does not keep the others waiting.
CREATE TYPE open_idempotency.reply AS (
    verb integer, number bigint, code integer, token bigint, elapsed double precision, remaining double precision,
    response bytea
);

-- 0 leased, as attempt 1 without stages; 1 busy, 2 finished, 4 mismatch. Claims that only read write nothing.
CREATE FUNCTION open_idempotency.claims(
    p_now double precision, p_records bytea[], p_owners bytea[], p_fingerprints bytea[], p_durations double precision[],
    p_ttls double precision[]
) RETURNS SETOF open_idempotency.reply LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    moment double precision := open_idempotency.seconds(p_now);
    fresh bigint := floor(moment * 1000000)::bigint;
    made bytea[];
BEGIN
    WITH inserted AS (
        INSERT INTO open_idempotency.records
        SELECT c.record_id, 1, c.fingerprint, 1, c.owner, fresh, 1, moment, moment + c.duration, c.ttl,
            moment + c.duration + c.ttl, false, false, NULL
        FROM unnest(p_records, p_owners, p_fingerprints, p_durations, p_ttls) WITH ORDINALITY
            AS c (record_id, owner, fingerprint, duration, ttl, number)
        WHERE NOT EXISTS (SELECT 1 FROM open_idempotency.records r WHERE r.record_id = c.record_id)
        ORDER BY c.record_id, c.number
        ON CONFLICT (record_id) DO NOTHING
        RETURNING owner
    ) SELECT array_agg(owner) INTO made FROM inserted;
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

-- Completions (status 2) and failures (3): 0 where the owner of an attempt that runs ends it.
CREATE FUNCTION open_idempotency.ends(
    p_now double precision, p_records bytea[], p_owners bytea[], p_tokens bigint[], p_statuses integer[],
    p_finals boolean[], p_responses bytea[]
) RETURNS SETOF open_idempotency.reply LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    moment double precision := open_idempotency.seconds(p_now);
    done bigint[];
    awaited bytea[];
BEGIN
    WITH own AS (
        SELECT r.record_id, r.awaited, e.number FROM unnest(p_records, p_owners, p_tokens) WITH ORDINALITY
            AS e (record_id, owner, token, number)
        JOIN open_idempotency.records r ON r.record_id = e.record_id
        WHERE r.owner = e.owner AND r.token = e.token AND r.status = 1 AND r.expires_at - moment > 0
            AND open_idempotency.is_sound(r)
        FOR NO KEY UPDATE OF r SKIP LOCKED
    ), ended AS (
        UPDATE open_idempotency.records r SET status = p_statuses[own.number], final = p_finals[own.number],
            response = p_responses[own.number], lease_end = moment, expires_at = moment + r.ttl, awaited = false
        FROM own WHERE r.record_id = own.record_id
        RETURNING own.number, own.record_id, own.awaited
    ) SELECT array_agg(e.number), array_agg(e.record_id) FILTER (WHERE e.awaited) INTO done, awaited FROM ended e;
    PERFORM pg_notify('open_idempotency', encode(record_id, 'hex')) FROM unnest(awaited) AS told (record_id);
    RETURN QUERY SELECT 1, n, 0, NULL::bigint, NULL::double precision, NULL::double precision, NULL::bytea
    FROM unnest(CASE WHEN cardinality(done) = cardinality(p_records) THEN ARRAY[0::bigint] ELSE done END) AS n;
END $$;

-- 0 where the owner of an attempt that runs saves a stage that is not there yet; the frame on record is then the one given.
CREATE FUNCTION open_idempotency.save_stages(
    p_now double precision, p_records bytea[], p_owners bytea[], p_tokens bigint[], p_durations double precision[],
    p_names bytea[], p_keys bytea[], p_frames bytea[]
) RETURNS SETOF open_idempotency.reply LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    moment double precision := open_idempotency.seconds(p_now);
BEGIN
    RETURN QUERY WITH own AS (
        SELECT s.* FROM unnest(p_records, p_owners, p_tokens, p_durations, p_names, p_keys, p_frames) WITH ORDINALITY
            AS s (record_id, owner, token, duration, name, key, frame, number)
        JOIN open_idempotency.records r ON r.record_id = s.record_id
        WHERE r.owner = s.owner AND r.token = s.token AND r.status = 1 AND r.expires_at - moment > 0
            AND open_idempotency.is_sound(r)
        FOR NO KEY UPDATE OF r SKIP LOCKED
    ), added AS (
        INSERT INTO open_idempotency.stages AS t (record_id, name, key, frame)
        SELECT own.record_id, own.name, own.key, own.frame FROM own ORDER BY own.number
        ON CONFLICT (record_id, name, key) DO NOTHING
        RETURNING t.record_id, t.name, t.key
    ), extended AS (
        UPDATE open_idempotency.records r SET lease_end = moment + own.duration,
            expires_at = moment + own.duration + r.ttl
        FROM own JOIN added USING (record_id, name, key) WHERE r.record_id = own.record_id
    )
    SELECT 2, min(own.number), 0, NULL::bigint, NULL::double precision, NULL::double precision, NULL::bytea
    FROM own JOIN added USING (record_id, name, key) GROUP BY record_id, name, key;
END $$;

-- 0 where the owner of an attempt that runs gives it back, and nothing is left of the record.
CREATE FUNCTION open_idempotency.releases(
    p_now double precision, p_records bytea[], p_owners bytea[], p_tokens bigint[]
) RETURNS SETOF open_idempotency.reply LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    moment double precision := open_idempotency.seconds(p_now);
    own bytea[];
    awaited bytea[];
BEGIN
    WITH locked AS (
        SELECT r.record_id FROM unnest(p_records, p_owners, p_tokens) AS l (record_id, owner, token)
        JOIN open_idempotency.records r ON r.record_id = l.record_id
        WHERE r.owner = l.owner AND r.token = l.token AND r.status = 1 AND r.attempt = 1 AND r.expires_at - moment > 0
            AND open_idempotency.is_sound(r)
        FOR UPDATE OF r SKIP LOCKED
    ) SELECT array_agg(record_id) INTO own FROM locked;
    -- A statement of its own, which sees every stage that was saved before the lock.
    WITH gone AS (
        DELETE FROM open_idempotency.records r WHERE r.record_id = ANY (own)
            AND NOT EXISTS (SELECT 1 FROM open_idempotency.stages s WHERE s.record_id = r.record_id)
        RETURNING r.record_id, r.awaited
    ) SELECT array_agg(g.record_id), array_agg(g.record_id) FILTER (WHERE g.awaited) INTO own, awaited FROM gone g;
    PERFORM pg_notify('open_idempotency', encode(record_id, 'hex')) FROM unnest(awaited) AS told (record_id);
    RETURN QUERY SELECT 3, l.number, 0, NULL::bigint, NULL::double precision, NULL::double precision, NULL::bytea
    FROM unnest(p_records) WITH ORDINALITY AS l (record_id, number) WHERE l.record_id = ANY (own);
END $$;

-- A plan is kept for as long as the connection, and may have been made while the tables were empty.
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'open_idempotency'::regnamespace
        AND p.prorettype = 'open_idempotency.reply'::regtype
    LOOP
        EXECUTE format(
            'ALTER FUNCTION %s SET search_path = pg_catalog, pg_temp SET lock_timeout = ''100ms'' SET enable_seqscan = off'
            ' SET enable_hashjoin = off SET enable_mergejoin = off', f
        );
    END LOOP;
END $$;
