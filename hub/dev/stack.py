"""The embedded stack: NATS, a Valkey per spoke, the hub and the spokes as child processes, up together, down together.

    draw up the plan → write settings → start all children at once → wait until the hub is ready and hears every spoke
    … → stop hub and spokes → destroy what sandboxes are left → stop Valkey and NATS → remove what is temporary

Nothing waits for a certain order at the start: the daemons themselves wait for NATS and Valkey. At the end the order
matters: sandboxes outlive their daemons by design, so they are destroyed after the daemons are gone. If the stack
dies without stopping, `hub.dev.watcher` does the same.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from hub.client import Client
from hub.dev import binaries, settings, valkey
from hub.dev.children import Child, Program, Say
from hub.dev.plan import Options, Plan, draw_up, lock
from hub.dev.watch import Watch
from hub.dev.watcher import MARK, sweep
from shared.errors import FelloeError, UnavailableError

# What a child may know of our environment: nothing of Felloe's own settings, which would override the files.
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER")
_LOOK_S: Final = 0.05
# A child that ended this often before it was ready will not become so.
_EARLY_ENDS: Final = 4


class StackError(FelloeError):
    """The stack did not come up: says which part, and shows the end of its log."""

    code = "stack"


class Stack:
    """A stack that was started. `async with Stack(folder, options, say) as stack:` is the whole of it."""

    def __init__(self, folder: Path | None, options: Options, say: Say) -> None:
        self.say = say
        self.children: dict[str, Child] = {}
        self.why_not_isolated = binaries.why_no_bubblewrap()
        self._lock = -1
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = lock(folder)
            # What a stack left here whose watcher was killed as well.
            sweep(str(folder.absolute()))
        self.plan: Plan = draw_up(folder, options)
        self._env = _environment()
        self._watch = Watch(self.plan.mark, self._env, self.plan.log("watcher"))
        self._watch.remove(self.plan.run)

    @property
    def spokes(self) -> Sequence[str]:
        return self.plan.options.spokes

    async def __aenter__(self) -> Self:
        try:
            self.prepare()
            self.start()
            await self.ready()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def prepare(self) -> None:
        """Write every file and make every child, without starting any."""
        plan = self.plan
        settings.write(plan, isolated=not self.why_not_isolated)
        for spoke in self.spokes:
            self._watch.then(self._destroying(spoke))
        nats = [str(binaries.nats_server()), "-c", str(plan.settings("nats"))]
        self.add("nats", nats)
        server = binaries.valkey_server()
        for spoke in self.spokes:
            argv = valkey.argv(
                server, folder=plan.folder / spoke / "valkey", socket=plan.socket(spoke)
            )
            self.add(f"valkey-{spoke}", argv)
        self.add("hub", python("hub", "serve", "--config", str(plan.settings("hub"))))
        for spoke in self.spokes:
            self.add(spoke, python("spoke", "run", "--config", str(plan.settings(spoke))))

    def start(self) -> None:
        """Start every child that is not held."""
        for child in self.children.values():
            child.start()

    async def ready(self, *, timeout_s: float = 30.0) -> None:
        """Wait until the hub is ready and hears every spoke; raises StackError with the log of what is not."""
        missing = "hub"
        try:
            async with asyncio.timeout(timeout_s), self.client() as client:
                while missing:
                    self._check_early_ends()
                    await asyncio.sleep(_LOOK_S)
                    before, missing = missing, await self._missing(client)
                    if missing not in {before, ""}:
                        self.say(f"{before} is ready, waiting for {missing}")
        except TimeoutError:
            raise self._failed(missing, f"not ready after {timeout_s:.0f} s") from None

    async def stop(self) -> None:
        """Stop everything and remove what is temporary. Of no effect the second time; not to be cancelled."""
        servers = [name for name in self.children if name == "nats" or name.startswith("valkey-")]
        daemons = [name for name in self.children if name not in servers]
        await self._stop_children(daemons, grace_s=5.0)
        if self.children:
            await asyncio.gather(
                *(asyncio.to_thread(self._destroy, spoke) for spoke in self.spokes)
            )
        await self._stop_children(servers, grace_s=3.0)
        self.children.clear()
        self._watch.close()
        shutil.rmtree(self.plan.run, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def client(self) -> Client:
        """Return a client of the hub, to be used with `async with`."""
        return Client(self.plan.url, self.plan.token, timeout_s=10.0)

    async def _missing(self, client: Client) -> str:
        """Return the child that is not ready yet, or ""."""
        try:
            health = await client.ready()
            seen = (await client.spokes()).spokes
        except UnavailableError:
            return "hub"
        online = {spoke.id for spoke in seen if spoke.state == "online"}
        return next(
            (spoke for spoke in self.spokes if spoke not in online), "" if health.ok else "hub"
        )

    def _check_early_ends(self) -> None:
        for child in self.children.values():
            if child.early_ends >= _EARLY_ENDS:
                raise self._failed(child.name, "it ends again and again")

    def _failed(self, name: str, why: str) -> StackError:
        child = self.children[name]
        return StackError(f"{name}: {why}. The end of {child.program.log}:\n{child.last_lines()}")

    async def _stop_children(self, names: Sequence[str], *, grace_s: float) -> None:
        await asyncio.gather(*(self.children[name].stop(grace_s=grace_s) for name in names))

    def _destroy(self, spoke: str) -> None:
        with (
            self.plan.log(spoke).open("ab") as log,
            contextlib.suppress(subprocess.TimeoutExpired),
        ):
            argv = self._destroying(spoke)
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self._env),
                check=False,
                timeout=20,
            )
            if done.returncode != 0:
                self.say(
                    f"{spoke}: not every sandbox could be destroyed, see {self.plan.log(spoke)}"
                )

    def _destroying(self, spoke: str) -> Sequence[str]:
        return python("spoke", "destroy", "--config", str(self.plan.settings(spoke)))

    def add(self, name: str, argv: Sequence[str]) -> Child:
        """Make one more child, which stops with the rest; the caller starts it."""
        env = {**self._env, MARK: self.plan.mark}
        program = Program(
            name=name, argv=argv, log=self.plan.log(name), env=env, folder=self.plan.folder
        )
        self.children[name] = Child(program, self._watch, self.say)
        return self.children[name]


def python(*argv: str) -> list[str]:
    """Return the command line that runs one of our modules."""
    # -P: the stack's folder has a folder `hub`, which must not stand in for the package.
    return [sys.executable, "-P", "-m", *argv]


def _environment() -> Mapping[str, str]:
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**passed_on, "PYTHONPATH": str(settings.ROOT)}
