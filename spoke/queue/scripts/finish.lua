-- Ends attempts: with an outcome, or to be tried again at `retry_at`. Only with the current fence.
-- input: ends; result: per end whether it was current

local function retry(entry, e)
  call('ZREM', LEASED, entry.agent)
  call('ZADD', DELAYED, int(e.retry_at), entry.agent)
  watch_deadline(entry)
  enter(entry, 'retrying')
  entry.life.retries = entry.life.retries + 1
  save(entry)
  fact('retrying', entry, e.reason, { exit = e.exit, retry_at = e.retry_at })
end

local function finish(entry, e)
  if e.kind ~= 'retrying' then
    local packed, seq = close(entry, e.kind, e.reason, e.exit)
    if e.dead then
      call('XADD', DEAD, int(seq) .. '-0', 'e', packed)
    end
  elseif entry.life.kill then
    close(entry, 'killed', entry.life.kill.reason, e.exit) -- the kill came while the daemon decided: it is certain
  else
    retry(entry, e)
  end
end

local agents, results = {}, {}
for i, e in ipairs(input) do
  agents[i] = e.agent
end
read_marks(agents)
for i, e in ipairs(input) do
  local entry = noted(e)
  if entry then
    finish(entry, e)
  end
  results[i] = entry ~= nil
end
return reply(results)
