-- KEYS: any number. For each key what get.lua replies, without response and stages.
local now = current_time()

local function header(key)
    local record, reason = load_live(key, now)
    if reason then return {UNREADABLE, reason} end
    if not record then return {1} end
    local r = record
    return {0, r.f, r.s, r.o, r.t, r.a, r.c, r.l, r.T, r.e, r.x, false, redis.call('HGET', key, 'b')}
end

local reply = {}
for i, key in ipairs(KEYS) do reply[i] = header(key) end
return reply
