"""A whole hub with a real NATS server and a scripted spoke: the main job, restarts, links that break, strangers, liars."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hub.config import HubSettings
from hub.control import operate
from hub.control.hub import Hub
from hub.store import agents, audit
from hub.store.agents import Agent
from shared import subjects
from shared.errors import ConfigError, UnavailableError
from shared.ids import sha256
from shared.keys import read_public_key
from shared.lifecycle import State
from shared.messages import EventKind, Kill, Pause, Spawn
from shared.signers import KeySigner
from tests.helpers.builders import STRANGER, payload_in
from tests.helpers.hubs import greeted, hub_public, hub_settings, order, peer_of, pin, until
from tests.helpers.spoke_peer import SpokePeer
from tests.helpers.spoke_site import NatsServer


@asynccontextmanager
async def nats(folder: Path, *, starts: bool = True) -> AsyncIterator[NatsServer]:
    server = NatsServer(folder)
    try:
        if starts:
            server.start()
        yield server
    finally:
        server.kill()


@asynccontextmanager
async def wheel(folder: Path) -> AsyncIterator[tuple[Hub, SpokePeer]]:
    """NATS, a hub, and the spoke `zurich` that it has welcomed."""
    async with nats(folder) as server:
        settings = hub_settings(folder, server.url, "zurich")
        async with Hub.open(settings) as hub, peer_of(settings) as zurich:
            yield hub, await greeted(hub, zurich)


async def spawn(hub: Hub, **changes: Any) -> str:
    (result,) = await hub.spawn([order(**changes)])
    return result.agent.id


def look(hub: Hub, agent: str) -> Agent:
    return hub.reader.run(lambda c: agents.find(c, "default", agent))


async def kill(hub: Hub, agent: str) -> None:
    await hub.do(
        lambda c, now_ms: operate.kill(
            c, "default", agent, actor="tester", grace_ms=None, reason="", now_ms=now_ms
        )
    )


def refused(hub: Hub, why: str) -> bool:
    return f'felloe_refusals_total{{refusal="{why}"}}'.encode() in hub.metrics_text()


# --- the main job ------------------------------------------------------------------------------------


async def test_an_agent_is_spawned_placed_sent_and_succeeds(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        agent = await spawn(hub)
        command = await zurich.next_command()
        assert isinstance(command.item, Spawn)
        assert command.item.agent == agent
        with hub.changed(agent) as changed:
            answer = await zurich.ask(zurich.succeeded(command))
            async with asyncio.timeout(2):
                await changed.wait()
        assert answer.header.evt_ack == 3
        assert look(hub, agent).state is State.SUCCEEDED
        assert hub.reader.run(lambda c: audit.first_break(c, "hub")) is None
        assert hub.health() == dict.fromkeys(hub.health(), "ok")


async def test_every_envelope_is_counted_whichever_loop_sent_it(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        agent = await spawn(hub)
        await zurich.next_command()
        await kill(hub, agent)
        await zurich.next_command()
        sent = len(zurich.envelopes)
        assert f"felloe_command_envelopes_total {sent}.0".encode() in hub.metrics_text()


async def test_the_next_command_carries_what_was_acknowledged(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        await spawn(hub)
        await zurich.ask(zurich.succeeded(await zurich.next_command()))
        await spawn(hub)
        await zurich.next_command()
        assert b'"evt_ack":3' in payload_in(zurich.envelopes[-1])


async def test_a_kill_is_sent_and_confirmed(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        agent = await spawn(hub)
        command = await zurich.next_command()
        await kill(hub, agent)
        order_ = await zurich.next_command()
        assert isinstance(order_.item, Kill)
        accepted = zurich.event(EventKind.KILL_ACCEPTED, order_)
        await zurich.ask([accepted, zurich.event(EventKind.KILLED, command)])
        found = look(hub, agent)
        assert found.state is State.KILLED
        assert None not in (found.kill_accepted_ms, found.kill_confirmed_ms)


async def test_a_command_is_sent_again_until_it_is_accepted(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        await spawn(hub)
        first, again = await zurich.next_command(), await zurich.next_command()
        assert (first.item.id, first.sha256) == (again.item.id, again.sha256)
        await zurich.ask([zurich.event(EventKind.QUEUED, again)])
        await asyncio.sleep(2.3)
        assert zurich.commands.empty()


async def test_a_thousand_orders_by_many_callers_each_get_their_own(tmp_path: Path):
    async with wheel(tmp_path) as (hub, _):
        results = await asyncio.gather(
            *(hub.spawn([order(key=f"{n}-{m}") for m in range(n % 3 + 1)]) for n in range(500))
        )
        keys = [[result.agent.idempotency_key for result in mine] for mine in results]
        assert keys == [[f"{n}-{m}" for m in range(n % 3 + 1)] for n in range(500)]


# --- links that break --------------------------------------------------------------------------------


async def test_nats_may_come_later_and_health_says_so(tmp_path: Path):
    async with nats(tmp_path, starts=False) as server:
        settings = hub_settings(tmp_path, server.url, "zurich")
        async with Hub.open(settings) as hub:
            agent = await spawn(hub)
            assert "not connected" in hub.health()["nats"]
            assert await hub.ask_status(look(hub, agent)) == (None, "NATS is away")
            pieces = [
                p
                async for p in hub.tail(look(hub, agent), gen=1, attempt=1, offset=0, follow=False)
            ]
            assert [piece.kind for piece in pieces] == ["absent"]
            server.start()
            async with peer_of(settings) as zurich:
                await greeted(hub, zurich)
                assert (await zurich.next_command()).item.agent == agent


async def test_a_hub_ends_while_nats_never_came(tmp_path: Path):
    settings = hub_settings(tmp_path, NatsServer(tmp_path).url)
    async with asyncio.timeout(5), Hub.open(settings):
        await asyncio.sleep(0.1)


async def test_nats_may_go_and_come_back(tmp_path: Path):
    async with nats(tmp_path) as server:
        settings = hub_settings(tmp_path, server.url, "zurich")
        async with Hub.open(settings) as hub, peer_of(settings) as zurich:
            await greeted(hub, zurich)
            server.kill()
            await until(lambda: hub.health()["nats"] != "ok")
            agent = await spawn(hub)
            server.start()
            await until(lambda: hub.health()["nats"] == "ok", seconds=10)
            await greeted(hub, zurich)
            assert (await zurich.next_command()).item.agent == agent


async def test_a_hub_that_is_opened_again_goes_on_where_it_was(tmp_path: Path):
    async with nats(tmp_path) as server:
        settings = hub_settings(tmp_path, server.url, "zurich")
        async with peer_of(settings) as zurich:
            async with Hub.open(settings) as hub:
                await greeted(hub, zurich)
                agent = await spawn(hub, key="k")
                command = await zurich.next_command()
                await zurich.ask([zurich.event(EventKind.QUEUED, command)])
            with pytest.raises(UnavailableError):
                await zurich.hello()
            async with Hub.open(settings) as hub:
                await greeted(hub, zurich)
                assert (zurich.incarnation, zurich.seq) == (1, 1)
                assert await spawn(hub, key="k") == agent
                ack = await zurich.ask([zurich.event(EventKind.SUCCEEDED, command)])
                assert ack.header.evt_ack == 2
                assert look(hub, agent).state is State.SUCCEEDED
                assert hub.reader.run(lambda c: audit.first_break(c, "hub")) is None


async def test_a_second_hub_on_the_same_database_does_not_start(tmp_path: Path):
    async with wheel(tmp_path) as (hub, _):
        with pytest.raises(ConfigError, match="another hub"):
            async with Hub.open(hub.settings):
                pass


async def test_a_hub_that_could_not_open_leaves_no_lock_behind(tmp_path: Path):
    async with nats(tmp_path) as server:
        settings = hub_settings(tmp_path, server.url)
        settings.database.file.write_bytes(b"this is no database" * 100)
        for _ in range(2):
            with pytest.raises(Exception, match="not a database"):
                async with Hub.open(settings):
                    pass
        settings.database.file.unlink()
        async with Hub.open(settings) as hub:
            assert await spawn(hub)


async def test_what_is_asked_of_a_hub_that_stopped_is_unavailable(tmp_path: Path):
    async with wheel(tmp_path) as (hub, _):
        kept = hub
    assert kept.stopping.is_set()
    async with asyncio.timeout(2):
        with pytest.raises(UnavailableError):
            await spawn(kept)


async def test_a_hub_stops_while_spokes_talk_without_end(tmp_path: Path):
    async with nats(tmp_path) as server:
        names = [f"site-{n}" for n in range(8)]
        settings = hub_settings(tmp_path, server.url, *names)

        async def chatter(zurich: SpokePeer) -> None:
            while True:
                try:
                    await zurich.hello()
                    await zurich.heartbeat()
                except UnavailableError:
                    await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as tasks, peer_of(settings, names[0]) as first:
            peers = [
                SpokePeer(first.bus, n, _signer(settings, n), _hub_key(settings)) for n in names
            ]
            talking = [tasks.create_task(chatter(peer)) for peer in peers]
            async with asyncio.timeout(15):
                for _ in range(3):
                    async with Hub.open(settings) as hub:
                        await until(lambda hub=hub: hub.health()["nats"] == "ok")
                        await asyncio.sleep(0.2)
            for task in talking:
                task.cancel()


def _signer(settings: HubSettings, name: str) -> Any:
    return KeySigner.from_file(settings.keys.hub.parent / f"{name}.key", "spoke")


def _hub_key(settings: HubSettings) -> Any:
    return read_public_key(hub_public(settings), "hub")


# --- strangers and liars -----------------------------------------------------------------------------


async def test_an_unknown_spoke_gets_no_answer_until_its_key_is_pinned(tmp_path: Path):
    async with nats(tmp_path) as server:
        settings = hub_settings(tmp_path, server.url)
        async with Hub.open(settings) as hub:
            for name in ("geneva", "zurich"):
                (tmp_path / "elsewhere" / "spokes").mkdir(parents=True, exist_ok=True)
                pin(tmp_path / "elsewhere", name).rename(tmp_path / f"{name}.key")
            async with (
                peer_of(settings, "geneva") as geneva,
                peer_of(settings, "zurich") as zurich,
            ):
                await until(lambda: hub.health()["nats"] == "ok")
                zurich.timeout_s = 0.3
                with pytest.raises(UnavailableError):
                    await zurich.hello()
                # Both keys at once: each is admitted, whoever speaks first.
                for name in ("geneva", "zurich"):
                    (tmp_path / "elsewhere" / "spokes" / f"{name}.pub").rename(
                        tmp_path / "spokes" / f"{name}.pub"
                    )
                await asyncio.sleep(1)
                await greeted(hub, zurich)
                await greeted(hub, geneva)


async def test_forged_reports_are_counted_and_change_nothing(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        agent = await spawn(hub)
        command = await zurich.next_command()
        own, zurich.signer = zurich.signer, STRANGER
        batch = zurich.succeeded(command)
        zurich.timeout_s = 0.3
        with pytest.raises(UnavailableError):
            await zurich.ask(batch)
        assert look(hub, agent).state is State.PLACED
        assert refused(hub, "unknown_key")
        zurich.signer = own
        await zurich.bus.publish(subjects.reports("zurich"), b"rubbish")
        await until(lambda: refused(hub, "not_an_envelope"))
        assert (await zurich.ask(batch)).header.evt_ack == 3


async def test_a_report_of_one_spoke_on_the_subject_of_another_is_refused(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        pin(tmp_path, "geneva")
        zurich.name, zurich.timeout_s = "geneva", 0.3
        with pytest.raises(UnavailableError):
            await zurich.heartbeat()
        assert refused(hub, "unknown_key")


# --- loops -------------------------------------------------------------------------------------------


async def test_a_fault_of_ours_at_one_moment_does_not_end_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with wheel(tmp_path) as (hub, zurich):
        with capture_logs() as lines, monkeypatch.context() as broken:
            broken.setattr("hub.control.place.fleet", lambda *_: 1 / 0)
            agent = await spawn(hub)
            await until(lambda: any(line["event"] == "placement_failed" for line in lines))
        assert (await zurich.next_command()).item.agent == agent


async def test_a_pause_reaches_the_spoke_and_a_resume_lets_agents_through(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        await hub.do(lambda c, now_ms: operate.pause(c, "zurich", actor="me", now_ms=now_ms))
        pause = await zurich.next_command()
        assert isinstance(pause.item, Pause)
        await zurich.ask([zurich.event(EventKind.APPLIED, pause)])
        agent = await spawn(hub)
        assert hub.explain(look(hub, agent)) == "zurich: its queue is paused"
        await hub.do(partial(_resume, spoke="zurich"))
        got = {
            type(command.item).__name__
            for command in [await zurich.next_command(), await zurich.next_command()]
        }
        assert got == {"Resume", "Spawn"}


def _resume(c: Any, now_ms: int, *, spoke: str) -> Any:
    return operate.resume(c, spoke, actor="me", now_ms=now_ms)


async def test_what_was_published_is_kept_as_proof(tmp_path: Path):
    async with wheel(tmp_path) as (hub, zurich):
        await spawn(hub)
        await zurich.next_command()
        proofs = hub.reader.run(
            lambda c: {row[0] for row in c.exec_driver_sql("SELECT sha256 FROM sent")}
        )
        assert {sha256(envelope) for envelope in zurich.envelopes} <= proofs
