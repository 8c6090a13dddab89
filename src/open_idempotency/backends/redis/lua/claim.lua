-- ARGV: time, fingerprint, owner, lease, ttl, resume failed, resume abandoned, most attempts (or empty), about.
-- {0, token, attempt, stages...} leased; {1, elapsed, remaining} busy; {2, response} finished;
-- {3, reason, attempt, response} refused; {4} mismatch.
local key = KEYS[1]
local fingerprint, owner, lease, ttl = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local now = current_time()

local function take(record)
    record.f, record.s, record.o, record.x = fingerprint, RUNNING, owner, 0
    record.l, record.T, record.e = now + lease, ttl, now + lease + ttl
    local reply = load_stages(key, record, {0, record.t, record.a})
    if not reply then return {UNREADABLE, 'a stage is missing'} end
    if ARGV[9] ~= '' then
        redis.call('HSET', key, 'm', packed(record), 'b', ARGV[9])
    else
        save(key, record)
        if not record.fresh then redis.call('HDEL', key, 'b') end
    end
    set_expiry(key, record, now)
    return reply
end

local function refuse(reason, record)
    return {3, reason, record.a, redis.call('HGET', key, 'r')}
end

local record, reason = load(key)
if reason then return {UNREADABLE, reason} end
if not record then return take({t = now, a = 1, c = now, n = 0, fresh = true}) end
local late = is_withdrawn(key, owner, now)
-- Above the last token and, by the clock, above any that a deleted record may have had.
local token = math.max(now, record.t + 1)
if record.e <= now then
    if late then return {3, 'withdrawn', 0, false} end
    forget(key, now)
    return take({t = token, a = 1, c = now, n = 0})
end
if record.f ~= fingerprint then return {4} end
if record.s == COMPLETED then
    local response = redis.call('HGET', key, 'r')
    if not response then return {UNREADABLE, 'the response is missing'} end
    return {2, response}
end
-- This claim was sent again after a lost reply: its sender owns the record.
if record.s == RUNNING and record.o == owner then
    if late then return {3, 'withdrawn', record.a, false} end
    return take(record)
end
if record.s == RUNNING and record.l > now then return {1, math.max(0, now - record.c), record.l - now} end
-- Attempt 0: every attempt was given back, so none has failed.
if record.s == FAILED and (record.x == 1 or (record.a > 0 and ARGV[6] ~= '1')) then return refuse('failed', record) end
if record.s == RUNNING and ARGV[7] ~= '1' then return refuse('abandoned', record) end
if ARGV[8] ~= '' and record.a >= tonumber(ARGV[8]) then return refuse('attempts', record) end
if late then return {3, 'withdrawn', record.a, false} end
record.t, record.a, record.c = token, record.a + 1, now
local reply = take(record)
if reply[1] == 0 then redis.call('HDEL', key, 'r') end
return reply
