"""From bytes on NATS to the queue: what the hub says is verified, judged, and taken in, or refused by name.

Nothing here starts or ends anything by itself; it tells `spoke.work` what the queue has decided.
"""
