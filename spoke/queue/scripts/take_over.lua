-- Gives the queue to a new daemon: the epoch rises, and everything older is fenced out.
-- input: host, epoch (at least), incarnation (of a queue without contents)
-- result: what is found; another `host` owns the queue where it is not the one that asked, and nothing changed

local owner = call('HGET', META, 'host') or input.host
if owner == input.host then
  if is_new then
    set('incarnation', input.incarnation)
    call('HSET', META, 'host', owner)
  end
  set('epoch', math.max(input.epoch, meta.epoch + 1))
  set('fence', meta.epoch * 2 ^ 32)
end
return reply({
  host = owner, epoch = meta.epoch, incarnation = meta.incarnation, head_seq = meta.seq, evt_ack = meta.evt_ack,
  rev = meta.rev, paused = meta.paused == 1, cordoned = meta.cordoned == 1, fence = meta.fence,
})
