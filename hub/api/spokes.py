"""Spokes as the hub sees them."""

from typing import Final

from litestar.types import ASGIApp
from sqlalchemy import Connection

from hub.api.operation import Segment, TheHub, operation, reply
from hub.api.views import spoke_view
from hub.control.hub import Hub
from hub.schemas import SpokesView, SpokeView
from hub.store import placements, spokes
from hub.store.spokes import Spoke


@operation("GET", "/v1/spokes", gives={200: SpokesView})
async def list_spokes(hub: TheHub) -> ASGIApp:
    """List the spokes: capacity, credit, labels, what their hosts lack, and how old that is."""
    return reply(SpokesView(spokes=spoke_views(hub)))


@operation("GET", "/v1/spokes/{spoke_id:str}", gives={200: SpokeView}, problems=(404,))
async def show_spoke(hub: TheHub, spoke_id: Segment) -> ASGIApp:
    """Show one spoke."""

    def query(connection: Connection) -> SpokeView:
        spoke = spokes.find(connection, spoke_id)
        return _view(hub, spoke, placements.unfinished(connection).get(spoke_id, 0))

    return reply(hub.reader.run(query))


def spoke_views(hub: Hub) -> list[SpokeView]:
    """Return all spokes, by name."""

    def query(connection: Connection) -> list[SpokeView]:
        unfinished = placements.unfinished(connection)
        return [_view(hub, spoke, unfinished.get(spoke.id, 0)) for spoke in spokes.all(connection)]

    return hub.reader.run(query)


def _view(hub: Hub, spoke: Spoke, unfinished: int) -> SpokeView:
    suspect_ms = round(hub.settings.timing.suspect_s * 1000)
    return spoke_view(
        spoke, unfinished=unfinished, is_online=spoke.is_online(hub.now_ms(), suspect_ms)
    )


HANDLERS: Final = (list_spokes, show_spoke)
