-- A completion says for how long its record is kept: a stored error may be kept for less than the claim has said.
--
-- `ttl` is set along with the expiry, since the index for purging is on `claimed_at + ttl`. An unchanged value is no
-- change to PostgreSQL, so the update of a success still touches no index.
--
-- `complete` keeps its arguments and replies: workers of the version before send the time that the record has. `ends`
-- gets one argument more; the one without it stays for those workers.

CREATE OR REPLACE FUNCTION open_idempotency.complete(
    p_now double precision, l open_idempotency.lease, p_response bytea, OUT code integer
) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own record;
BEGIN
    -- Nearly always this is all there is to do. Waiting for a lock makes it read the row, and the time, once more.
    UPDATE open_idempotency.records r SET status = 2, response = p_response, ttl = l.ttl,
        lease_end = open_idempotency.seconds(p_now), expires_at = open_idempotency.seconds(p_now) + l.ttl
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
            UPDATE open_idempotency.records SET status = 2, response = p_response, ttl = l.ttl,
                lease_end = own.moment, expires_at = own.moment + l.ttl, awaited = false
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

-- Completions (status 2) and failures (3): 0 where the owner of an attempt that runs ends it.
CREATE FUNCTION open_idempotency.ends(
    p_now double precision, p_records bytea[], p_owners bytea[], p_tokens bigint[], p_statuses integer[],
    p_finals boolean[], p_responses bytea[], p_ttls double precision[]
) RETURNS SETOF open_idempotency.reply LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms' SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
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
            response = p_responses[own.number], ttl = p_ttls[own.number], lease_end = moment,
            expires_at = moment + p_ttls[own.number], awaited = false
        FROM own WHERE r.record_id = own.record_id
        RETURNING own.number, own.record_id, own.awaited
    ) SELECT array_agg(e.number), array_agg(e.record_id) FILTER (WHERE e.awaited) INTO done, awaited FROM ended e;
    PERFORM pg_notify('open_idempotency', encode(record_id, 'hex')) FROM unnest(awaited) AS told (record_id);
    RETURN QUERY SELECT 1, n, 0, NULL::bigint, NULL::double precision, NULL::double precision, NULL::bytea
    FROM unnest(CASE WHEN cardinality(done) = cardinality(p_records) THEN ARRAY[0::bigint] ELSE done END) AS n;
END $$;
