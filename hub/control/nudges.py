"""What a use case leaves to be done after its commit: whom to wake. Nudges carry no data: who is woken reads the store.

Losing them loses nothing but time, since every loop also looks by itself.
"""

from collections.abc import Iterable

import msgspec


class Nudges(msgspec.Struct, frozen=True, kw_only=True):
    """Wake placement, the dispatch to these spokes, and who watches these agents."""

    place: bool = False
    spokes: frozenset[str] = frozenset()
    agents: frozenset[str] = frozenset()


NOTHING = Nudges()


def join(all_of: Iterable[Nudges]) -> Nudges:
    """Return the union."""
    found = list(all_of)
    return Nudges(
        place=any(nudges.place for nudges in found),
        spokes=frozenset(spoke for nudges in found for spoke in nudges.spokes),
        agents=frozenset(agent for nudges in found for agent in nudges.agents),
    )
