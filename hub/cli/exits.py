"""Exit statuses: a command that waits for an agent ends as the agent did.

the agent's own    it exited
128 + n            a signal ended it, ours included
123                lost
124                timed out, or expired
125                Felloe itself: no hub, no sandbox, an end nobody saw
126                refused: the hub or the site said no, or the command could not be executed
"""

from typing import Final

from hub.schemas import AgentView
from shared.errors import (
    BadInputError,
    ConflictError,
    FelloeError,
    NotAllowedError,
    NotAuthenticatedError,
    NotFoundError,
    OverloadedError,
)
from shared.lifecycle import State
from shared.messages import ExitKind

LOST: Final = 123
TIMED_OUT: Final = 124
FELLOE: Final = 125
REFUSED: Final = 126
SIGNAL: Final = 128
_KILLED: Final = SIGNAL + 9

_SAID_NO: Final = (
    BadInputError,
    ConflictError,
    NotAllowedError,
    NotAuthenticatedError,
    NotFoundError,
    OverloadedError,
)
_BY_KIND: Final[dict[ExitKind, int]] = {
    ExitKind.TIMEOUT: TIMED_OUT,
    ExitKind.START_FAILED: REFUSED,
    ExitKind.SETUP_FAILED: FELLOE,
    ExitKind.UNKNOWN: FELLOE,
    ExitKind.OUT_OF_MEMORY: _KILLED,
    ExitKind.OUTPUT_CAP: _KILLED,
    ExitKind.KILLED: _KILLED,
}


def status_of(agent: AgentView) -> int:
    """Return the exit status that an ended agent stands for."""
    match agent.state:
        case State.SUCCEEDED:
            return 0
        case State.LOST:
            return LOST
        case State.EXPIRED:
            return TIMED_OUT
        case State.CANCELLED:
            return REFUSED
        case _:
            return _of_exit(agent)


def status_of_error(error: FelloeError) -> int:
    """Return 126 where somebody said no, 125 where Felloe could not."""
    return REFUSED if isinstance(error, _SAID_NO) else FELLOE


def _of_exit(agent: AgentView) -> int:
    end = agent.exit
    if end is None:
        return _KILLED if agent.state is State.KILLED else FELLOE
    # What timed out was ended by a signal of ours; who waits asks why, not how.
    if end.signal is not None and end.kind is not ExitKind.TIMEOUT:
        return SIGNAL + end.signal
    if end.kind is ExitKind.EXITED and end.code is not None:
        return end.code
    return _BY_KIND.get(end.kind, FELLOE)
