"""One spoke's local queue: what was accepted, whose turn it is, and what the hub must still be told.

Here live the inbox, the queue, the leases and the outbox of events, all in one Valkey or Redis and moved only by the
Lua scripts beside this file: every move is atomic on the server, since two leasing loops cannot be reasoned about in
Python. This package is the one door to Redis. It knows commands and events, never envelopes, signatures, sandboxes or
NATS; what must survive the loss of Valkey is `spoke.state`'s.
"""
