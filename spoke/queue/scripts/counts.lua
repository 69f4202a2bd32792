-- result: how many entries are in which state, and the dead letters that the hub has not acknowledged

local running, retrying = call('ZCARD', LEASED), call('ZCARD', DELAYED)
return reply({
  queued = call('HLEN', GENS) - running - retrying, running = running, retrying = retrying, dead = call('XLEN', DEAD),
})
