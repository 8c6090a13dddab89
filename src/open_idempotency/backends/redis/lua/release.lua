-- ARGV: time, the lease's six. {0}.
local key = KEYS[1]
local now = current_time()
local record, reason = load_live(key, now)
if reason then return {UNREADABLE, reason} end
if not record then return {0} end
local given_back = record.s == FAILED and record.x == 0
if not is_owner(record, ARGV[2], ARGV[3]) or (record.s ~= RUNNING and not given_back) then
    return {LOST, record.t}
end
if given_back then return {0} end
if record.a == 1 and record.n == 0 then
    forget(key, now)
    tell_waiters(key)
    return {0}
end
record.s, record.a, record.l, record.e = FAILED, record.a - 1, now, now + record.T
set_expiry(key, record, now)
save(key, record)
tell_waiters(key)
return {0}
