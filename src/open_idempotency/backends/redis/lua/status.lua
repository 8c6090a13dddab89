-- The record's status alone, or nil.
return redis.call('HGET', KEYS[1], 's')
