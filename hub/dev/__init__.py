"""The embedded stack: everything Felloe needs, as child processes on loopback, for one person at one machine.

Belongs here: finding and starting `nats-server`, a `valkey-server` per spoke, the hub and the spokes; their settings
and keys; the guarantee that nothing is left running; and what stands on such a stack: `demo`, `up`, `bench`.
Does not belong here: anything the hub itself needs at run time. Spokes are started as `python -m spoke`, never
imported; what the demo does to the hub it does over HTTP, as any client would.
"""
