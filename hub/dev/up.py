"""`felloe up`: the embedded stack in the foreground until Ctrl-C, kept in a folder, so that it comes back as it was."""

import asyncio
import sys
from pathlib import Path
from typing import Final

import msgspec

from hub.dev.foreground import in_foreground
from hub.dev.plan import Options
from hub.dev.stack import Stack

DEFAULT_FOLDER: Final = Path(".felloe")
# A machine of one's own: as many agents as it has business running, and the port that clients try first.
OPTIONS: Final = Options(hub_port=8080)


def main(folder: Path | None = None, *, as_json: bool = False) -> int:
    """Keep a stack up in the foreground: what `./dev up` and `felloe up` call."""
    return in_foreground(run(folder or DEFAULT_FOLDER, as_json=as_json))


async def run(folder: Path, options: Options = OPTIONS, *, as_json: bool = False) -> int:
    """Keep the stack up until cancelled. With `as_json` stdout has one line: where it is."""
    say = _say_beside if as_json else _say
    say(f"starting the stack in {folder} …")
    async with Stack(folder, options, say) as stack:
        plan = stack.plan
        logs = plan.folder / "logs"
        say(f"ready: {plan.url} hears {', '.join(stack.spokes)}; logs are in {logs}")
        if stack.why_not_isolated:
            say(
                f"NO ISOLATION: agents run as plain processes here, since {stack.why_not_isolated}"
            )
        if as_json:
            _say(_where(stack))
        else:
            _say(f"export FELLOE_URL={plan.url} FELLOE_TOKEN_FILE={plan.token_file}")
        await asyncio.Event().wait()
    return 0


def _where(stack: Stack) -> str:
    plan = stack.plan
    where = {
        "url": plan.url,
        "token_file": str(plan.token_file),
        "spokes": list(stack.spokes),
        "logs": str(plan.folder / "logs"),
        "isolated": not stack.why_not_isolated,
    }
    return msgspec.json.encode(where).decode()


def _say_beside(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _say(line: str) -> None:
    print(line, flush=True)
