-- Says that attempts run. A second time has no effect, a stale fence neither.
-- input: notes; result: per note whether it is current

local results = {}
for i, note in ipairs(input) do
  local entry = noted(note)
  if entry and entry.life.state ~= 'running' then
    enter(entry, 'running')
    entry.life.ran = true
    save(entry)
    fact('running', entry, '')
  end
  results[i] = entry ~= nil
end
return reply(results)
