"""`felloe up`: the embedded stack in the foreground until Ctrl-C, kept in a folder, so that it comes back as it was."""

import asyncio
from pathlib import Path
from typing import Final

from hub.dev.foreground import in_foreground
from hub.dev.plan import Options
from hub.dev.stack import Stack

DEFAULT_FOLDER: Final = Path(".felloe")
# A machine of one's own: as many agents as it has business running, and the port that clients try first.
OPTIONS: Final = Options(hub_port=8080)


def main(folder: Path | None = None) -> int:
    """Keep a stack up in the foreground: what `./dev up` and `felloe up` call."""
    return in_foreground(run(folder or DEFAULT_FOLDER))


async def run(folder: Path, options: Options = OPTIONS) -> int:
    """Keep the stack up until cancelled."""
    print(f"starting the stack in {folder} …", flush=True)
    async with Stack(folder, options, _say) as stack:
        plan = stack.plan
        print(
            f"ready: {plan.url} hears {', '.join(stack.spokes)}; logs are in {plan.folder / 'logs'}",
            flush=True,
        )
        if stack.why_not_isolated:
            _say(
                f"NO ISOLATION: agents run as plain processes here, since {stack.why_not_isolated}"
            )
        print(f"export FELLOE_URL={plan.url} FELLOE_TOKEN_FILE={plan.token_file}", flush=True)
        await asyncio.Event().wait()
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
