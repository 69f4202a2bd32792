-- Begins a new incarnation, by the hub's verdict: only what holds a lease stays, and is to be reported again.
-- input: incarnation; a lower one than the present, or the same again, has no effect

local function drop_tenant(tenant)
  call('UNLINK', unpack(ready_keys(tenant)))
end

local function drop_waiting()
  for _, agent in ipairs(call('HKEYS', GENS)) do
    local entry = load(agent)
    if is_leased(entry) then
      entry.life.state = 'leased'
      save(entry)
    else
      call('UNLINK', ENTRY .. agent)
      call('HDEL', GENS, agent)
    end
  end
end

if input.incarnation > meta.incarnation then
  drop_waiting()
  for _, tenant in ipairs(call('ZRANGE', ACTIVE, 0, -1)) do
    drop_tenant(tenant)
  end
  call('UNLINK', ACTIVE, IDLE, DELAYED, DEADLINES, INBOX, CLOSED, EQUIVOCATED, EVENTS, DEAD, unpack(living_pasts()))
  set('incarnation', input.incarnation)
  set('seq', 0)
  set('evt_ack', 0)
end
return reply(true)
