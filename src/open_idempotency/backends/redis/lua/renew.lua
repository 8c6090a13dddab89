-- KEYS: any number; ARGV: time, then owner, token and lease for each. Replies with 0 owned, 1 lost, 2 vanished.
-- A record that cannot be read is lost: it must not keep the others from being renewed.
local now = current_time()

local function renew(key, owner, token, lease)
    local record, reason = load_live(key, now)
    if reason then return 1 end
    if not record then return 2 end
    if not is_owner(record, owner, token) or record.s == FAILED then return 1 end
    if record.s == RUNNING then
        record.l, record.e = now + lease, now + lease + record.T
        -- Allowed at the memory limit because a write that needs no memory comes first.
        set_expiry(key, record, now)
        save(key, record)
    end
    return 0
end

local reply = {}
for i, key in ipairs(KEYS) do
    local first = 3 * i - 1
    reply[i] = renew(key, ARGV[first], ARGV[first + 1], tonumber(ARGV[first + 2]))
end
return reply
