-- Put before every script. A record is one hash:
--   m version, status, failed for good, attempt, number of stages, token, claimed at, lease end, ttl, expiry (times in
--     microseconds), owner and fingerprint, packed: one field is read and written in a third of the time of twelve,
--   W the owners whose claims were withdrawn, each with the time until which it is refused, packed one after the other,
--   b what the claim says about itself, for operators; none where that is empty,
--   r response, S1..Sn stages as frames of the client, I<identity> the number of the stage of that identity.
-- ARGV[1] is the time in microseconds where a test brings its own clock, else it is empty.
-- Replies begin with a number: 0 and above are the verb's own answers, below 0:
local UNREADABLE, LOST, COMPLETED_ALREADY = -1, -2, -3
local RUNNING, COMPLETED, FAILED = 1, 2, 3
local WITHDRAWN = '>I8I4c0'
local VERSION, PACKED = 1, '>BBBI4I4I8I8I8I8I8I4c0I4c0'
-- Lua's numbers are exact up to here.
local LARGEST = 9007199254740992

local function current_time()
    if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
    local time = redis.call('TIME')
    return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Lua's own conversion would write large numbers with an exponent; that of redis.call does not.
local function text(number) return string.format('%.0f', number) end

-- The record; nil where there is none; nil and the reason where it cannot be read.
local function load(key)
    local raw = redis.pcall('HGET', key, 'm')
    if not raw then
        if redis.call('EXISTS', key) == 0 then return nil end
        return nil, 'not a record of ours'
    end
    if raw.err then return nil, raw.err end
    if string.byte(raw) ~= VERSION then return nil, 'unknown record version' end
    local whole, _, s, x, a, n, t, c, l, T, e, o, f, after = pcall(struct.unpack, PACKED, raw)
    if not whole or after ~= #raw + 1 then return nil, 'malformed record' end
    if s < RUNNING or s > FAILED or math.max(t, c, l, T, e) >= LARGEST then return nil, 'malformed record' end
    return {f = f, s = s, o = o, t = t, a = a, c = c, l = l, T = T, e = e, x = x, n = n}
end

-- The same, with an expired record taken for absent.
local function load_live(key, now)
    local record, reason = load(key)
    if record and record.e <= now then return nil end
    return record, reason
end

-- The withdrawn owners that are still refused, with their ends, and the last of these ends.
local function load_withdrawn(key, now)
    local raw, position, found, last = redis.call('HGET', key, 'W'), 1, {}, 0
    while raw and position <= #raw do
        local whole, ends, owner, after = pcall(struct.unpack, WITHDRAWN, raw, position)
        if not whole then break end
        position = after
        if ends > now then
            found[#found + 1] = {ends, owner}
            last = math.max(last, ends)
        end
    end
    return found, last
end

local function is_withdrawn(key, owner, now)
    for _, each in ipairs(load_withdrawn(key, now)) do
        if each[2] == owner then return true end
    end
    return false
end

-- The key outlives the record, and the withdrawn owners, by a second: what has expired is decided by the times in them.
local function set_expiry(key, record, now)
    local found, last = nil, 0
    if not record.fresh then found, last = load_withdrawn(key, now) end
    redis.call('PEXPIRE', key, math.ceil((math.max(record.e, last) - now) / 1000) + 1000)
end

local function packed(r)
    return struct.pack(PACKED, VERSION, r.s, r.x, r.a, r.n, r.t, r.c, r.l, r.T, r.e, #r.o, r.o, #r.f, r.f)
end

local function save(key, record) redis.call('HSET', key, 'm', packed(record)) end

-- A record that has expired.
local function nothing() return {f = '', s = FAILED, o = '', t = 0, a = 0, c = 0, l = 0, T = 0, e = 0, x = 0, n = 0} end

-- Delete the record. Withdrawn owners stay, beside a record that has expired, as whoever knows none of them expects one.
local function forget(key, now)
    local found, last = load_withdrawn(key, now)
    local raw = #found > 0 and redis.call('HGET', key, 'W')
    redis.call('DEL', key)
    if raw then
        save(key, nothing())
        redis.call('HSET', key, 'W', raw)
        set_expiry(key, nothing(), now)
    end
end

-- Wake those who wait for the attempt to end; the channel has the key's name. A user who may not publish may still
-- complete: the waiters then ask again by themselves.
local function tell_waiters(key) redis.pcall('PUBLISH', key, '') end

local function is_owner(record, owner, token) return record.o == owner and record.t == tonumber(token) end

-- ARGV[2..7] of the owner's verbs: owner, token, attempt, fingerprint, lease, ttl.
local function record_of_lease(now)
    local lease, ttl = tonumber(ARGV[6]), tonumber(ARGV[7])
    return {
        f = ARGV[5], s = RUNNING, o = ARGV[2], t = tonumber(ARGV[3]), a = tonumber(ARGV[4]),
        c = now, l = now + lease, T = ttl, e = now + lease + ttl, x = 0, n = 0,
    }
end

-- The frames of all stages in order; nil where one is missing.
local function load_stages(key, record, reply)
    for i = 1, record.n do
        local frame = redis.call('HGET', key, 'S' .. i)
        if not frame then return nil end
        reply[#reply + 1] = frame
    end
    return reply
end
