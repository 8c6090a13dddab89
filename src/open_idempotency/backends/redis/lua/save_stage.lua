-- ARGV: time, the lease's six, identity, frame. {0, frame on record}; {1, frame} where the record was re-created.
local key, identity, frame = KEYS[1], 'I' .. ARGV[8], ARGV[9]
local now = current_time()
local record, reason = load_live(key, now)
if reason then return {UNREADABLE, reason} end

local function add(code)
    record.n = record.n + 1
    set_expiry(key, record, now)
    save(key, record)
    redis.call('HSET', key, identity, text(record.n), 'S' .. text(record.n), frame)
    return {code, frame}
end

if not record then
    forget(key, now)
    record = record_of_lease(now)
    local reply = add(1)
    set_expiry(key, record, now)
    return reply
end
if not is_owner(record, ARGV[2], ARGV[3]) then return {LOST, record.t} end
if record.s == COMPLETED then return {COMPLETED_ALREADY} end
if record.s == FAILED then return {LOST, record.t} end
local number = redis.call('HGET', key, identity)
if not number then
    record.l, record.e = now + tonumber(ARGV[6]), now + tonumber(ARGV[6]) + record.T
    return add(0)
end
local saved = redis.call('HGET', key, 'S' .. number)
if not saved then return {UNREADABLE, 'a stage is missing'} end
-- See complete.lua: the stage may have been sent again.
set_expiry(key, record, now)
return {0, saved}
