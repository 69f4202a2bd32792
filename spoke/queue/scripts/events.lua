-- input: after, count; more strings: the packed events with a higher seq, ascending

local packed = {}
for i, stored_event in ipairs(call('XRANGE', EVENTS, '(' .. int(input.after) .. '-0', '+', 'COUNT', input.count)) do
  packed[i] = stored_event[2][2]
end
return reply(#packed, packed)
