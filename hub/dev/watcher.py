"""The last one out: ends what a stack started when the stack itself was killed with -9.

    parent ──pipe──▶ watcher (stdin)          the parent holds the only write end, close-on-exec

Each line is JSON and adds to what is known: `{"pid", "started"}` a child, `{"gone": pid}` it ended, `{"then": argv}`
a command for afterwards (sandboxes outlive daemons by design, so they are destroyed apart), `{"remove": folder}`,
and `{"done": true}`: the parent has stopped everything itself. End of file without `done` means the parent is dead.
A process that was started but not reported yet still bears the stack's mark in its environment (Linux only).
Standard library only, so that it is small and starts at once.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MARK = "FELLOE_STACK"


def started(pid: int) -> str:
    """Return what tells this process from a later one with the same pid, "" when there is none."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    if Path("/proc/self").exists():
        return ""
    asked = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)],  # noqa: S607 - macOS has it at a fixed place
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip()


def marked(mark: str) -> list[int]:
    """Return the pids that bear the mark in their environment; none where there is no /proc."""
    wanted, pids = f"{MARK}={mark}".encode(), list[int]()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                pids.append(int(entry.name))
    return pids


def end(pid: int, since: str) -> None:
    """Kill the process group of a child, if it still is that child. Of no effect when it is gone."""
    if since and started(pid) == since:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def sweep(mark: str) -> list[int]:
    """Kill every process that bears the mark, and return their pids."""
    found = marked(mark)
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return found


class Left:
    """What is to be ended if the parent dies now."""

    def __init__(self) -> None:
        self.children: dict[int, str] = {}
        self.commands: list[list[str]] = []
        self.folders: list[str] = []

    def learn(self, fact: dict[str, Any]) -> None:
        """Take in one line of the parent's."""
        match fact:
            case {"pid": pid, "started": since}:
                self.children[pid] = since
            case {"gone": pid}:
                self.children.pop(pid, None)
            case {"then": argv}:
                self.commands.append(argv)
            case _:
                self.folders.append(fact["remove"])

    def end(self, mark: str) -> None:
        """End and remove all of it."""
        for pid, since in self.children.items():
            end(pid, since)
        for _ in range(100):  # a child that was just starting may start one more
            if not sweep(mark):
                break
            time.sleep(0.02)
        running = [subprocess.Popen(argv, stdin=subprocess.DEVNULL) for argv in self.commands]
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)


def main(mark: str) -> None:
    """Read until the parent is done, or gone: then end what it left."""
    left = Left()
    for line in sys.stdin:
        fact = json.loads(line)
        if "done" in fact:
            return
        left.learn(fact)
    left.end(mark)


if __name__ == "__main__":
    main(sys.argv[1])
