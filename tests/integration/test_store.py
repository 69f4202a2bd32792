"""The store beside the writer: migrations, the lock, the audit's chain, bulk statements, and the plans of hot queries."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event

from hub.store import agents, audit, bulk, events, outbox, placements, spokes
from hub.store.agents import Agent, Filter
from hub.store.engine import HubLock, open_engine, open_memory_engine
from hub.store.migrate import NEWEST, upgrade
from hub.store.tables import metadata
from shared.errors import ConfigError
from shared.lifecycle import State
from tests.helpers.builders import NOW, ZEROS, new_id

ROOT = Path(__file__).parents[2]


@pytest.fixture
def connection() -> Iterator[sa.Connection]:
    engine = open_memory_engine()
    with engine.connect() as connection, connection.begin():
        metadata.create_all(connection)
        audit.take_head(connection, "hub")
        yield connection
    engine.dispose()


def agent(**changes: Any) -> Agent:
    values: dict[str, Any] = {
        "id": new_id(), "tenant": "default", "actor": "", "trace": "", "idempotency_key": None, "request_sha256": ZEROS,
        "spec_json": "{}", "labels_json": "{}", "selector_json": "{}", "pinned": None, "signature": "s", "priority": 5,
        "start_ms": None, "deadline_ms": None, "state": State.PENDING, "reason": "", "created_ms": NOW, "updated_ms": NOW,
    }  # fmt: skip
    return Agent(**values | changes)


# --- migrations and the lock -------------------------------------------------------------------------


def test_the_migrations_make_exactly_the_tables_of_the_code(tmp_path: Path):
    assert upgrade(tmp_path / "hub.db") == NEWEST
    with open_engine(tmp_path / "hub.db").connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        made = _schema(connection)
    engine = open_memory_engine()
    with engine.connect() as connection:
        with connection.begin():
            metadata.create_all(connection)
        assert _schema(connection) == made
    engine.dispose()


def _schema(connection: sa.Connection) -> dict[str, str]:
    """Every table and index with its SQL, partial conditions included, without spelling."""
    query = (
        "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'alembic%'"
    )
    rows = connection.exec_driver_sql(query)
    return {name: "".join(sql.split()).replace('"', "").lower() for name, sql in rows}


def test_an_upgrade_of_what_is_new_changes_nothing(tmp_path: Path):
    upgrade(tmp_path / "hub.db")
    before = (tmp_path / "hub.db").read_bytes()
    assert upgrade(tmp_path / "hub.db") == NEWEST
    assert (tmp_path / "hub.db").read_bytes() == before


def test_a_database_of_a_later_version_is_refused(tmp_path: Path):
    upgrade(tmp_path / "hub.db")
    with open_engine(tmp_path / "hub.db").begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match="later Felloe"):
        upgrade(tmp_path / "hub.db")


def test_every_connection_has_the_durable_settings(tmp_path: Path):
    for read_only in (False, True):
        with open_engine(tmp_path / "hub.db", read_only=read_only).connect() as connection:
            found = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "query_only")
            ]
        assert found == ["wal", 2, 1, int(read_only)]


def test_a_second_hub_on_the_same_database_is_refused_and_told_who_has_it(tmp_path: Path):
    lock = HubLock(tmp_path / "hub.db")
    code = "import sys, pathlib; from hub.store.engine import HubLock; HubLock(pathlib.Path(sys.argv[1]))"
    second = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "hub.db")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert second.returncode == 1
    assert "another hub (pid " in second.stderr
    with pytest.raises(ConfigError):
        HubLock(tmp_path / "hub.db")
    lock.release()
    HubLock(tmp_path / "hub.db").release()


# --- audit -------------------------------------------------------------------------------------------


def chain_of(connection: sa.Connection, count: int) -> None:
    for n in range(count):
        entry = audit.Entry(
            tenant="default", actor="me", action=f"did {n}", object="x", result="ok"
        )
        audit.append(connection, [entry], NOW)


@pytest.mark.parametrize(
    ("tampering", "first"),
    [
        ("UPDATE audit SET actor = 'you' WHERE n = 3", 3),
        ("UPDATE audit SET at_ms = at_ms + 1 WHERE n = 1", 1),
        ("UPDATE audit SET hash = previous WHERE n = 5", 5),
        ("DELETE FROM audit WHERE n = 2", 2),
        ("DELETE FROM audit WHERE n = 1", 1),
        ("UPDATE audit SET n = CASE n WHEN 2 THEN 1003 ELSE 1002 END WHERE n IN (2, 3)", 2),
        (("INSERT INTO audit SELECT chain, 6, at_ms, tenant, actor, action, object, result, envelope, previous, hash"
         " FROM audit WHERE n = 5"), 6),
    ],
    ids=["edited", "time", "hash", "deleted", "first deleted", "swapped", "added"],
)  # fmt: skip
def test_the_chain_shows_where_it_was_tampered_with(
    connection: sa.Connection, tampering: str, first: int
):
    chain_of(connection, 5)
    assert audit.first_break(connection, "hub") is None
    connection.exec_driver_sql(tampering)
    connection.exec_driver_sql("UPDATE audit SET n = n - 1000 WHERE n > 1000")
    assert audit.first_break(connection, "hub") == first


def test_an_edit_that_makes_its_own_hash_right_breaks_the_next_row(connection: sa.Connection):
    chain_of(connection, 5)
    row = dict(connection.execute(sa.text("SELECT * FROM audit WHERE n = 3")).mappings().one())
    row["actor"] = "you"
    connection.exec_driver_sql(
        "UPDATE audit SET actor = 'you', hash = ? WHERE n = 3", (audit.hash_of(row),)
    )
    assert audit.first_break(connection, "hub") == 4


def test_a_chain_goes_on_after_a_restart_and_chains_are_apart(connection: sa.Connection):
    chain_of(connection, 2)
    audit.take_head(connection, "other")
    chain_of(connection, 1)
    audit.take_head(connection, "hub")
    chain_of(connection, 1)
    rows = connection.exec_driver_sql("SELECT chain, n FROM audit ORDER BY chain, n").fetchall()
    assert [tuple(row) for row in rows] == [("hub", 1), ("hub", 2), ("hub", 3), ("other", 1)]
    assert audit.first_break(connection, "hub") is audit.first_break(connection, "other") is None


# --- bulk --------------------------------------------------------------------------------------------

VALUES = [
    "", "it's", 'say "so"', "a\\b", "Zürich 🌍 \u2028", "line\nbreak\ttab", "null", "[1,2]", '{"a": 1}', "1e5", "00012",
    "%(x)s ? :y $1", "\x01\x7f", None, 0, -1, 2**53, 2**53 + 1, 2**63 - 1, True, False,
]  # fmt: skip


def test_bulk_insert_and_update_keep_every_value_and_its_type(connection: sa.Connection):
    connection.exec_driver_sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v, w)")
    table = sa.Table(
        "t", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("v"), sa.Column("w")
    )
    bulk.insert(
        connection, table, [{"id": n, "v": value, "w": None} for n, value in enumerate(VALUES)]
    )
    bulk.update(
        connection, table, ("id",), [{"w": value, "id": n} for n, value in enumerate(VALUES)]
    )
    rows = connection.exec_driver_sql("SELECT v, w FROM t ORDER BY id").fetchall()
    assert [(row.v, row.w) for row in rows] == [(value, value) for value in VALUES]
    assert [type(row.v) for row in rows] == [
        int if isinstance(v, bool) else type(v) for v in VALUES
    ]


def test_an_agent_comes_back_as_it_was_stored(connection: sa.Connection):
    stored = agent(
        actor="it's \"Zoë\"", idempotency_key="ключ", labels_json='{"a": "it\'s"}', exit_json='{"kind": "exited"}',
        state=State.FAILED, dead=True, gen=2**53, start_ms=2**53, spoke="zurich", kill_gen=7, trace="\\",
    )  # fmt: skip
    agents.insert(connection, [stored, agent()])
    assert agents.find(connection, "default", stored.id) == stored
    assert agents.find_many(connection, [stored.id, "nobody"]) == {stored.id: stored}


def test_an_update_changes_the_named_rows_and_columns_only(connection: sa.Connection):
    one, two = agent(), agent()
    agents.insert(connection, [one, two])
    agents.update(
        connection,
        [
            {"id": one.id, "dead": True, "reason": "x"},
            {"id": "nobody", "dead": True, "reason": ""},
        ],
    )
    assert agents.find(connection, "default", one.id) == Agent(
        **_fields(one) | {"dead": True, "reason": "x"}
    )
    assert agents.find(connection, "default", two.id) == two


def _fields(it: Agent) -> dict[str, Any]:
    return {name: getattr(it, name) for name in it.__struct_fields__}


# --- lists -------------------------------------------------------------------------------------------


def test_the_signatures_of_the_pending_are_found_once_each(connection: sa.Connection):
    assert agents.pending_signatures(connection) == []
    agents.insert(connection, [agent(signature=s) for s in ("b", "a", "b", "a", "ü")])
    agents.insert(connection, [agent(signature="c", state=State.HELD)])
    assert agents.pending_signatures(connection) == ["a", "b", "ü"]


def test_the_heads_of_each_priority_come_in_the_order_of_arrival(connection: sa.Connection):
    rows = [
        agent(priority=p, created_ms=NOW + t) for p, t in ((5, 2), (5, 1), (9, 5), (5, 3), (1, 0))
    ]
    agents.insert(connection, rows)
    heads = agents.pending_heads(connection, "s", [], 2)
    assert heads == []
    heads = agents.pending_heads(connection, "s", [("zurich", ZEROS)], 2)
    assert [(head.priority, head.created_ms - NOW) for head in heads] == [
        (9, 5),
        (5, 1),
        (5, 2),
        (1, 0),
    ]


def test_who_was_refused_by_every_taker_is_no_head(connection: sa.Connection):
    one, two = agent(), agent()
    agents.insert(connection, [one, two])
    spokes.exclude(connection, [(one.id, "zurich", "p", "no"), (one.id, "geneva", "old", "no")])
    takers = [("zurich", "p"), ("geneva", "q")]
    assert [head.id for head in agents.pending_heads(connection, "s", takers[:1], 9)] == [two.id]
    assert [head.id for head in agents.pending_heads(connection, "s", takers, 9)] == [
        one.id,
        two.id,
    ]


def test_the_position_counts_who_goes_first(connection: sa.Connection):
    rows = [agent(priority=p, created_ms=NOW + t) for p, t in ((5, 2), (5, 1), (9, 5), (5, 3))]
    agents.insert(connection, [*rows, agent(signature="other", priority=10)])
    assert [agents.position(connection, row) for row in rows] == [3, 2, 1, 4]
    assert agents.position(connection, agent(state=State.RUNNING)) is None


def test_pages_go_backwards_and_every_filter_narrows(connection: sa.Connection):
    rows = [
        agent(
            labels_json='{"team": "a"}',
            state=State.FAILED,
            dead=True,
            spoke="zurich",
            spec_json='{"type": "x"}',
        ),
        agent(labels_json='{"team": "b"}', state=State.FAILED, spoke="zurich"),
        agent(state=State.RUNNING, spoke="geneva"),
        agent(tenant="other"),
    ]
    agents.insert(connection, rows)

    def ids(before: str | None = None, limit: int = 10, **narrow: Any) -> list[int]:
        found = agents.page(connection, Filter(tenant="default", **narrow), before, limit)
        return [rows.index(each) for each in found]

    assert ids() == [2, 1, 0]
    assert ids(limit=2) == [2, 1]
    assert ids(before=rows[1].id) == [0]
    assert ids(states=(State.FAILED,)) == [1, 0]
    assert ids(states=(State.FAILED, State.RUNNING), spoke="geneva") == [2]
    assert ids(labels={"team": "b"}) == [1]
    assert ids(type="x") == [0]
    assert ids(dead=True) == [0]
    assert ids(dead=False) == [2, 1]
    assert ids(ids=(rows[0].id, rows[3].id)) == [0]


def test_dead_letters_are_counted_by_spoke(connection: sa.Connection):
    agents.insert(
        connection,
        [
            agent(dead=True, spoke="zurich"),
            agent(dead=True),
            agent(),
            agent(dead=True, tenant="o"),
        ],
    )
    assert agents.dead_counts(connection, "default") == {"zurich": 1, None: 1}


# --- plans -------------------------------------------------------------------------------------------

HOT = [
    ("signatures", agents.pending_signatures, {"ix_agents_pending"}),
    ("heads", lambda c: agents.pending_heads(c, "s", [("z", "p")], 9), {"ix_agents_pending"}),
    ("position", lambda c: agents.position(c, agent()), {"ix_agents_pending"}),
    ("due", lambda c: agents.due(c, NOW, 9), {"ix_agents_waiting"}),
    ("overdue", lambda c: agents.overdue(c, NOW, 9), {"ix_agents_deadline"}),
    ("dead", lambda c: agents.dead_counts(c, "default"), {"ix_agents_dead"}),
    ("dead page", lambda c: agents.page(c, Filter(tenant="d", dead=True), "x", 9), {"ix_agents_dead"}),
    ("keys", lambda c: agents.by_keys(c, "default", ["k"]), {"ux_agents_key"}),
    ("by id", lambda c: agents.find_many(c, ["a"]), {"sqlite_autoindex_agents_1"}),
    ("agent update", lambda c: agents.update(c, [{"id": "a", "gen": 1}]), {"sqlite_autoindex_agents_1"}),
    ("credit", placements.unfinished, {"ix_placements_live"}),
    ("open at", lambda c: placements.open_at(c, "z", ["a"]), {"sqlite_autoindex_placements_1"}),
    ("accept", lambda c: placements.accept(c, [("a", 1, 1)]), {"sqlite_autoindex_placements_1"}),
    ("gone", lambda c: placements.close(c, "z", [("a", 1, 1)]), {"sqlite_autoindex_placements_1"}),
    ("kills", lambda c: placements.with_open_kill(c, ["a"]), {"sqlite_autoindex_agents_1", "sqlite_autoindex_placements_1"}),
    ("outbox due", lambda c: outbox.due(c, "z", NOW, 9), {"ix_outbox_due"}),
    ("outbox next", lambda c: outbox.next_due_ms(c, "z"), {"ix_outbox_due"}),
    ("outbox reopen", lambda c: outbox.reopen(c, "z", NOW, accepted_too=False), {"ix_outbox_due"}),
    ("outbox accept", lambda c: outbox.accept(c, "z", ["a"], NOW), {"sqlite_autoindex_outbox_1"}),
    ("outbox close", lambda c: outbox.close(c, "z", ["a"]), {"sqlite_autoindex_outbox_1"}),
    ("outbox gone", lambda c: outbox.close_of_agents(c, "z", [("a", 1, 1)]), {"ix_outbox_agent", "sqlite_autoindex_outbox_1"}),
    ("events", lambda c: events.after(c, "default", 0, 9), {"INTEGER PRIMARY KEY"}),
    ("agent events", lambda c: events.after(c, "default", 0, 9, "a"), {"ix_events_agent"}),
    ("exclusions", lambda c: spokes.exclusions_of(c, ["a"]), {"sqlite_autoindex_exclusions_1"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "indexes"), [row[1:] for row in HOT], ids=[row[0] for row in HOT]
)
def test_hot_queries_find_what_they_need_by_an_index_made_for_it(
    connection: sa.Connection, query: Any, indexes: set[str]
):
    agents.insert(connection, [agent()])
    plan = plan_of(connection, query)
    assert plan
    scans = [
        step for step in plan
        if "TEMP B-TREE FOR ORDER BY" in step
        or (step.startswith("SCAN") and not any(word in step for word in ("json_each", "VIRTUAL", "seen", "INDEX", "SCAN r", "CONSTANT ROW")))
    ]  # fmt: skip
    assert not scans
    for index in indexes:
        assert any(index in step for step in plan), plan
    assert not any("ix_agents_state" in step for step in plan)


def plan_of(connection: sa.Connection, query: Any) -> list[str]:
    """The steps of every statement that a query makes, planned with the values that it was given."""
    statements: list[tuple[str, Any]] = []

    def on_execute(_c: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
        statements.append((statement, values))

    event.listen(connection.engine, "before_cursor_execute", on_execute)
    try:
        query(connection)
    finally:
        event.remove(connection.engine, "before_cursor_execute", on_execute)
    raw: Any = connection.connection.driver_connection
    return [
        step
        for statement, values in statements
        for *_, step in raw.execute(f"EXPLAIN QUERY PLAN {statement}", values)
    ]
