"""`./dev bench`: one JSON line per figure, each from a stack of its own with its durable settings.

    {"name", "value", "unit", "limit", "ratio", "n"}

`limit` is the same step with the bare library in the same run, `ratio` value / limit, so a figure says something on
any machine. Lines go to stdout, progress to stderr. Timed tests do not exist; whoever wants to know runs this.
"""

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import msgspec
import uvloop

from hub.dev.desk import UnexpectedError
from hub.dev.figures import accept, complete, idle_rss, log_latency, spawn_latency
from hub.dev.figures.bench_stack import BenchStack, bench_stack
from hub.dev.figures.figure import Figure
from hub.dev.foreground import in_foreground
from hub.dev.plan import Options
from shared.errors import BadInputError

Measure = Callable[[BenchStack, int], Awaitable[Sequence[Figure]]]

_DURABLE: Final = Options(slots=200, simulated=True)


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """How one group of figures is taken: by what, and of how many samples."""

    measure: Measure
    n: int


BENCHES: Final[Mapping[str, Bench]] = {
    "spawn_latency": Bench(measure=spawn_latency.measure, n=100),
    "spawn_accept": Bench(measure=accept.measure, n=10_000),
    "agents_complete": Bench(measure=complete.measure, n=3_000),
    "log_latency": Bench(measure=log_latency.measure, n=300),
    "idle_rss": Bench(measure=idle_rss.measure, n=10),
}


def main(names: Sequence[str], *, n: int | None = None, json_only: bool = False) -> int:
    """Measure in the foreground: what `./dev bench` calls."""
    return in_foreground(run(names, n=n, json_only=json_only), uvloop.new_event_loop)


async def run(names: Sequence[str], *, n: int | None, json_only: bool) -> int:
    """Print the figures, and return 0, or 1 when one could not be taken."""

    def say(line: str) -> None:
        if not json_only:
            print(line, file=sys.stderr, flush=True)

    failed = False
    for name in _chosen(names):
        bench = BENCHES[name]
        say(f"{name}: starting a stack")
        try:
            async with bench_stack(_DURABLE, say) as stack:
                say(f"{name}: measuring {n or bench.n}")
                for figure in await bench.measure(stack, n or bench.n):
                    print(msgspec.json.encode(figure).decode(), flush=True)
        except UnexpectedError as error:
            failed = True
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _chosen(names: Sequence[str]) -> Sequence[str]:
    """Return the groups whose name, or a figure of which, was named."""
    chosen = [
        group for group in BENCHES if not names or any(name.startswith(group) for name in names)
    ]
    unknown = [name for name in names if not any(name.startswith(group) for group in BENCHES)]
    if unknown:
        raise BadInputError(f"no figure {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    return chosen
