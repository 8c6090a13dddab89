-- ARGV: time, owner, microseconds for which its claim is refused. {0}.
local key, owner, MOST = KEYS[1], ARGV[2], 100
local now = current_time()
local record, reason = load(key)
if reason then return {UNREADABLE, reason} end
if record and record.e > now and record.s == RUNNING and record.o == owner then
    -- As release.lua does it, and before the rest, so that it is allowed at the memory limit.
    if record.a == 1 and record.n == 0 then
        forget(key, now)
        record = nil
    else
        record.s, record.a, record.l, record.e = FAILED, record.a - 1, now, now + record.T
        set_expiry(key, record, now)
        save(key, record)
    end
    tell_waiters(key)
end
local words = {}
for _, each in ipairs((load_withdrawn(key, now))) do
    if each[2] ~= owner then words[#words + 1] = struct.pack(WITHDRAWN, each[1], #each[2], each[2]) end
end
if #words >= MOST then table.remove(words, 1) end
words[#words + 1] = struct.pack(WITHDRAWN, now + tonumber(ARGV[3]), #owner, owner)
-- They stand beside a record: where there is none, beside one that has expired.
if not record then save(key, nothing()) end
redis.call('HSET', key, 'W', table.concat(words))
set_expiry(key, record or nothing(), now)
return {0}
