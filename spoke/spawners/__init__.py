"""Isolated places for attempts: one contract (`base`), one driver per way to isolate.

    bubblewrap   namespaces, cgroups, sized tmpfs: the default on Linux
    process      nothing but a process: development and macOS
    simulated    only pretends: load tests

Here belongs how a sandbox is made, found again, watched and ended. Here does not belong what is durable about it
(`spoke.state`), when it is started or killed (`spoke.work`), or whether the site allows it (`spoke.core`). Drivers do
not know each other; what two of them need is a module of its own.
"""
