-- Hands out attempts: first what is due (retries come back, deadlines pass), then whose turn it is.
-- input: count, after (the highest fence that reached the daemon)
-- result: leases, next_due_ms; more strings: the items, in the order of the leases
--
-- A lease whose answer was lost has a fence above `after`: it is handed out again instead of being forgotten.

local DUE_MOST = 1000   -- per call, so that a flood of due retries does not hold up the server
local HEADS_READ = 16   -- of one priority at a time

local function expire_deadlines()
  for _, agent in ipairs(call('ZRANGEBYSCORE', DEADLINES, '-inf', int(now), 'LIMIT', 0, DUE_MOST)) do
    close(load(agent), 'expired', 'deadline')
  end
end

local function promote_retries()
  for _, agent in ipairs(call('ZRANGEBYSCORE', DELAYED, '-inf', int(now), 'LIMIT', 0, DUE_MOST)) do
    local entry = load(agent)
    call('ZREM', DELAYED, agent)
    enter(entry, 'queued')
    save(entry)
    make_ready(entry)
    set('newest', now)
  end
end

-- tenant → priority → {list, at, read, taken}: the heads, read some at a time, and what of them was taken.
local levels = {}

local function read_more(tenant, level)
  local list = call('ZRANGE', ready_key(tenant, level.priority), level.read, level.read + HEADS_READ - 1, 'WITHSCORES')
  level.list, level.at, level.read = list, 1, level.read + #list / 2
end

local function levels_of(tenant)
  if not levels[tenant] then
    levels[tenant] = {}
    for priority = 1, PRIORITIES do
      local level = { priority = priority, read = 0, taken = {} }
      read_more(tenant, level)
      levels[tenant][priority] = level
    end
  end
  return levels[tenant]
end

-- Effective priority, then first come, then by id.
local function goes_before(one, other)
  if one.rank ~= other.rank then
    return one.rank > other.rank
  elseif one.arrived ~= other.arrived then
    return one.arrived < other.arrived
  end
  return one.agent < other.agent
end

-- Compares a tenant's ten heads; nil where it has none.
local function best_of(tenant)
  local best
  for priority, level in ipairs(levels_of(tenant)) do
    local agent = level.list[level.at]
    if agent then
      local arrived = tonumber(level.list[level.at + 1])
      local head = { agent = agent, arrived = arrived, rank = effective(priority, arrived), level = level }
      if not best or goes_before(head, best) then
        best = head
      end
    end
  end
  return best
end

local function take(tenant, head)
  local level = head.level
  level.taken[#level.taken + 1] = head.agent
  level.at = level.at + 2
  if level.at > #level.list then
    read_more(tenant, level)
  end
end

local function remove_taken(tenant)
  for priority, level in ipairs(levels[tenant]) do
    call_with(level.taken, 'ZREM', ready_key(tenant, priority))
  end
  levels[tenant] = nil
  deactivate_if_empty(tenant)
end

local leases, items, by_fence = {}, {}, {}

local function hand_out(entry)
  leases[#leases + 1] = lease_of(entry)
  items[#items + 1] = entry.item
end

local function lease(agent)
  local entry = load(agent, true)
  local life = entry.life
  set('fence', meta.fence + 1)
  life.attempt, life.fence = life.attempt + 1, meta.fence
  enter(entry, 'leased')
  save(entry)
  by_fence[#by_fence + 1] = int(life.fence)
  by_fence[#by_fence + 1] = agent
  if entry.deadline then
    call('ZREM', DEADLINES, agent)
  end
  hand_out(entry)
  return math.floor(TURN / entry.weight)
end

-- Whose turn it is: of the active tenants the one with the least virtual time.
local function lease_fairly()
  while #leases < input.count do
    local tenant = call('ZRANGE', ACTIVE, 0, 0)[1]
    if not tenant then
      break
    end
    local head = best_of(tenant)
    if head then
      take(tenant, head)
      call('ZINCRBY', ACTIVE, int(lease(head.agent)), tenant)
    else
      remove_taken(tenant)
    end
  end
  for tenant in pairs(levels) do
    remove_taken(tenant)
  end
  call_with(by_fence, 'ZADD', LEASED)
end

-- Virtual time that all active tenants have reached says nothing about an idle one any more.
local function forget_idle()
  local first = call('ZRANGE', ACTIVE, 0, 0, 'WITHSCORES')
  if first[2] then
    call('ZREMRANGEBYSCORE', IDLE, '-inf', first[2])
  end
end

local function next_due()
  local due
  for _, key in ipairs({ DELAYED, DEADLINES }) do
    local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')
    if first[2] then
      due = math.min(due or math.huge, tonumber(first[2]))
    end
  end
  return due
end

expire_deadlines()
promote_retries()
for _, agent in ipairs(call('ZRANGEBYSCORE', LEASED, '(' .. int(input.after), '+inf')) do
  hand_out(load(agent, true))
end
if meta.paused ~= 1 then
  lease_fairly()
end
forget_idle()
return reply({ leases = leases, next_due_ms = next_due() }, items)
