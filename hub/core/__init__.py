"""The hub's decisions: may it enter, where should it run. Pure: no I/O and no clock, `now_ms` comes in."""
