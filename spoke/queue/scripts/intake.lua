-- Takes in the items of one envelope: inbox, queue and events in one step.
-- input: items, full, cap; the Spawns' bytes are ARGV[6] and following, as their `raw` says
-- result: per item its verdict {kind, kill, reason}
--
-- Same id and bytes again: no effect, its event is there already. Same id, other bytes: equivocation, said once.

-- What is known of the batch's command ids and agents is looked up for all of it at once, and kept up to date here.
local ids, agents, past_fields = {}, {}, {}
for i, item in ipairs(input.items) do
  ids[i], agents[i] = item.id, item.agent or ''
  past_fields[2 * i - 1], past_fields[2 * i] = item.id, 'closed:' .. agents[i]
end

local function by_name(list, key)
  local found = {}
  for i, value in ipairs(#list > 0 and call('HMGET', key, unpack(list)) or {}) do
    found[list[i]] = value
  end
  return found
end

local inbox, gens = by_name(ids, INBOX), by_name(agents, GENS)
read_marks(agents)
local pasts = {}
for _, key in ipairs(living_pasts()) do
  if call('EXISTS', key) == 1 then
    pasts[#pasts + 1] = by_name(past_fields, key)
  end
end
local waiting = call('HLEN', GENS) - call('ZCARD', LEASED)
local new_ids = {}

local function load_known(agent)
  return gens[agent] and load(agent)
end

-- The bytes' hash under which a command id is known, or nil.
local function hash_of(id)
  local hash = inbox[id]
  for _, past in ipairs(pasts) do
    hash = hash or past[id]
  end
  return hash or nil
end

-- The highest closed generation of an agent and how it was closed; 0 where none is known. That it ended here outweighs
-- a later kill's "not here".
local function closed_gen(agent)
  local gen, how = split_mark(mark_of(agent) or '0:')
  for _, past in ipairs(pasts) do
    local past_gen, past_how = split_mark(past['closed:' .. agent] or '0:')
    if past_gen > gen or (past_gen == gen and past_how == 'ended') then
      gen, how = past_gen, past_how
    end
  end
  return gen, how
end

local function refuse(item, reason)
  answer('refused', item, reason)
  return { kind = 'refused', kill = false, reason = reason }
end

local NO_EFFECT = { kind = 'no_effect', kill = false, reason = '' }
local ACCEPTED = { kind = 'accepted', kill = false, reason = '' }

-- The generation is here already: the new command hears how far it got.
local function say_again(item, entry)
  local state = entry.life.state
  if state == 'queued' or state == 'leased' then
    answer('queued', item)
  elseif state == 'running' then
    answer('running', item, '', entry.life)
  else
    answer('retrying', item, '', entry.life, tonumber(call('ZSCORE', DELAYED, entry.agent)))
  end
  return NO_EFFECT
end

local function accept(item)
  if gone[item.agent] then
    flush() -- else it would take the new entry along
  end
  local entry = {
    gen = item.gen, cmd = item.id, sha = item.sha, tenant = item.tenant, weight = item.weight, prio = item.prio,
    arrived = item.arrived, deadline = item.deadline,
  }
  local life = { state = 'queued', since = now, attempt = 0, retries = 0, fence = 0 }
  call('HSET', ENTRY .. item.agent, 'spawn', cmsgpack.pack(entry), 'life', cmsgpack.pack(life), 'item', ARGV[item.raw])
  call('HSET', GENS, item.agent, int(item.gen))
  gens[item.agent], waiting = item.gen, waiting + 1
  entry.agent, entry.life = item.agent, life
  make_ready(entry)
  watch_deadline(entry)
  answer('queued', item)
  return ACCEPTED
end

local function spawn(item)
  local entry = load_known(item.agent)
  local gen, how = closed_gen(item.agent)
  if entry and item.gen == entry.gen then
    return say_again(item, entry)
  elseif item.gen == gen and how == 'ended' then
    return NO_EFFECT -- its outcome's event answers
  elseif item.gen <= gen or (entry and item.gen < entry.gen) then
    say_not_here(item)
    return NO_EFFECT
  elseif entry then
    return refuse(item, 'superseded')
  elseif item.refused then
    return refuse(item, item.refused)
  elseif input.full or waiting >= input.cap then
    return refuse(item, 'queue_full')
  end
  return accept(item)
end

-- Keeps on a live entry what must become of it; a later kill may shorten the grace and reach further.
local function mark_killed(entry, item)
  local kill = entry.life.kill or { gen = 0, reason = item.reason }
  if item.gen > kill.gen then
    kill.gen, kill.cmd, kill.sha = item.gen, item.id, item.sha
  end
  if item.grace then
    kill.grace = math.min(item.grace, kill.grace or item.grace)
  end
  entry.life.kill = kill
end

local function kill(item)
  local entry = load_known(item.agent)
  local is_meant = entry and entry.gen <= item.gen
  if is_meant and is_leased(entry) and item.op == 'remove' then
    return refuse(item, 'running')
  end
  answer('kill_accepted', item)
  if not is_meant then
    say_not_here(item)
    return ACCEPTED
  end
  mark_killed(entry, item)
  if is_leased(entry) then
    save(entry)
    return { kind = 'accepted', kill = true, reason = '' }
  end
  close(entry, 'killed', item.reason)
  waiting = waiting - 1
  return ACCEPTED
end

-- Pause, Resume, Cordon, Drain: the wanted state with the highest revision holds.
local function want(item)
  local is_newer = item.rev > meta.rev
  if is_newer then
    set('rev', item.rev)
    if item.op == 'pause' or item.op == 'resume' then
      set('paused', item.op == 'pause' and 1 or 0)
    else
      set('cordoned', (item.op == 'drain' or item.on) and 1 or 0)
    end
  end
  answer('applied', item)
  return is_newer and ACCEPTED or NO_EFFECT
end

local function take_in(item)
  if item.op == 'spawn' then
    return spawn(item)
  elseif item.op == 'kill' or item.op == 'remove' then
    return kill(item)
  elseif item.refused then
    return refuse(item, item.refused)
  elseif item.rev then
    return want(item)
  end
  answer('applied', item)
  return ACCEPTED
end

-- A kill that comes again is acted on again while what it means is alive.
local function is_still_killed(item)
  local entry = item.op == 'kill' and load_known(item.agent)
  return entry and entry.gen <= item.gen and is_leased(entry) and entry.life.kill ~= nil or false
end

local function judge(item)
  local known = hash_of(item.id)
  if known == item.sha then
    return { kind = 'duplicate', kill = is_still_killed(item), reason = '' }
  elseif known then
    if call('SADD', EQUIVOCATED, item.id) == 1 then
      event({
        seq = 0, kind = 'refused', cmd = item.id, cmd_sha256 = item.sha, agent = item.agent, gen = item.gen,
        reason = 'equivocation', at = now,
      }, { 'equivocates', item.id })
    end
    return { kind = 'equivocation', kill = false, reason = 'equivocation' }
  end
  local before = meta.seq
  local verdict = take_in(item)
  if meta.seq > before then -- no event of its own: nothing would ever take the id out of the inbox
    inbox[item.id] = item.sha
    new_ids[#new_ids + 1] = item.id
    new_ids[#new_ids + 1] = item.sha
  end
  return verdict
end

local verdicts = {}
for i, item in ipairs(input.items) do
  verdicts[i] = judge(item)
end
call_with(new_ids, 'HSET', INBOX)
return reply(verdicts)
