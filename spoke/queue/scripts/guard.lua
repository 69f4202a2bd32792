-- Refuses whoever does not own the queue any more, before anything is written. Not in front of `take_over`.

if is_new then
  return redis.error_reply('FENCED the queue has lost its contents')
end
if meta.epoch ~= tonumber(ARGV[1]) then
  return redis.error_reply('FENCED epoch ' .. int(meta.epoch) .. ' owns the queue, not ' .. ARGV[1])
end
if meta.incarnation == tonumber(ARGV[2]) and meta.seq < tonumber(ARGV[3]) then
  return redis.error_reply('FENCED the queue went back to event ' .. int(meta.seq) .. ', known is ' .. ARGV[3])
end
