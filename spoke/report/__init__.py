"""What the spoke says by itself: hello, events, heartbeats, always as requests that the hub answers signed.

Answers to what a reader asked (Status, Tail) are not here but in `spoke.work.channel`.
"""
