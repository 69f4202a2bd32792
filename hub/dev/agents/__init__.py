"""The programs that the demo spawns as agents: real work, standard library only, started by path in a sandbox.

Belongs here: whole small programs that read `/src` or `$FELLOE_INPUT` and write to stdout. They import nothing of
Felloe, as an agent of any other author would.
"""
