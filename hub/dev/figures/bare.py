"""The limits of the hub's figures: litestar that validates a spawn and answers 202, and does nothing else.

The one place outside the API that imports litestar, since litestar is what it measures. Started by the bench as
`python -m hub.dev.figures.bare PORT`, with the server and the options that the hub uses.
"""

import sys

import uvicorn
from litestar import Litestar, post

from hub.schemas import SpawnRequest

_AGENT = "00000000-0000-7000-8000-000000000000"


@post("/v1/agents", status_code=202)
async def spawn(data: SpawnRequest) -> dict[str, str]:
    """Parse, and say yes."""
    return {"id": _AGENT, "type": data.type or ""}


def main(port: int) -> None:
    """Serve until SIGTERM."""
    app = Litestar([spawn], openapi_config=None)
    uvicorn.run(
        app, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
