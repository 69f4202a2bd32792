"""What hub and spoke must agree on, and nothing else.

Here live the envelope, the messages, the lifecycle table and the few services both daemons stand on.
What only one side needs belongs to that side; `shared` imports neither.
"""
