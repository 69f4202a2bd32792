"""An agent that lints and counts Python sources: `lint.py FOLDER [PACKAGE…]`.

For each package below the folder (by default those of this repository) it runs ruff, counts files, lines and
functions, and reports as it goes; the last line is the result as JSON. Exit code 0 whatever ruff finds: the finding
is the result, not a failure.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

PACKAGES = ("shared", "spoke", "hub")


def lint(package: Path) -> dict[str, int]:
    """Return ruff's findings by rule. Raises CalledProcessError when ruff itself fails."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ruff", "check", "--no-cache", "--exit-zero"),
            *("--output-format", "json", str(package)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, int] = {}
    for finding in json.loads(done.stdout):
        rule = str(finding["code"])
        found[rule] = found.get(rule, 0) + 1
    return found


def count(package: Path) -> dict[str, int]:
    """Return how many files, lines and functions there are, and the longest function's lines."""
    files = sorted(package.rglob("*.py"))
    texts = [file.read_text() for file in files]
    functions = [
        node
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    return {
        "files": len(files),
        "lines": sum(text.count("\n") for text in texts),
        "functions": len(functions),
        "lines_in_the_longest": max(lengths, default=0),
    }


def main(folder: Path, packages: list[str]) -> None:
    """Report on each package, then on all."""
    result: dict[str, dict[str, int]] = {}
    for n, name in enumerate(packages, 1):
        counted, found = count(folder / name), lint(folder / name)
        result[name] = {**counted, "findings": sum(found.values())}
        said = ", ".join(
            f"{value} {what.replace('_', ' ')}" for what, value in result[name].items()
        )
        print(f"[{n}/{len(packages)}] {name}: {said}", flush=True)
        for rule, times in sorted(found.items()):
            print(f"      {rule}: {times}", flush=True)
    print("result " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(PACKAGES))
