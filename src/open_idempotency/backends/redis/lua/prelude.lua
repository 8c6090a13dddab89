-- Put before every script. A record is one hash:
--   v version, f fingerprint, s status (1 in progress, 2 completed, 3 failed), o owner, t token, a attempt,
--   c claimed at, l lease end, T ttl, e expiry (microseconds), x failed for good, n number of stages,
--   r response, S1..Sn stages as frames of the client, I<identity> the number of the stage of that identity.
-- ARGV[1] is the time in microseconds where a test brings its own clock, else it is empty.
-- Replies begin with a number: 0 and above are the verb's own answers, below 0:
local UNREADABLE, LOST, COMPLETED_ALREADY = -1, -2, -3
local RUNNING, COMPLETED, FAILED = 1, 2, 3
local FIELDS = {'v', 'f', 's', 'o', 't', 'a', 'c', 'l', 'T', 'e', 'x', 'n'}
local NUMBERS = {3, 5, 6, 7, 8, 9, 10, 11, 12}

local function current_time()
    if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
    local time = redis.call('TIME')
    return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Lua's own conversion would write large numbers with an exponent; that of redis.call does not.
local function text(number) return string.format('%.0f', number) end

-- The record; nil where there is none; nil and the reason where it cannot be read.
local function load(key)
    local raw = redis.pcall('HMGET', key, unpack(FIELDS))
    if raw.err then return nil, raw.err end
    if not raw[1] then
        if redis.call('EXISTS', key) == 0 then return nil end
        return nil, 'not a record of ours'
    end
    if raw[1] ~= '1' then return nil, 'unknown record version' end
    for _, i in ipairs(NUMBERS) do
        if not raw[i] or not string.find(raw[i], '^%d+$') then return nil, 'malformed field ' .. FIELDS[i] end
    end
    local status = tonumber(raw[3])
    if not raw[2] or not raw[4] or status < RUNNING or status > FAILED then return nil, 'malformed record' end
    return {
        f = raw[2], s = status, o = raw[4], t = raw[5], a = tonumber(raw[6]), c = tonumber(raw[7]),
        l = tonumber(raw[8]), T = tonumber(raw[9]), e = tonumber(raw[10]), x = tonumber(raw[11]), n = tonumber(raw[12]),
    }
end

-- The same, with an expired record taken for absent.
local function load_live(key, now)
    local record, reason = load(key)
    if record and record.e <= now then return nil end
    return record, reason
end

-- The key outlives the record by a second: what has expired is decided by e alone.
local function set_expiry(key, record, now)
    redis.call('PEXPIRE', key, math.ceil((record.e - now) / 1000) + 1000)
end

local function save(key, record)
    redis.call('HSET', key, 'v', '1', 'f', record.f, 's', record.s, 'o', record.o, 't', record.t,
        'a', record.a, 'c', record.c, 'l', record.l, 'T', record.T, 'e', record.e, 'x', record.x, 'n', record.n)
end

-- Wake those who wait for the attempt to end; the channel has the key's name. A user who may not publish may still
-- complete: the waiters then ask again by themselves.
local function tell_waiters(key) redis.pcall('PUBLISH', key, '') end

local function is_owner(record, owner, token) return record.o == owner and record.t == token end

-- ARGV[2..7] of the owner's verbs: owner, token, attempt, fingerprint, lease, ttl.
local function record_of_lease(now)
    local lease, ttl = tonumber(ARGV[6]), tonumber(ARGV[7])
    return {
        f = ARGV[5], s = RUNNING, o = ARGV[2], t = ARGV[3], a = tonumber(ARGV[4]),
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
