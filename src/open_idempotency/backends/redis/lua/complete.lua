-- ARGV: time, the lease's six, response. {0} completed; {1} completed and re-created.
local key = KEYS[1]
local now = current_time()
local record, reason = load_live(key, now)
if reason then return {UNREADABLE, reason} end
local recreated = not record
if recreated then
    forget(key, now)
    record = record_of_lease(now)
else
    if not is_owner(record, ARGV[2], ARGV[3]) or record.s == FAILED then return {LOST, record.t} end
    if record.s == COMPLETED then
        -- Sent again. A write that changes nothing makes WAIT, where it follows, wait for the first one as well.
        set_expiry(key, record, now)
        return {0}
    end
end
-- The completion says for how long; a stored error may be kept for less than the claim has said.
record.s, record.l, record.T = COMPLETED, now, tonumber(ARGV[7])
record.e = now + record.T
-- At the memory limit a script may write if a write that needs no memory came first, and finished work must be kept.
set_expiry(key, record, now)
if recreated then
    save(key, record)
    redis.call('HSET', key, 'r', ARGV[8])
    set_expiry(key, record, now)
else
    redis.call('HSET', key, 'm', packed(record), 'r', ARGV[8])
end
tell_waiters(key)
return {recreated and 1 or 0}
