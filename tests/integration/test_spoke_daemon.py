"""The real daemon, with real NATS, Valkey and bubblewrap, and a hub that does what the test says."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.clock import now_ms
from shared.messages import (
    EventKind,
    ExitKind,
    Limits,
    LogKind,
    Pause,
    Resume,
    SandboxKind,
    Simulation,
    Verdict,
)
from spoke.queue.queue import Queue
from spoke.state.host import host_id
from tests.helpers.hub_peer import HubPeer, agent_spec, kill, spawn, status, stranger, tail
from tests.helpers.spoke_site import Site, rss_bytes, running_site, welcomed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap needs Linux")

Running = tuple[Site, HubPeer]
E_ = EventKind


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_site(tmp_path) as both:
        yield both


def shell(script: str, **changes: object):
    return spawn(agent_spec("sh", "-c", script, **changes))


def wanted(kind: type[Pause | Resume], rev: int) -> Pause | Resume:
    like = kill("0" * 8)
    return kind(id=like.id, actor="test", tenant="default", trace="", rev=rev)


# --- the main job --------------------------------------------------------------------------------


async def test_an_agent_is_queued_runs_and_succeeds(running: Running) -> None:
    _, hub = running
    one = shell("echo hello; exit 0")
    await hub.send(one)
    end = await hub.event(one.agent)
    assert hub.kinds(one.agent) == [E_.QUEUED, E_.RUNNING, E_.SUCCEEDED]
    assert end.exit is not None
    assert (end.exit.kind, end.exit.code, end.attempt) == (ExitKind.EXITED, 0, 1)
    assert end.cmd == one.id


async def test_a_missing_command_fails_at_once_and_says_so(running: Running) -> None:
    _, hub = running
    one = spawn(agent_spec("no-such-program", max_retries=3))
    await hub.send(one)
    end = await hub.event(one.agent)
    assert (end.kind, end.reason) == (E_.FAILED, "command not found: no-such-program")


async def test_an_agent_that_ignores_sigterm_is_killed_after_its_grace(running: Running) -> None:
    _, hub = running
    one = shell("trap '' TERM; echo ready; while :; do sleep 0.1; done", grace_ms=300)
    await hub.send(one)
    await hub.event(one.agent, E_.RUNNING)
    order = kill(one.agent, reason="enough")
    await hub.send(order)
    accepted = await hub.event(one.agent, E_.KILL_ACCEPTED)
    end = await hub.event(one.agent)
    assert accepted.cmd == order.id
    assert (end.kind, end.reason) == (E_.KILLED, "enough")
    assert end.exit is not None
    assert (end.exit.kind, end.exit.signal) == (ExitKind.KILLED, 9)


async def test_a_kill_with_less_grace_shortens_the_first_one(running: Running) -> None:
    _, hub = running
    one = shell("trap '' TERM; while :; do sleep 0.1; done", grace_ms=600_000)
    await hub.send(one)
    await hub.event(one.agent, E_.RUNNING)
    await hub.send(kill(one.agent))
    await hub.event(one.agent, E_.KILL_ACCEPTED)
    await hub.send(kill(one.agent, grace_ms=0))
    assert (await hub.event(one.agent)).kind is E_.KILLED


async def test_a_kill_that_overtakes_its_spawn_leaves_a_tombstone(running: Running) -> None:
    _, hub = running
    one = shell("exit 0")
    await hub.send(kill(one.agent))
    assert (await hub.event(one.agent)).kind is E_.KILLED
    await hub.send(one)
    await hub.wait_for(lambda h: any(e.cmd == one.id for e in h.events), "answer to the spawn")
    assert E_.QUEUED not in hub.kinds(one.agent)


async def test_an_agent_that_takes_too_long_is_timed_out(running: Running) -> None:
    _, hub = running
    one = shell("sleep 60", timeout_ms=200, grace_ms=200)
    await hub.send(one)
    end = await hub.event(one.agent)
    assert (end.kind, end.reason) == (E_.FAILED, "timed out after 0.2 s")


async def test_a_failing_agent_is_retried_and_then_a_dead_letter(running: Running) -> None:
    _, hub = running
    hub.withholds = True
    one = shell("exit 3", max_retries=1)
    await hub.send(one)
    end = await hub.event(one.agent)
    again = await hub.event(one.agent, E_.RETRYING)
    assert again.retry_at is not None
    assert again.reason == end.reason == "exit code 3"
    assert (end.kind, end.attempt) == (E_.FAILED, 2)
    await hub.wait_for(lambda h: h.heartbeats[-1].counts.dead == 1, "dead letter")
    hub.withholds = False
    await hub.wait_for(lambda h: h.heartbeats[-1].counts.dead == 0, "trimmed dead letters")


async def test_the_sites_policy_refuses_by_name(running: Running) -> None:
    _, hub = running
    one = spawn(agent_spec("true", sandbox=SandboxKind.PROCESS))
    await hub.send(one)
    end = await hub.event(one.agent)
    assert end.kind is E_.REFUSED
    assert end.reason.startswith("policy: sandbox kind process is not offered here")


async def test_a_paused_spoke_starts_nothing_until_it_is_resumed(running: Running) -> None:
    _, hub = running
    await hub.send(wanted(Pause, 1))
    await hub.wait_for(lambda h: h.heartbeats[-1].paused, "paused heartbeat")
    one = shell("exit 0")
    await hub.send(one)
    await hub.event(one.agent, E_.QUEUED)
    await asyncio.sleep(0.5)
    assert hub.kinds(one.agent) == [E_.QUEUED]
    await hub.send(wanted(Resume, 2))
    assert (await hub.event(one.agent)).kind is E_.SUCCEEDED
    assert hub.heartbeats[-1].rev in (1, 2)


async def test_more_agents_than_slots_all_come_to_an_end(running: Running) -> None:
    _, hub = running
    agents = [spawn(agent_spec(simulation=Simulation(duration_ms=20))) for _ in range(100)]
    await hub.send(*agents)
    for one in agents:
        assert (await hub.event(one.agent)).kind is E_.SUCCEEDED
    assert [event.seq for event in hub.events] == list(range(1, 301))


# --- who may command -------------------------------------------------------------------------------


async def test_a_replayed_envelope_has_no_effect_and_is_counted(running: Running) -> None:
    _, hub = running
    one = shell("exit 0")
    envelope = await hub.send(one)
    await hub.event(one.agent)
    for _ in range(3):
        await hub.send_raw(envelope)
    other = shell("exit 0")
    await hub.send(other)
    await hub.event(other.agent)
    assert hub.kinds(one.agent) == [E_.QUEUED, E_.RUNNING, E_.SUCCEEDED]
    await hub.wait_for(lambda h: h.heartbeats[-1].refusals.get("replayed") == 3, "counted replays")


async def test_what_is_forged_or_altered_has_no_effect_and_is_counted(running: Running) -> None:
    _, hub = running
    one = shell("exit 0")
    good = hub.seal(one)
    await hub.send_raw(hub.seal(one, signer=stranger()))
    await hub.send_raw(hub.seal(one, aud="geneva"))
    await hub.send_raw(hub.seal(one, iat=1_000, exp=2_000))
    await hub.send_raw(hub.seal(one, inc=hub.incarnation + 1))
    future = now_ms() + 120_000
    await hub.send_raw(hub.seal(one, iat=future, exp=future + 1_000))
    await hub.send_raw(good.replace(b".command.", b".event."))
    middle = len(good) // 2
    other = b"A" if good[middle : middle + 1] != b"A" else b"B"
    await hub.send_raw(good[:middle] + other + good[middle + 1 :])
    await hub.send_raw(b"not an envelope")
    names = {
        *("unknown_key", "wrong_audience", "expired", "wrong_incarnation", "from_the_future"),
        *("wrong_type", "not_an_envelope"),
    }
    beat = await hub.wait_for(
        lambda h: next((b for b in h.heartbeats if sum(b.refusals.values()) >= 8), None),
        "heartbeat with the refusals",
    )
    assert names < set(beat.refusals)
    assert beat.refusals.keys() & {"bad_signature", "not_canonical", "malformed"} or (
        beat.refusals["not_an_envelope"] == 2
    )
    assert hub.kinds(one.agent) == []


async def test_an_answer_that_somebody_else_signed_acknowledges_nothing(running: Running) -> None:
    _, hub = running
    hub.answer_signer = stranger()
    one = shell("exit 0")
    await hub.send(one)
    await hub.event(one.agent)
    await hub.wait_for(lambda h: sum(first == 1 for first, _ in h.batches) >= 2, "repeated batch")
    hub.answer_signer = None
    beat = await hub.wait_for(
        lambda h: next((b for b in h.heartbeats if "unknown_key" in b.refusals), None), "refusal"
    )
    assert beat.refusals["unknown_key"] >= 1


# --- trouble -----------------------------------------------------------------------------------------


async def test_a_killed_daemon_leaves_its_agent_running_and_its_successor_reports_the_exit(
    running: Running,
) -> None:
    site, hub = running
    one = shell("echo one; sleep 1.5; echo two; exit 7")
    await hub.send(one)
    await hub.event(one.agent, E_.RUNNING)
    site.kill()
    site.start()
    end = await hub.event(one.agent, timeout_s=15)
    assert (end.kind, end.reason, end.attempt) == (E_.FAILED, "exit code 7", 1)
    assert hub.kinds(one.agent) == [E_.QUEUED, E_.RUNNING, E_.FAILED]


async def test_an_agent_that_ended_while_no_daemon_was_there_is_reported(running: Running) -> None:
    site, hub = running
    one = shell("sleep 0.3; exit 0")
    await hub.send(one)
    await hub.event(one.agent, E_.RUNNING)
    site.kill()
    await asyncio.sleep(0.6)
    site.start()
    assert (await hub.event(one.agent, timeout_s=15)).kind is E_.SUCCEEDED


async def test_a_graceful_stop_leaves_agents_running_and_exits_0(running: Running) -> None:
    site, hub = running
    one = shell("sleep 1.5; exit 0")
    await hub.send(one)
    await hub.event(one.agent, E_.RUNNING)
    assert await site.stop() == 0
    site.start()
    end = await hub.event(one.agent, timeout_s=15)
    assert (end.kind, end.attempt) == (E_.SUCCEEDED, 1)


async def test_a_killed_valkey_that_comes_back_loses_nothing(running: Running) -> None:
    site, hub = running
    agents = [shell("sleep 0.5; exit 0") for _ in range(12)]
    await hub.send(*agents)
    await hub.event(agents[0].agent, E_.RUNNING)
    site.valkey.kill()
    await asyncio.sleep(0.7)
    site.valkey.start()
    for one in agents:
        assert (await hub.event(one.agent, timeout_s=20)).kind is E_.SUCCEEDED
        assert hub.kinds(one.agent).count(E_.SUCCEEDED) == 1


async def test_heartbeats_say_that_valkey_is_away_and_that_it_is_back(running: Running) -> None:
    site, hub = running
    site.valkey.kill()
    await hub.wait_for(lambda h: "Valkey" in h.heartbeats[-1].trouble, "a heartbeat in trouble")
    site.valkey.start()
    await hub.wait_for(lambda h: h.heartbeats[-1].trouble == "", "a heartbeat without trouble")


async def test_a_nats_that_comes_back_finds_everything_reported(running: Running) -> None:
    site, hub = running
    one = shell("sleep 0.5; exit 0")
    await hub.send(one)
    await hub.event(one.agent, E_.RUNNING)
    site.nats.kill()
    await asyncio.sleep(1)
    site.nats.start()
    assert (await hub.event(one.agent, timeout_s=20)).kind is E_.SUCCEEDED
    await hub.wait_for(lambda h: len(h.hellos) >= 2, "second hello")


async def test_daemon_valkey_and_nats_may_start_in_any_order(tmp_path: Path) -> None:
    site = Site(tmp_path)
    hub = None
    try:
        site.start()
        await site.said("valkey_away")
        site.valkey.start()
        await site.said("nats_error")
        site.nats.start()
        hub = await HubPeer.open(site.nats.url, tmp_path)
        await welcomed(site, hub)
        one = shell("exit 0")
        await hub.send(one)
        assert (await hub.event(one.agent)).kind is E_.SUCCEEDED
    finally:
        if hub is not None:
            await hub.close()
        site.close()


async def test_a_daemon_that_still_waits_can_be_stopped(tmp_path: Path) -> None:
    site = Site(tmp_path)
    try:
        site.start()
        await site.said("valkey_away")
        assert await site.stop() == 0
        site.valkey.start()
        site.start()
        await site.said("nats_error")
        assert await site.stop() == 0
    finally:
        site.close()


async def test_a_new_incarnation_keeps_what_runs_and_says_it_again(running: Running) -> None:
    site, hub = running
    one = shell("sleep 3; exit 0")
    await hub.send(one)
    await hub.event(one.agent, E_.RUNNING)
    hub.verdict = Verdict.NEW_INCARNATION
    before, inc = len(hub.events), hub.incarnation
    site.nats.kill()
    site.nats.start()
    end = await hub.wait_for(
        lambda h: next((e for e in h.events[before:] if e.kind is E_.SUCCEEDED), None),
        "success in the new incarnation",
        timeout_s=20,
    )
    assert hub.incarnation == inc + 1
    assert end.agent == one.agent
    assert [e.kind for e in hub.events[before:]] == [E_.RUNNING, E_.SUCCEEDED]


async def test_a_daemon_that_was_replaced_stops_and_says_so(running: Running) -> None:
    site, hub = running
    one = shell("sleep 2; exit 0")
    await hub.send(one)
    await hub.event(one.agent, E_.RUNNING)
    queue = await Queue.open(site.valkey.url, "zurich", allow_volatile=False)
    try:
        host = host_id(site.folder / "state")
        await queue.take_over(host=host, epoch=1, incarnation=1, now_ms=now_ms())
    finally:
        await queue.close()
    assert site.process is not None
    assert await asyncio.to_thread(site.process.wait, 10) == 125
    assert "epoch 2 owns the queue" in site.log
    site.start()
    end = await hub.event(one.agent, timeout_s=15)
    assert (end.kind, end.attempt) == (E_.SUCCEEDED, 1)


async def test_a_second_daemon_on_the_same_folder_is_told_who_has_it(running: Running) -> None:
    site, _ = running
    refused = await asyncio.to_thread(site.ask, "destroy")
    assert refused.returncode == 125
    assert "in use by pid" in refused.stderr


# --- readers -------------------------------------------------------------------------------------------


async def test_a_tail_follows_from_the_start_to_the_end(running: Running) -> None:
    _, hub = running
    one = shell("for i in 1 2 3 4 5; do echo line $i; sleep 0.1; done")
    await hub.send(one)
    await hub.event(one.agent, E_.QUEUED)
    await hub.send(tail(one.agent))
    await hub.wait_for(lambda h: any(c.kind is LogKind.END for c in h.chunks), "end")
    assert hub.output(one.agent) == b"".join(b"line %d\n" % i for i in range(1, 6))
    assert [c.kind for c in hub.chunks][-2:] == [LogKind.ATTEMPT_END, LogKind.END]
    assert len([c for c in hub.chunks if c.kind is LogKind.DATA]) > 2


async def test_a_late_reader_gets_all_of_every_attempt(running: Running) -> None:
    _, hub = running
    one = shell("echo try; seq 1 20000; exit 1", max_retries=1)
    await hub.send(one)
    await hub.event(one.agent)
    await hub.send(tail(one.agent))
    await hub.wait_for(lambda h: any(c.kind is LogKind.END for c in h.chunks), "end")
    expected = b"try\n" + b"".join(b"%d\n" % i for i in range(1, 20001))
    assert hub.output(one.agent) == expected * 2
    ends = [c.attempt for c in hub.chunks if c.kind is LogKind.ATTEMPT_END]
    assert ends == [1, 2]
    offsets = [(c.attempt, c.offset) for c in hub.chunks if c.kind is LogKind.DATA]
    assert offsets == sorted(offsets)


async def test_a_reader_that_comes_back_goes_on_where_it_was(running: Running) -> None:
    _, hub = running
    one = shell("printf 0123456789")
    await hub.send(one)
    await hub.event(one.agent)
    await hub.send(tail(one.agent, offset=4))
    await hub.wait_for(lambda h: any(c.kind is LogKind.END for c in h.chunks), "end")
    assert hub.output(one.agent) == b"456789"


async def test_a_tail_that_is_not_renewed_ends(running: Running) -> None:
    _, hub = running
    one = shell("while :; do echo tick; sleep 0.05; done")
    await hub.send(one)
    await hub.event(one.agent, E_.RUNNING)
    look = tail(one.agent, lease_ms=400)
    await hub.send(look)
    await hub.wait_for(lambda h: h.output(one.agent), "output")
    await hub.send(look)
    await asyncio.sleep(1.0)
    seen = len(hub.chunks)
    await asyncio.sleep(0.4)
    assert len(hub.chunks) == seen
    await hub.send(kill(one.agent, grace_ms=0))
    await hub.event(one.agent)


async def test_output_beyond_the_cap_is_a_declared_gap(running: Running) -> None:
    _, hub = running
    one = shell("head -c 15000 /dev/zero | tr '\\0' x", limits=Limits(output_bytes=10_000))
    await hub.send(one)
    assert (await hub.event(one.agent)).kind is E_.SUCCEEDED
    await hub.send(tail(one.agent))
    await hub.wait_for(lambda h: any(c.kind is LogKind.END for c in h.chunks), "end")
    gap = next(c for c in hub.chunks if c.kind is LogKind.GAP)
    assert len(hub.output(one.agent)) == 10_000
    assert (gap.reason, gap.offset, gap.length) == ("output_cap", 10_000, 5_000)


async def test_a_truncated_spool_is_a_declared_gap(running: Running) -> None:
    site, hub = running
    one = shell("printf 0123456789")
    await hub.send(one)
    await hub.event(one.agent)
    (spool,) = (site.folder / "state" / "spools" / one.agent).rglob("out")
    spool.write_bytes(b"0123")
    await hub.send(tail(one.agent, offset=8))
    await hub.wait_for(lambda h: any(c.kind is LogKind.END for c in h.chunks), "end")
    gap = hub.chunks[0]
    assert (gap.kind, gap.reason, gap.offset, gap.length) == (LogKind.GAP, "truncated", 4, 4)


async def test_a_tail_of_an_unknown_agent_ends_at_once(running: Running) -> None:
    _, hub = running
    one = shell("exit 0")
    await hub.send(tail(one.agent))
    end = await hub.wait_for(lambda h: h.chunks[-1] if h.chunks else None, "end")
    assert (end.kind, end.reason) == (LogKind.END, "unknown")


async def test_a_status_is_what_the_spoke_itself_knows(running: Running) -> None:
    _, hub = running
    one = shell("echo hello; sleep 60")
    await hub.send(one)
    await hub.event(one.agent, E_.RUNNING)
    await asyncio.sleep(0.2)
    await hub.send(status(one.agent), status(shell("").agent))
    await hub.wait_for(lambda h: len(h.replies) == 2, "replies")
    known = next(reply for reply in hub.replies if reply.agent == one.agent)
    unknown = next(reply for reply in hub.replies if reply.agent != one.agent)
    assert (known.known, known.state, known.attempt, known.output_bytes) == (True, "running", 1, 6)
    assert known.processes >= 1
    assert (unknown.known, unknown.state) == (False, "")
    await hub.send(kill(one.agent, grace_ms=0))
    await hub.event(one.agent)


# --- the site owner's commands ----------------------------------------------------------------------------


async def test_doctor_says_what_can_be_reached_and_what_this_host_lacks(running: Running) -> None:
    site, _ = running
    asked = await asyncio.to_thread(site.ask, "doctor", "--json")
    found = {finding["check"]: finding for finding in json.loads(asked.stdout)}
    assert asked.returncode == 0, asked.stderr
    assert found.keys() == {"keys", "state", "sandboxes", "queue", "nats"}
    assert found["sandboxes"]["lacks"]
    site.nats.kill()
    asked = await asyncio.to_thread(site.ask, "doctor", "--json")
    found = {finding["check"]: finding for finding in json.loads(asked.stdout)}
    assert asked.returncode == 1
    assert not found["nats"]["ok"]
    assert found["queue"]["ok"]


async def test_destroy_ends_what_a_dead_daemon_left(running: Running) -> None:
    site, hub = running
    one = shell("sleep 60")
    await hub.send(one)
    await hub.event(one.agent, E_.RUNNING)
    site.kill()
    ended = await asyncio.to_thread(site.ask, "destroy", "--json")
    assert [key["agent"] for key in json.loads(ended.stdout)] == [one.agent]
    again = await asyncio.to_thread(site.ask, "destroy", "--json")
    assert json.loads(again.stdout) == []


async def test_wrong_settings_are_one_clear_line(tmp_path: Path) -> None:
    site = Site(tmp_path, spoke={"slots": 0})
    refused = await asyncio.to_thread(site.ask, "run")
    assert refused.returncode == 125
    assert "slots" in refused.stderr
    site.valkey.close()


async def test_an_idle_daemon_is_small(running: Running) -> None:
    site, hub = running
    one = shell("exit 0")
    await hub.send(one)
    await hub.event(one.agent)
    assert site.process is not None
    assert rss_bytes(site.process.pid) < 80 * 1024**2
