-- result: agent → generation, of everything that is not closed, as a flat list

return reply(call('HGETALL', GENS))
