-- What every script stands on; it is put in front of each of them, after the constants of `names.py`.
--
--   ARGV[1..4]  epoch, incarnation and head seq as the daemon knows them, its clock in ms
--   ARGV[5]     the call's own input, packed as MessagePack
--
-- `meta` is read once and written once, at the end, by `reply`. Numbers stay whole and below 2^53: fences are
-- epoch * 2^32 + n. Everything that can fail on bad input (unpacking) happens before the first write.

local call = redis.call

local PRIORITIES = 10
local MINUTE_MS = 60000
local AGEING_STEP_MS = 600000 -- waiting this long raises by one,
local AGEING_MOST = 3         -- at most so often,
local AGEING_CAP = 9          -- and never to 10
local TURN = 1000000          -- virtual time of one lease at weight 1
local MEMORY_MS = 630000      -- ids and marks outlive their acknowledgement so long: 10 min of validity, 30 s of skew

local function int(number)
  return string.format('%.0f', number)
end

local META_FIELDS = { 'epoch', 'incarnation', 'seq', 'evt_ack', 'rev', 'paused', 'cordoned', 'fence', 'newest' }
local meta, changed = {}, {}
local stored = call('HMGET', META, unpack(META_FIELDS))
for i, field in ipairs(META_FIELDS) do
  meta[field] = tonumber(stored[i] or 0)
end
local is_new = not stored[1]

-- The clock never goes back, whatever the host's does.
local now = math.max(tonumber(ARGV[4]), meta.newest)
local input = cmsgpack.unpack(ARGV[5])

local function set(field, value)
  meta[field] = value
  changed[field] = true
end

-- Gives a command any number of arguments: Lua's stack holds some thousands. An even step keeps pairs together.
local ARGS_MOST = 2000

