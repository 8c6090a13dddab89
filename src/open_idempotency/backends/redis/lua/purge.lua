-- {1} where the record had expired and is deleted; {0}.
local key, now = KEYS[1], current_time()
local record = load(key)
if not record or record.e > now then return {0} end
forget(key, now)
-- What stands for none, beside withdrawn owners, is no record.
return {record.e > 0 and 1 or 0}
