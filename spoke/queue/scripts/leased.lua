-- All entries under a lease, by rising fence.
-- result: leases; more strings: their items

local leases, items = {}, {}
for i, agent in ipairs(call('ZRANGE', LEASED, 0, -1)) do
  local entry = load(agent, true)
  leases[i], items[i] = lease_of(entry), entry.item
end
return reply(leases, items)
