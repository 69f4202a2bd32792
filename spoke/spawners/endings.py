"""How an attempt ended, from what it left behind: files and counters, so a successor of the daemon says the same.

A shell and bubblewrap report a signal as 128 + its number, as shells do. An agent that itself exits with 137 can
therefore not be told from one that was ended by SIGKILL; it is called the latter.
"""

from typing import Final

from shared.messages import Exit, ExitKind
from spoke.spawners.attempt_folder import AttemptFolder
from spoke.spawners.base import Sandbox

_SIGNALS: Final = range(129, 129 + 64)
_DETAIL: Final = 1_000


def output_cap(sandbox: Sandbox) -> int:
    """Return the bytes after which an attempt is ended; its readers stop at half of it."""
    return 2 * sandbox.spec.limits.output_bytes


def ending(
    sandbox: Sandbox, folder: AttemptFolder, code: int | None, *, out_of_memory: bool
) -> Exit:
    """Return the end for the exit code `code`, None if nobody recorded one."""
    written = folder.output_bytes()
    if written > output_cap(sandbox):
        return _exit(folder, ExitKind.OUTPUT_CAP, f"over {output_cap(sandbox)} bytes of output")
    # A program that bore the loss of a child and says that all is well is believed.
    if out_of_memory and code != 0:
        limit = sandbox.spec.limits.memory_bytes
        return _exit(folder, ExitKind.OUT_OF_MEMORY, f"over {limit} bytes of memory")
    if code is None:
        return _exit(folder, ExitKind.UNKNOWN, "gone, and nobody recorded how")
    if code in _SIGNALS:
        return _exit(folder, ExitKind.SIGNALED, signal=code - 128)
    return _exit(folder, ExitKind.EXITED, code=code)


def not_started(folder: AttemptFolder, kind: ExitKind, words: str) -> Exit:
    """Return the end of an attempt whose command never ran: `kind` says whose fault it is."""
    return Exit(kind=kind, detail=words[:_DETAIL], output_bytes=folder.output_bytes())


def _exit(
    folder: AttemptFolder,
    kind: ExitKind,
    detail: str = "",
    *,
    code: int | None = None,
    signal: int | None = None,
) -> Exit:
    has_ended = code is not None or signal is not None
    return Exit(
        kind=kind,
        code=code,
        signal=signal,
        detail=detail,
        started_ms=folder.released_ms(),
        ended_ms=folder.status_ms() if has_ended else None,
        output_bytes=folder.output_bytes(),
    )
