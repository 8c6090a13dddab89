-- {1} where the record had expired and is deleted; {0}.
local record = load(KEYS[1])
if not record or record.e > current_time() then return {0} end
redis.call('DEL', KEYS[1])
return {1}
