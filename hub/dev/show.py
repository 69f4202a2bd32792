"""What the demo prints: one heading per step, what happens below it, a verdict, a table at the end."""

import os
import sys
from typing import Final

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Colours tell the sites apart.
_COLOURS: Final = ("cyan", "magenta", "green", "yellow")
# A pipe or a CI log has no width: nothing is wrapped there that a person could still read.
_WIDTH_WITHOUT_TERMINAL: Final = 120


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one step went."""

    title: str
    ok: bool
    detail: str
    seconds: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How the whole went: what `--json` prints."""

    ok: bool
    steps: list[Outcome]
    lacks: list[str]


class Show:
    """Prints as it happens. `Outcome`s come from the steps. With `as_json` stdout has the result and nothing else."""

    def __init__(self, *, as_json: bool = False) -> None:
        out = sys.stderr if as_json else sys.stdout
        width = None if out.isatty() or "COLUMNS" in os.environ else _WIDTH_WITHOUT_TERMINAL
        self._console = Console(file=out, highlight=False, width=width)
        self._as_json = as_json
        self._colours: dict[str, str] = {}

    def heading(self, n: int, title: str) -> None:
        self._console.print(f"\n[bold]{n}  {escape(title)}[/]")

    def say(self, text: str) -> None:
        """Say what is done, or what was seen."""
        self._console.print(f"   {escape(text)}", soft_wrap=True)

    def line(self, who: str, text: str) -> None:
        """Show a line of an agent's output."""
        colour = self._colours.setdefault(who, _COLOURS[len(self._colours) % len(_COLOURS)])
        self._console.print(f"   [{colour}]{escape(who):>16} │[/] {escape(text)}", soft_wrap=True)

    def verdict(self, outcome: Outcome) -> None:
        mark = "[green]✓[/]" if outcome.ok else "[red]✗[/]"
        self._console.print(f" {mark} {escape(outcome.detail)}", soft_wrap=True)

    def summary(self, outcomes: list[Outcome], lacks: list[str]) -> None:
        """Print the table, and what this host cannot enforce."""
        table = Table(
            title="The wheel turns", title_justify="left", show_lines=False, pad_edge=False
        )
        for name in ("", "step", "what was seen", "s"):
            table.add_column(name, justify="right" if name == "s" else "left", overflow="fold")
        for outcome in outcomes:
            mark = "[green]✓[/]" if outcome.ok else "[red]✗[/]"
            table.add_row(
                mark, escape(outcome.title), escape(outcome.detail), f"{outcome.seconds:.1f}"
            )
        self._console.print()
        self._console.print(table)
        if lacks:
            self._console.print(
                "\nWhat sandboxes on this host lack (the embedded stack's site policy allows it):"
            )
            for control in lacks:
                self._console.print(f"   - {escape(control)}")
        if self._as_json:
            ok = all(outcome.ok for outcome in outcomes)
            result = Result(ok=ok, steps=outcomes, lacks=lacks)
            print(msgspec.json.encode(result).decode(), flush=True)
