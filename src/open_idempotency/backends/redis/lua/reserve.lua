-- KEYS[1]: the caller's reservations, record ids by their ends. ARGV: time, record id, limit, seconds needed, seconds
-- kept (both in microseconds). {0} reserved; {1, remaining} over the quota.
local key, id, now = KEYS[1], ARGV[2], current_time()
local before = redis.pcall('ZSCORE', key, id)
if type(before) == 'table' and before.err then return {UNREADABLE, before.err} end
local reserved = before and tonumber(before) > now
if not reserved and redis.call('ZCOUNT', key, '(' .. text(now), '+inf') >= tonumber(ARGV[3]) then
    local first = redis.call('ZRANGEBYSCORE', key, '(' .. text(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    return {1, tonumber(first[2]) - now}
end
if reserved and tonumber(before) >= now + tonumber(ARGV[4]) then return {0} end
-- The first write is the one that needs memory, so that at the memory limit all of it is refused.
redis.call('ZADD', key, text(now + tonumber(ARGV[5])), id)
local wanted = math.ceil(tonumber(ARGV[5]) / 1000) + 1000
if redis.call('PTTL', key) < wanted then redis.call('PEXPIRE', key, text(wanted)) end
local expired = redis.call('ZRANGEBYSCORE', key, '-inf', text(now), 'LIMIT', 0, 100)
if #expired > 0 then redis.call('ZREM', key, unpack(expired)) end
return {0}
