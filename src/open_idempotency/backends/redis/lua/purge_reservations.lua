-- ARGV: time, how many at most. {how many had expired and are deleted}.
local expired = redis.pcall('ZRANGEBYSCORE', KEYS[1], '-inf', text(current_time()), 'LIMIT', 0, ARGV[2])
if expired.err or #expired == 0 then return {0} end
return {redis.call('ZREM', KEYS[1], unpack(expired))}
