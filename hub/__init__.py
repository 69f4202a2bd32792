"""The control plane: REST in front, the truth in SQL, signed commands out, signed facts in.

Here belongs what only the hub needs. It never imports the spoke: what both must agree on is in `shared`.
"""