local function call_with(arguments, ...)
  for first = 1, #arguments, ARGS_MOST do
    local given = { ... }
    for i = first, math.min(first + ARGS_MOST - 1, #arguments) do
      given[#given + 1] = arguments[i]
    end
    call(unpack(given))
  end
end

-- What ended in this script, and the marks it read or made: written together, in few commands, by `flush`.
local gone = {}       -- agent → true
local marks = {}      -- agent → mark, or false where there is none
local new_marks = {}  -- agent → true

local function flush()
  local keys, agents, fields = {}, {}, {}
  for agent in pairs(gone) do
    agents[#agents + 1] = agent
    keys[#keys + 1] = ENTRY .. agent
  end
  for agent in pairs(new_marks) do
    fields[#fields + 1] = agent
    fields[#fields + 1] = marks[agent]
  end
  call_with(keys, 'UNLINK')
  call_with(agents, 'HDEL', GENS)
  call_with(agents, 'ZREM', LEASED)
  call_with(fields, 'HSET', CLOSED)
  gone, new_marks = {}, {}
end

-- Ends a script: writes what is left to write and returns (incarnation, seq, the packed result, more strings).
local function reply(result, more)
  flush()
  if next(changed) then
    set('newest', now)
    local fields = {}
    for field in pairs(changed) do
      fields[#fields + 1] = field
      fields[#fields + 1] = int(meta[field])
    end
    call('HSET', META, unpack(fields))
  end
  local out = { meta.incarnation, meta.seq, cmsgpack.pack(result) }
  for i, text in ipairs(more or {}) do
    out[3 + i] = text
  end
  return out
end

-- --- events ----------------------------------------------------------------------------------------------------

-- Appends an event. Beside it stands what its acknowledgement lets go, so that `acknowledge` need not unpack it:
-- any of 'accepts' (a command id), 'closes' ('<agent>:<generation>'), 'equivocates' (a command id).
local NOTHING = {}

-- Tables are written with all their fields at once: one that grows field by field is copied again and again.
local function event(e, lets)
  set('seq', meta.seq + 1)
  e.seq = meta.seq
  local packed = cmsgpack.pack(e)
  call('XADD', EVENTS, int(meta.seq) .. '-0', 'e', packed, unpack(lets or NOTHING))
  return packed
end

-- The answer to a command itself; `life` where it tells of an attempt.
local function answer(kind, item, reason, life, retry_at)
  event({
    seq = 0, kind = kind, cmd = item.id, cmd_sha256 = item.sha, agent = item.agent, gen = item.gen,
    attempt = life and life.attempt, fence = life and life.fence, reason = reason or '', at = now, retry_at = retry_at,
  }, { 'accepts', item.id })
end

-- A fact about an entry: it carries the Spawn that brought it here.
local function fact(kind, entry, reason, more, lets)
  return event({
    seq = 0, kind = kind, cmd = entry.cmd, cmd_sha256 = entry.sha, agent = entry.agent, gen = entry.gen,
    attempt = entry.life.attempt, fence = entry.life.fence, reason = reason, at = now,
    exit = more and more.exit, retry_at = more and more.retry_at,
  }, lets)
end

-- --- entries ---------------------------------------------------------------------------------------------------
-- An entry's hash: `spawn` (gen, cmd, sha, tenant, weight, prio, arrived, deadline) and `item` never change; `life`
-- (state, since, attempt, retries, fence, ran, kill) is replaced as a whole. Both are packed.

-- Returns the entry, with its item if asked, or nil.
local function load(agent, with_item)
  if gone[agent] then
    return nil
  end
  local values
  if with_item then
    values = call('HMGET', ENTRY .. agent, 'spawn', 'life', 'item')
  else
    values = call('HMGET', ENTRY .. agent, 'spawn', 'life')
  end
  if not values[1] then
    return nil
  end
  local entry = cmsgpack.unpack(values[1])
  entry.agent, entry.life, entry.item = agent, cmsgpack.unpack(values[2]), values[3]
  return entry
end

local function save(entry)
  call('HSET', ENTRY .. entry.agent, 'life', cmsgpack.pack(entry.life))
end

local function enter(entry, state)
  entry.life.state, entry.life.since = state, now
end

local function is_leased(entry)
  return entry.life.state == 'leased' or entry.life.state == 'running'
end

-- What the daemon must know to run an attempt, but for the item.
local function lease_of(entry)
  local life, kill = entry.life, entry.life.kill or {}
  return {
    agent = entry.agent, gen = entry.gen, attempt = life.attempt, fence = life.fence, cmd = entry.cmd,
    cmd_sha256 = entry.sha, retries = life.retries, kill = life.kill ~= nil, kill_grace_ms = kill.grace,
    kill_reason = kill.reason or '',
  }
end

-- Who waited long enough counts as up to 3 priorities higher, but never as 10.
local function effective(priority, arrived)
  if priority == PRIORITIES then
    return priority
  end
  local steps = math.floor(math.max(0, now - arrived) / AGEING_STEP_MS)
  return math.min(AGEING_CAP, priority + math.min(AGEING_MOST, steps))
end

local function ready_key(tenant, priority)
  return READY .. tenant .. ':' .. int(priority)
end

local function ready_keys(tenant)
  local keys = {}
  for priority = 1, PRIORITIES do
    keys[priority] = ready_key(tenant, priority)
  end
  return keys
end

-- A tenant that becomes active starts at the minimum of the active ones, never below its own virtual time. When none
-- is left, all begin at 0 again: nobody pays later for having been alone.
local is_active = {} -- tenants that this script saw active

local function activate(tenant)
  if is_active[tenant] or call('ZSCORE', ACTIVE, tenant) then
    is_active[tenant] = true
    return
  end
  local first = call('ZRANGE', ACTIVE, 0, 0, 'WITHSCORES')
  local own = call('ZSCORE', IDLE, tenant) or 0
  call('ZADD', ACTIVE, int(math.max(tonumber(own), tonumber(first[2] or 0))), tenant)
  call('ZREM', IDLE, tenant)
end

local function deactivate_if_empty(tenant)
  local vtime = call('ZSCORE', ACTIVE, tenant)
  if not vtime or call('EXISTS', unpack(ready_keys(tenant))) > 0 then
    return
  end
  call('ZREM', ACTIVE, tenant)
  is_active[tenant] = nil
  if call('EXISTS', ACTIVE) == 1 then
    call('ZADD', IDLE, vtime, tenant)
  else
    call('DEL', IDLE)
  end
end

-- Puts an entry at its place: by its first arrival, also after a retry.
local function make_ready(entry)
  call('ZADD', ready_key(entry.tenant, entry.prio), int(entry.arrived), entry.agent)
  activate(entry.tenant)
end

-- A deadline is for the first start: whoever ran once is tried again also after it.
local function watch_deadline(entry)
  if entry.deadline and not entry.life.ran then
    call('ZADD', DEADLINES, int(entry.deadline), entry.agent)
  end
end

-- Takes an entry out of what it waits in; the lease of one that ended goes with `flush`.
local function take_out(entry)
  if entry.deadline then
    call('ZREM', DEADLINES, entry.agent)
  end
  if entry.life.state == 'queued' then
    call('ZREM', ready_key(entry.tenant, entry.prio), entry.agent)
    deactivate_if_empty(entry.tenant)
  elseif entry.life.state == 'retrying' then
    call('ZREM', DELAYED, entry.agent)
  end
end

-- --- closed marks ----------------------------------------------------------------------------------------------
-- The highest generation of an agent that ended here, or that was killed before it came (a tombstone): no Spawn up to
-- it has any effect. Its event is always there before the mark.

local function split_mark(mark)
  local gen, how = string.match(mark, '^(%d+):(.*)$')
  return tonumber(gen), how
end

local function read_marks(agents)
  for first = 1, #agents, ARGS_MOST do
    local last = math.min(first + ARGS_MOST - 1, #agents)
    for i, mark in ipairs(call('HMGET', CLOSED, unpack(agents, first, last))) do
      marks[agents[first + i - 1]] = mark
    end
  end
end

local function mark_of(agent)
  if marks[agent] == nil then
    read_marks({ agent })
  end
  return marks[agent]
end

local function mark_closed(agent, gen, how)
  local mark = mark_of(agent)
  if not mark or split_mark(mark) < gen then
    marks[agent], new_marks[agent] = int(gen) .. ':' .. how, true
  end
end

-- Says, for a command, that a generation is not here and never will be.
local function say_not_here(item)
  event({
    seq = 0, kind = 'killed', cmd = item.id, cmd_sha256 = item.sha, agent = item.agent, gen = item.gen,
    reason = 'not_here', at = now,
  }, { 'accepts', item.id, 'closes', item.agent .. ':' .. int(item.gen) })
  mark_closed(item.agent, item.gen, 'not_here')
end

-- Ends an entry: its outcome's event and the mark, and where a kill reached further, that too. Returns the event and
-- its seq.
local function close(entry, kind, reason, exit)
  take_out(entry)
  gone[entry.agent] = true
  local lets = { 'closes', entry.agent .. ':' .. int(entry.gen) }
  local packed, seq = fact(kind, entry, reason, { exit = exit }, lets), meta.seq
  mark_closed(entry.agent, entry.gen, 'ended')
  local kill = entry.life.kill
  if kill and kill.gen > entry.gen then
    say_not_here({ id = kill.cmd, sha = kill.sha, agent = entry.agent, gen = kill.gen })
  end
  return packed, seq
end

-- The entry that a note means, or nil where the note is stale: another attempt, fence or generation, or no lease.
local function noted(note)
  local entry = load(note.agent)
  if
    entry and is_leased(entry) and entry.gen == note.gen
    and entry.life.attempt == note.attempt and entry.life.fence == note.fence
  then
    return entry
  end
  return nil
end

-- --- the past --------------------------------------------------------------------------------------------------

-- The minute in which what is acknowledged at `ms` expires; its key dies at the minute's beginning.
local function expiry_minute(ms)
  return math.floor((ms + MEMORY_MS) / MINUTE_MS) + 1
end

local function past_key(minute)
  return PAST .. int(minute)
end

-- The keys of every minute that has not expired by `now`.
local function living_pasts()
  local keys = {}
  for minute = math.floor(now / MINUTE_MS) + 1, expiry_minute(now) do
    keys[#keys + 1] = past_key(minute)
  end
  return keys
end
