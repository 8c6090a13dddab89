-- The record's status alone, or nil.
local raw = redis.call('HGET', KEYS[1], 'm')
return raw and string.byte(raw, 2)
