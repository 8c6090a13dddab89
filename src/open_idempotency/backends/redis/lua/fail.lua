-- ARGV: time, the lease's six, final, response (only where there is one). {0}.
local key = KEYS[1]
local now = current_time()
local record, reason = load_live(key, now)
if reason then return {UNREADABLE, reason} end
if not record then return {0} end
if not is_owner(record, ARGV[2], ARGV[3]) or record.s == COMPLETED then return {LOST, record.t} end
if record.s == FAILED then return {0} end
record.s, record.x, record.l, record.e = FAILED, tonumber(ARGV[8]), now, now + record.T
-- Before the rest, so that it is allowed at the memory limit.
set_expiry(key, record, now)
save(key, record)
if ARGV[9] then redis.call('HSET', key, 'r', ARGV[9]) end
tell_waiters(key)
return {0}
