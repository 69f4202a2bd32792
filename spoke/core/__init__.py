"""Pure decisions of a spoke: what an attempt does next, what may start here, what the site owner allows.

No I/O, no clock, no chance: times and random numbers come in with the events. What touches the world is in
`spoke.work`, `spoke.intake` and `spoke.report`.
"""
