"""What makes attempts happen: leasing, supervising, recovering, and showing their output.

Everything that decides is in `spoke.core`; everything durable in `spoke.queue` and `spoke.state`; what a sandbox is
knows `spoke.spawners`. Nothing here talks to the hub but the channel to its readers.
"""
