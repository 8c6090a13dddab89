-- {0, f, s, o, t, a, c, l, T, e, x, response, about, stages...}; {1} where there is none.
local key = KEYS[1]
local record, reason = load_live(key, current_time())
if reason then return {UNREADABLE, reason} end
if not record then return {1} end
local response = redis.call('HGET', key, 'r')
if record.s == COMPLETED and not response then return {UNREADABLE, 'the response is missing'} end
local reply = {
    0, record.f, record.s, record.o, record.t, record.a, record.c, record.l, record.T, record.e, record.x, response,
    redis.call('HGET', key, 'b'),
}
return load_stages(key, record, reply) or {UNREADABLE, 'a stage is missing'}
