"""`python -m hub.dev demo | up | bench`: what the script `dev` calls."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    """Parse, run, and return the exit status."""
    chosen = _parser().parse_args(argv)
    # Imported where needed: a demo does not wait for what only the bench needs.
    match chosen.verb:
        case "demo":
            from hub.dev import demo  # noqa: PLC0415

            return demo.main(keep=chosen.keep, llm=chosen.llm, as_json=chosen.as_json)
        case "up":
            from hub.dev import up  # noqa: PLC0415

            return up.main(chosen.folder, as_json=chosen.as_json)
        case _:
            from hub.dev import bench  # noqa: PLC0415

            return bench.main(chosen.figures, n=chosen.n, json_only=chosen.json_only)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dev", description="Felloe's embedded stack")
    verbs = parser.add_subparsers(dest="verb", required=True)
    demo = verbs.add_parser("demo", help="the main job, shown as it happens")
    demo.add_argument("--keep", action="store_true", help="stay up afterwards, until Ctrl-C")
    demo.add_argument(
        "--llm", action="store_true", help="also run a small language model in a sandbox"
    )
    up = verbs.add_parser("up", help="the stack, until Ctrl-C")
    up.add_argument(
        "--folder", type=Path, default=Path(".felloe"), help="where it keeps itself (.felloe)"
    )
    for verb in (demo, up):
        verb.add_argument(
            "--json", dest="as_json", action="store_true", help="one JSON line on stdout"
        )
    bench = verbs.add_parser("bench", help="measure; one JSON line per figure")
    bench.add_argument("figures", nargs="*", help="which; all if none is named")
    bench.add_argument("--json-only", action="store_true", help="no progress lines on stderr")
    bench.add_argument(
        "-n", type=int, default=None, help="how many samples, instead of each figure's own number"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
