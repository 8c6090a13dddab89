-- An operator frees a key, if its record still has the token and the status that were seen: 0 done, 1 absent, 2 changed,
-- 3 alive. With p_keep the record stays, at a token that no owner has, and its attempts count no more.
CREATE FUNCTION open_idempotency.free(
    p_now double precision, p_record bytea, p_token bigint, p_status integer, p_keep boolean, p_alive boolean
) RETURNS integer LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r open_idempotency.records;
    moment double precision;
BEGIN
    SELECT * INTO r FROM open_idempotency.records WHERE record_id = p_record FOR UPDATE;
    IF NOT FOUND THEN RETURN 1; END IF;
    moment := open_idempotency.seconds(p_now);
    IF NOT open_idempotency.is_sound(r) THEN RETURN -1; END IF;
    IF r.expires_at <= moment THEN RETURN 1; END IF;
    IF r.token <> p_token OR r.status <> p_status OR (p_keep AND r.status = 2) THEN RETURN 2; END IF;
    IF r.status = 1 AND r.lease_end > moment AND NOT p_alive THEN RETURN 3; END IF;
    IF p_keep THEN
        UPDATE open_idempotency.records SET status = 3, final = false, response = NULL, attempt = 0,
            token = greatest((moment * 1000000)::bigint, r.token + 1), lease_end = moment, expires_at = moment + r.ttl,
            awaited = false
        WHERE record_id = p_record;
    ELSE
        DELETE FROM open_idempotency.records WHERE record_id = p_record;
    END IF;
    PERFORM open_idempotency.tell(r);
    RETURN 0;
END $$;
