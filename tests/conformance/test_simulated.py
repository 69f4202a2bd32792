"""What `simulated` promises beyond the contract: it costs next to nothing, and can be repeated."""

import asyncio
from pathlib import Path

import msgspec

from shared.messages import Exit, ExitKind, SandboxKind, Simulation
from spoke.spawners.cgroups import Cgroups
from spoke.spawners.host import Host
from spoke.spawners.simulated import Simulated
from tests.helpers.builders import NOW, spec
from tests.helpers.sandboxes import Rig, exits, lasts, out

NOTHING = Host(bwrap="", trouble="", cgroups=Cgroups({}, unified=False), is_root=False)


def rig(tmp_path: Path) -> Rig:
    return Rig(SandboxKind.SIMULATED, tmp_path, NOTHING)


async def test_without_output_there_is_no_file(tmp_path: Path) -> None:
    made = rig(tmp_path)
    sandbox, handle = await made.start(exits(0))
    end = await made.spawner.wait(sandbox, handle)
    assert end.output_bytes == 0
    assert not sandbox.folder.exists()


async def test_a_successor_waits_only_for_what_is_left(tmp_path: Path) -> None:
    now = [NOW]
    first, second = (Simulated(clock=lambda: now[0]) for _ in range(2))
    sandbox = rig(tmp_path).sandbox(lasts(10, code=7))
    handle = await first.prepare(sandbox)
    await first.release(sandbox, handle)
    now[0] += 9_950
    assert await second.recover(sandbox, handle) == handle
    await second.release(sandbox, handle)
    async with asyncio.timeout(2):
        assert (await second.wait(sandbox, handle)).code == 7


async def test_a_successor_that_comes_late_says_what_would_have_been(tmp_path: Path) -> None:
    now = [NOW]
    spawner = Simulated(clock=lambda: now[0])
    pretends = Simulation(duration_ms=10_000, exit_code=7, output="done")
    sandbox = rig(tmp_path).sandbox(spec(simulation=pretends))
    handle = await spawner.prepare(sandbox)
    now[0] += 60_000
    end = await Simulated(clock=lambda: now[0]).recover(sandbox, handle)
    assert isinstance(end, Exit)
    assert (end.code, end.ended_ms, out(sandbox)) == (7, NOW + 10_000, "done")


async def test_crashes_come_at_their_rate_and_are_the_same_in_every_run(tmp_path: Path) -> None:
    async def ends(spawner: Simulated) -> list[Exit]:
        found: list[Exit] = []
        for sandbox in sandboxes:
            handle = await spawner.prepare(sandbox)
            await spawner.release(sandbox, handle)
            found.append(await spawner.wait(sandbox, handle))
        return found

    what = spec(simulation=Simulation(crash_per_mille=300))
    sandboxes = [rig(tmp_path).sandbox(what) for _ in range(1_000)]
    first, second = (
        await ends(Simulated(clock=lambda: NOW)),
        await ends(Simulated(clock=lambda: NOW)),
    )
    assert first == second
    crashes = sum(end.kind is ExitKind.SIGNALED for end in first)
    assert 200 < crashes < 400


async def test_another_attempt_has_another_chance(tmp_path: Path) -> None:
    what = spec(simulation=Simulation(crash_per_mille=500))
    one = rig(tmp_path).sandbox(what)
    spawner, kinds = Simulated(), set[ExitKind]()
    for attempt in range(1, 20):
        sandbox = msgspec.structs.replace(one, attempt=attempt)
        handle = await spawner.prepare(sandbox)
        await spawner.release(sandbox, handle)
        kinds.add((await spawner.wait(sandbox, handle)).kind)
    assert kinds == {ExitKind.EXITED, ExitKind.SIGNALED}


async def test_nothing_is_remembered_after_the_clean_up(tmp_path: Path) -> None:
    spawner = Simulated()
    for _ in range(100):
        sandbox = rig(tmp_path).sandbox(exits(0))
        handle = await spawner.prepare(sandbox)
        await spawner.release(sandbox, handle)
        await spawner.wait(sandbox, handle)
        await spawner.clean_up(sandbox, handle)
    assert spawner._pretences == {}
