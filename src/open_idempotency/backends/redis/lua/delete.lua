-- {1} where there was a record, readable or not; {0}.
local record, reason = load_live(KEYS[1], current_time())
redis.call('DEL', KEYS[1])
tell_waiters(KEYS[1])
return {(record or reason) and 1 or 0}
