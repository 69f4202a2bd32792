"""What the spoke makes of acknowledgements: events go only when the hub really has them."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.bus import Bus
from shared.clock import now_ms
from shared.messages import Offer, SandboxKind
from shared.signers import KeySigner
from spoke.core.standing import Identity, Standing, Wanted
from spoke.queue.queue import Queue
from spoke.report.link import Link
from spoke.report.outbox import Outbox
from spoke.state.folder import StateFolder
from tests.helpers.hub_peer import HubPeer, agent_spec, spawn
from tests.helpers.valkey import ValkeyServer, new_spoke, running_valkey, trusted

OFFER = Offer(
    slots=1, prefetch=1, cap=1, kinds=(SandboxKind.SIMULATED,), mounts=(), labels={}, lacks=(), policy="", version="",
)  # fmt: skip


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        yield server


@pytest.fixture
async def queue(valkey: ValkeyServer) -> AsyncIterator[Queue]:
    """A queue with three events that no hub has."""
    queue = await Queue.open(valkey.url, new_spoke(), allow_volatile=False)
    await queue.take_over(host="here", epoch=1, incarnation=1, now_ms=now_ms())
    spawns = [trusted(spawn(agent_spec())) for _ in range(3)]
    await queue.intake(spawns, refused={}, full=False, cap=10, now_ms=now_ms())
    yield queue
    await queue.close()


@pytest.fixture
def outbox(queue: Queue, tmp_path: Path) -> Iterator[Outbox]:
    HubPeer.make_keys(tmp_path)
    signer = KeySigner.from_file(tmp_path / "zurich.key", "spoke")
    hub = KeySigner.from_file(tmp_path / "hub.key", "hub")
    identity = Identity(spoke="zurich", hub="hub", signer=signer, hub_key=hub.public)
    standing = Standing(
        identity, incarnation=1, newest_ms=0, wanted=Wanted(rev=0, paused=False, cordoned=False)
    )
    state = StateFolder.open(tmp_path / "state")
    link = Link(Bus("nowhere"), standing, now_ms)
    yield Outbox(
        queue=queue, journal=state.journal, standing=standing, link=link, offer=OFFER, now=now_ms
    )
    state.close()


async def test_what_the_hub_has_goes(queue: Queue, outbox: Outbox) -> None:
    await outbox.acknowledge(2)
    assert [event.seq for event in await queue.events(0, 10)] == [3]


async def test_an_acknowledgement_of_events_that_were_never_said_drops_none(
    queue: Queue, outbox: Outbox
) -> None:
    """As one of an older incarnation, that was on its way while the new one began."""
    await outbox.acknowledge(1_000)
    assert [event.seq for event in await queue.events(0, 10)] == [1, 2, 3]
    await outbox.acknowledge(3)
    assert await queue.events(0, 10) == []
