"""Write the generated pages of `docs/reference`, or with `--check` say which of them are out of date.

    python docs/generate.py [--check]

A page is a function that returns its whole text; `PAGES` names them all. To add one, write the function and enter it
there: `./dev docs` then writes it, and `./dev test` keeps it fresh. What the pages say comes from the code and from the
comments beside it, so the place to correct a sentence is the source.
"""

import ast
import inspect
import io
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import singledispatch
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec
from litestar.exceptions import HTTPException
from msgspec import inspect as mi

import hub.config
import shared.envelope
import shared.errors
import shared.lifecycle
import shared.messages
import spoke.config
from hub.api.problems import MalformedError, problem_of
from shared.envelope import Refusal
from shared.errors import FelloeError, OverloadedError
from shared.ids import NAME_PATTERN
from shared.lifecycle import AT_SPOKE, COUNTS, ENDED, TRANSITIONS, Fact, State
from shared.messages import Exit, ExitKind
from shared.retry import may_retry

REPOSITORY: Final = Path(__file__).resolve().parent.parent
REFERENCE: Final = REPOSITORY / "docs" / "reference"
NOTHING: Final = "-"
MARK: Final = "<!-- Made by docs/generate.py: change the source, then run ./dev docs. -->"


# --- comments, which `ast` drops -------------------------------------------------------------------------


