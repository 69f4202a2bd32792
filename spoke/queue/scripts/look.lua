-- What is known of one agent, and its place among its tenant's as of the last change of the queue.
-- input: agent; result: the entry in a list, which is empty where there is none

-- How many of one priority's set are served before (level, arrived, agent), agent excluded.
local function before(tenant, priority, level, entry)
  local key = ready_key(tenant, priority)
  local function reaching(wanted) -- the newest arrival whose effective priority is at least `wanted`
    local steps = wanted - priority
    if steps <= 0 then
      return math.huge
    elseif steps > AGEING_MOST or wanted > AGEING_CAP or priority == PRIORITIES then
      return -math.huge
    end
    return now - steps * AGEING_STEP_MS
  end
  local function count(newest)
    if newest == -math.huge then
      return 0
    end
    return call('ZCOUNT', key, '-inf', newest == math.huge and '+inf' or int(newest))
  end
  local higher = count(reaching(level + 1))
  local equal = math.max(0, count(math.min(reaching(level), entry.arrived - 1)) - higher)
  local same_moment = 0
  if effective(priority, entry.arrived) == level then
    for _, agent in ipairs(call('ZRANGEBYSCORE', key, int(entry.arrived), int(entry.arrived))) do
      same_moment = same_moment + (agent < entry.agent and 1 or 0)
    end
  end
  return higher + equal + same_moment
end

local function position(entry)
  local level, place = effective(entry.prio, entry.arrived), 1
  for priority = 1, PRIORITIES do
    place = place + before(entry.tenant, priority, level, entry)
  end
  return place
end

local entry = load(input.agent)
if not entry then
  return reply({})
end
local life = entry.life
return reply({ {
  gen = entry.gen, state = life.state, attempt = life.attempt, fence = life.fence, since = life.since,
  kill = life.kill ~= nil, position = life.state == 'queued' and position(entry) or nil,
} })
