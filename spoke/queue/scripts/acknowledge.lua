-- Forgets what the hub has committed: trims events and dead letters, and lets their inbox ids and closed marks expire.
-- input: evt_ack, most (events looked at in one call); result: how far it got
--
-- An acknowledgement of events that were never said means that this queue is older than the hub's memory: no effect,
-- the hello will settle it.

local past = past_key(expiry_minute(now))

-- Moves the fields that may go; `is_news` tells whether the value there, if any, has to give way.
local function move(from, fields, prefix, may_go, is_news)
  if #fields == 0 then
    return
  end
  local targets, kept, gone = {}, {}, {}
  for i, field in ipairs(fields) do
    targets[i] = prefix .. field
  end
  local values, there = call('HMGET', from, unpack(fields)), call('HMGET', past, unpack(targets))
  for i, value in ipairs(values) do
    if value and may_go(fields[i], value) then
      gone[#gone + 1] = fields[i]
      if not there[i] or is_news(value, there[i]) then
        kept[#kept + 1] = targets[i]
        kept[#kept + 1] = value
      end
    end
  end
  call_with(kept, 'HSET', past)
  call_with(gone, 'HDEL', from)
end

-- What the events let go: command ids, marks (agent → generation) and equivocating ids; each once.
local function read(entries)
  local lets = { accepts = {}, closes = {}, equivocates = {} }
  for _, stored_event in ipairs(entries) do
    local fields = stored_event[2] -- 'e', the event, and then pairs
    for i = 3, #fields, 2 do
      lets[fields[i]][fields[i + 1]] = true
    end
  end
  return lets
end

local function keys_of(set_)
  local list = {}
  for each in pairs(set_) do
    list[#list + 1] = each
  end
  return list
end

local function forget(entries)
  local lets, gens = read(entries), {}
  for closed in pairs(lets.closes) do
    local agent, gen = string.match(closed, '^(.*):(%d+)$')
    gens[agent] = math.max(gens[agent] or 0, tonumber(gen))
  end
  local function always()
    return true
  end
  move(INBOX, keys_of(lets.accepts), '', always, always)
  -- A mark that is higher than what ended in these events waits for its own event; a lower one replaces none.
  move(CLOSED, keys_of(gens), 'closed:', function(agent, mark)
    return split_mark(mark) <= gens[agent]
  end, function(mark, other)
    return split_mark(mark) > split_mark(other)
  end)
  for id in pairs(lets.equivocates) do
    call('SREM', EQUIVOCATED, id)
  end
  if call('EXISTS', past) == 1 then
    call('PEXPIREAT', past, int(expiry_minute(now) * MINUTE_MS), 'NX')
  end
end

local target = input.evt_ack
if target <= meta.evt_ack or target > meta.seq then
  return reply(target)
end
local entries = call('XRANGE', EVENTS, '-', int(target) .. '-0', 'COUNT', input.most)
if #entries == input.most then
  target = tonumber(string.match(entries[#entries][1], '^%d+'))
end
forget(entries)
call('XTRIM', EVENTS, 'MINID', int(target + 1) .. '-0')
call('XTRIM', DEAD, 'MINID', int(target + 1) .. '-0')
set('evt_ack', target)
return reply(target)
