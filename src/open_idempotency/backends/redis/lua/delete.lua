-- {1} where there was a record, readable or not; {0}.
local key, now = KEYS[1], current_time()
local record, reason = load(key)
if reason then redis.call('DEL', key) else forget(key, now) end
tell_waiters(key)
return {(reason or (record and record.e > now)) and 1 or 0}