def comments_of(module: ModuleType, class_name: str) -> dict[str, str]:
    """Return what the comments beside each member of a class say, and above each field with a type."""
    source = inspect.getsource(module)
    beside, alone = _comments(source)
    found: dict[str, str] = {}
    for member in _class_in(source, class_name).body:
        lines = range(member.lineno, (member.end_lineno or member.lineno) + 1)
        said = [beside[n] for n in lines if n in beside]
        match member:
            case ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = " ".join([*_block_above(alone, member.lineno), *said])
            # Above the members of an enum stand the headings of their groups.
            case ast.Assign(targets=[ast.Name(id=name)]):
                found[name] = " ".join(said)
            case _:
                pass
    return found


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments behind code, and comments that have a line to themselves, by line."""
    beside: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("# noqa"):
            place = alone if token.line.lstrip().startswith("#") else beside
            place[token.start[0]] = token.string.lstrip("# ")
    return beside, alone


def _block_above(alone: dict[int, str], line: int) -> list[str]:
    start = line
    while start - 1 in alone:
        start -= 1
    return [alone[n] for n in range(start, line)]


def _class_in(source: str, name: str) -> ast.ClassDef:
    return next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef) and node.name == name
    )


# --- Markdown -------------------------------------------------------------------------------------------


def page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", MARK, *parts]) + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines.append(["---"] * len(lines[0]))
    lines.extend([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(value: object) -> str:
    return f"`{value}`"


def codes(values: Iterable[str]) -> str:
    return ", ".join(code(value) for value in values) or NOTHING


def sentence(text: str | None) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- lifecycle.md ---------------------------------------------------------------------------------------


def lifecycle() -> str:
    means = comments_of(shared.lifecycle, "State")
    facts = comments_of(shared.lifecycle, "Fact")
    return page(
        "Life of an agent",
        "One table, `shared/lifecycle.py`, which the hub applies to every fact that arrives and the spoke to every "
        "fact that it is about to send. A state is the last proven fact about an agent. A fact for which a state has "
        "no entry is stale: it changes nothing and is counted, since messages are delivered at least once and may "
        "overtake each other.",
        _diagram(),
        "An arrow that leaves the box *at the spoke* leaves each state in it.",
        "## States, and what each fact makes of them",
        table(
            ["State", "Meaning", "Facts that change it", "Ended"],
            [
                [
                    code(s),
                    capital(means[s.name]),
                    _moves(TRANSITIONS[s]),
                    "yes" if s in ENDED else "",
                ]
                for s in State
            ],
        ),
        "## Facts with a name of their own",
        "The other facts bear the name of the state that they lead to.",
        table(
            ["Fact", "Meaning", "Changes"],
            [
                [
                    code(f),
                    capital(facts[f.name]) or NOTHING,
                    codes(s for s in State if f in TRANSITIONS[s]),
                ]
                for f in Fact
                if f.value not in set(State)
            ],
        ),
        "## The five counts",
        "`delayed` also holds the agents that are `waiting` for a start time.",
        table(
            ["Count", "States"],
            [[code(n), codes(s for s in State if s in c)] for n, c in COUNTS.items()],
        ),
    )


def _moves(row: Any) -> str:
    return (
        ", ".join(
            code(f) if f.value == t.value else f"{code(f)} → {code(t)}" for f, t in row.items()
        )
        or NOTHING
    )


def _diagram() -> str:
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> held", "    [*] --> waiting"]
    lines += ['    state "at the spoke" as at_spoke {']
    lines += [f"        {edge}" for edge in _edges_inside()]
    lines += ["    }", *(f"    {edge}" for edge in _edges_outside()), "```"]
    return "\n".join(lines)


def _edges_inside() -> Iterator[str]:
    for state in State:
        for fact, to in TRANSITIONS[state].items():
            if {state, to} <= AT_SPOKE and state is not to:
                yield _edge(state, to, fact)


def _edges_outside() -> Iterator[str]:
    shared_rows = [set(TRANSITIONS[state].items()) for state in AT_SPOKE]
    common = set[tuple[Fact, State]].intersection(*shared_rows)
    for fact, to in TRANSITIONS[State.QUEUED].items():
        if (fact, to) in common and to not in AT_SPOKE:
            yield _edge("at_spoke", to, fact)
    for state in State:
        for fact, to in TRANSITIONS[state].items():
            from_box = state in AT_SPOKE and (to in AT_SPOKE or (fact, to) in common)
            if not from_box:
                yield _edge(state, to, fact)


def _edge(start: str, end: str, fact: Fact) -> str:
    return f"{start} --> {end}" if fact.value == end else f"{start} --> {end} : {fact}"


# --- settings.md ----------------------------------------------------------------------------------------


def settings() -> str:
    return page(
        "Settings",
        "Defaults < TOML file < environment < `*_FILE`. `--config` names the TOML file, or `FELLOE_HUB_CONFIG` and "
        "`FELLOE_SPOKE_CONFIG` do. A field `port` in the group `http` of the hub is `port` under "
        "`[http]` in the TOML file, `FELLOE_HUB_HTTP_PORT` in the environment, and `FELLOE_HUB_HTTP_PORT_FILE` names a "
        "file that holds it. Give secrets by such a file: nothing secret needs to be in the environment or in "
        "arguments. Lists and tables in the environment are JSON. `*_s` is in seconds, `*_bytes` in bytes. An unknown "
        "group or field is an error that names it.",
        "## Hub",
        *_groups(hub.config, hub.config.HubSettings, "FELLOE_HUB"),
        "## Spoke",
        *_groups(spoke.config, spoke.config.SpokeSettings, "FELLOE_SPOKE"),
    )


def _groups(module: ModuleType, kind: type[msgspec.Struct], prefix: str) -> Iterator[str]:
    for group in msgspec.structs.fields(kind):
        yield f"### `[{group.encode_name}]`"
        yield sentence(group.type.__doc__)
        says = comments_of(module, group.type.__name__)
        fields = msgspec.structs.fields(group.type)
        yield table(
            ["Field", "Environment", "Takes", "Default", "Meaning"],
            [
                _setting(field, f"{prefix}_{group.encode_name}", says[field.name])
                for field in fields
            ],
        )


def _setting(field: msgspec.structs.FieldInfo, prefix: str, says: str) -> list[str]:
    name = field.encode_name
    takes = takes_of(mi.type_info(field.type))
    return [
        code(name),
        code(f"{prefix}_{name}".upper()),
        takes,
        _default(field),
        capital(says) or NOTHING,
    ]


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "**required**"
    given: Any = (
        field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    )
    if given is None or given in ("", (), {}):
        return "none"
    return code(msgspec.json.encode(given).decode().strip('"'))


@singledispatch
def takes_of(info: mi.Type) -> str:
    """Say in words what a setting takes."""
    raise TypeError(f"no words for {info}: add them to docs/generate.py")


@takes_of.register
def _(_info: mi.BoolType) -> str:
    return "`true` or `false`"


@takes_of.register
def _(info: mi.IntType) -> str:
    return f"integer{_bounds(info)}"


@takes_of.register
def _(info: mi.FloatType) -> str:
    return f"number{_bounds(info)}"


@takes_of.register
def _(info: mi.StrType) -> str:
    if info.pattern == NAME_PATTERN:
        return "name"
    return f"text of at least {info.min_length} characters" if info.min_length else "text"


@takes_of.register
def _(info: mi.LiteralType) -> str:
    return "one of " + codes(str(value) for value in info.values)


@takes_of.register
def _(info: mi.EnumType) -> str:
    return "one of " + codes(str(member.value) for member in info.cls)


@takes_of.register
def _(info: mi.CustomType) -> str:
    return "path" if info.cls is Path else info.cls.__name__


@takes_of.register
def _(info: mi.VarTupleType) -> str:
    return f"list: {takes_of(info.item_type)}"


@takes_of.register
def _(info: mi.DictType) -> str:
    return f"table: {takes_of(info.key_type)} → {takes_of(info.value_type)}"


@takes_of.register
def _(info: mi.StructType) -> str:
    return "table of " + codes(field.encode_name for field in info.fields)


@takes_of.register
def _(info: mi.UnionType) -> str:
    return " or ".join(takes_of(part) for part in info.types if not isinstance(part, mi.NoneType))


def _bounds(info: mi.IntType | mi.FloatType) -> str:
    low = (
        f" ≥ {_number(info.ge)}"
        if info.ge is not None
        else f" > {_number(info.gt)}"
        if info.gt is not None
        else ""
    )
    high = f" ≤ {_number(info.le)}" if info.le is not None else ""
    return low + (" and" if low and high else "") + high


def _number(value: float) -> str:
    return f"{value:,}"


# --- codes.md -------------------------------------------------------------------------------------------


def codes_page() -> str:
    return page(
        "Codes and names that clients may depend on",
        "## Errors of the REST API",
        "Every error is `application/problem+json` (RFC 9457) with a stable `code`; `detail` says what to do, and "
        "`errors` names the fields where there are some. A code without a status is none of the API's: it stops a "
        "daemon or a command.",
        table(["Code", "Status", "Meaning"], [*_error_rows(), *_framework_rows()]),
        "Narrower codes, each a case of one above:",
        table(["Code", "Status", "A case of"], _narrower_rows()),
        "## Refusals",
        "Why trust or policy said no. A refusal of a whole envelope is counted by its name, and a spoke shows its "
        "counts in each heartbeat; a refusal of one command is a signed event.",
        table(["Refusal", "Meaning"], _member_rows(shared.envelope, Refusal)),
        "## Ends of an attempt",
        "`retried` says whether another attempt follows while `max_retries` allows; a success is never retried.",
        table(["Exit", "Meaning", "Retried"], _exit_rows()),
    )


def _error_rows() -> Iterator[list[str]]:
    for kind in vars(shared.errors).values():
        if inspect.isclass(kind) and issubclass(kind, FelloeError) and kind is not FelloeError:
            yield [code(kind.code), _status_of(kind), sentence(kind.__doc__)]
    yield [code(MalformedError.code), "400", sentence(MalformedError.__doc__)]
    yield [code("internal"), "500", "A fault of the hub; its log says more."]


def _framework_rows() -> Iterator[list[str]]:
    for status in (400, 405, 413):
        found = problem_of(HTTPException(status_code=status))
        yield [
            code(found.code),
            str(status),
            f"{found.title}: refused before any handler was asked.",
        ]


def _status_of(kind: type[FelloeError]) -> str:
    error = kind("", retry_after_s=1) if issubclass(kind, OverloadedError) else kind("")
    problem = problem_of(error)
    return NOTHING if problem.status == 500 else str(problem.status)


def _narrower_rows() -> list[list[str]]:
    """Every `SomeError(…, code="narrower")` in the sources."""
    found: set[tuple[str, str, str]] = set()
    for path in sorted(REPOSITORY.glob("hub/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id=name), keywords=words) if name.endswith("Error"):
                    kind = getattr(shared.errors, name, None)
                    for word in words:
                        if kind and word.arg == "code" and isinstance(word.value, ast.Constant):
                            narrower = code(word.value.value)
                            found.add((narrower, _status_of(kind), code(kind.code)))
                case _:
                    pass
    return [list(row) for row in sorted(found)]


def _member_rows(module: ModuleType, kind: type[Enum]) -> Iterator[list[str]]:
    says = comments_of(module, kind.__name__)
    for member in kind:
        yield [code(member.value), capital(says[member.name]) or NOTHING]


def _exit_rows() -> Iterator[list[str]]:
    for (name, says), kind in zip(_member_rows(shared.messages, ExitKind), ExitKind, strict=True):
        end = Exit(kind=kind, code=1 if kind is ExitKind.EXITED else None)
        yield [name, says, "yes" if may_retry(end) else "no"]


# --- all of them ----------------------------------------------------------------------------------------

PAGES: Final[dict[str, Callable[[], str]]] = {
    "lifecycle.md": lifecycle,
    "settings.md": settings,
    "codes.md": codes_page,
}


def main(arguments: list[str]) -> int:
    """Write what changed; with `--check` only name it, and return 1 if there is something."""
    stale = 0
    for name, make in PAGES.items():
        path, text = REFERENCE / name, make()
        if path.exists() and path.read_text() == text:
            continue
        stale += 1
        if "--check" in arguments:
            print(f"{path.relative_to(REPOSITORY)} is out of date: run ./dev docs")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            print(f"wrote {path.relative_to(REPOSITORY)}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
