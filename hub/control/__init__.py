"""The use cases, in the order of the main job: spawn, place, dispatch, intake; then what operators ask for.

A use case is a function `(connection, input, now) → (result, nudges)` in one transaction. It never touches the bus:
what to do after the commit is in the nudges. The loops that call them are in `hub.control.loops`.
"""
