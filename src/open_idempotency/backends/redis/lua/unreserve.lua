-- ARGV: time, record id. {0}.
local removed = redis.pcall('ZREM', KEYS[1], ARGV[2])
if type(removed) == 'table' and removed.err then return {UNREADABLE, removed.err} end
return {0}
