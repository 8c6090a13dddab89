-- ARGV: time, token, status, keep stages, also while alive. {0} done, {1} absent, {2} changed, {3} alive.
local key = KEYS[1]
local token, status, keep, alive = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1', ARGV[5] == '1'
local now = current_time()
local record, reason = load_live(key, now)
if reason then return {UNREADABLE, reason} end
if not record then return {1} end
if record.t ~= token or record.s ~= status or (keep and record.s == COMPLETED) then return {2} end
if record.s == RUNNING and record.l > now and not alive then return {3} end
if keep then
    record.s, record.x, record.a, record.t = FAILED, 0, 0, math.max(now, record.t + 1)
    record.l, record.e = now, now + record.T
    -- Before the rest, so that it is allowed at the memory limit.
    set_expiry(key, record, now)
    save(key, record)
    redis.call('HDEL', key, 'r')
else
    forget(key, now)
end
tell_waiters(key)
return {0}
