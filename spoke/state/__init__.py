"""What must survive everything at a site, Valkey included: the state folder.

Here belong the journal (who this spoke is and how far it has come), the handles of attempts, and the spools of
their output. Here does not belong what the queue holds, nor how a sandbox is found again: a handle is opaque bytes
to this package, since spawners are its siblings.
"""
