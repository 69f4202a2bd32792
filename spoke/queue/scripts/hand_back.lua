-- Returns attempts that are proven never to have run: back to their place, and not counted.
-- input: notes; result: per note whether it was current

local function hand_back(entry)
  if entry.life.kill then
    close(entry, 'killed', entry.life.kill.reason)
    return
  end
  call('ZREM', LEASED, entry.agent)
  enter(entry, 'queued')
  entry.life.attempt = entry.life.attempt - 1
  save(entry)
  make_ready(entry)
  watch_deadline(entry)
  set('newest', now)
end

local results = {}
for i, note in ipairs(input) do
  local entry = noted(note)
  if entry then
    hand_back(entry)
  end
  results[i] = entry ~= nil
end
return reply(results)
