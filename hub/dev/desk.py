"""What a person does at a hub beyond single calls: wait for a state, read an agent's lines as they come."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from hub.client import Client
from hub.schemas import AgentView
from shared.errors import FelloeError
from shared.lifecycle import ENDED

_LOOK_S: Final = 0.05


class UnexpectedError(FelloeError):
    """Something is not as it must be."""

    code = "unexpected"


async def until(client: Client, agent: str, *states: str, timeout_s: float = 30.0) -> AgentView:
    """Return the agent as soon as it is in one of the states; raises UnexpectedError when it ends elsewhere."""
    seen = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while True:
                seen = await client.agent(agent)
                if seen.state in states:
                    return seen
                if seen.state in ENDED:
                    break
                await asyncio.sleep(_LOOK_S)
    wanted, now = (
        " or ".join(states),
        "unknown" if seen is None else f"{seen.state} ({seen.reason})",
    )
    raise UnexpectedError(f"{agent} is {now} and should be {wanted}")


async def lines(client: Client, agent: str, *, follow: bool = True) -> AsyncGenerator[str, None]:
    """Yield an agent's output line by line, to its end; what is missing of it is a line in brackets."""
    rest = ""
    async for event in client.logs(agent, follow=follow):
        if event.kind in {"gap", "absent"}:
            yield f"[{event.kind}: {event.log.reason}]"
        *whole, rest = (rest + event.log.text).split("\n")
        for line in whole:
            yield line
    if rest:
        yield rest


async def output(client: Client, agent: str) -> list[str]:
    """Return the lines that there are now."""
    return [line async for line in lines(client, agent, follow=False)]
