"""The hub's tables. Times are Unix milliseconds, JSON is text, ids are text.

A tenant stands on every row that belongs to one. History is never needed to decide anything: what is live is found
by partial indexes, so steady-state cost does not grow with what has ended. Migrations are in `migrations/`; a test
holds them to these definitions.
"""

from typing import Final

import sqlalchemy as sa

metadata = sa.MetaData()

# The states before a placement, and the whole of what has not ended, as SQL for partial indexes.
_UNPLACED: Final = "state IN ('held', 'waiting', 'pending')"

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("trace", sa.Text, nullable=False),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("request_sha256", sa.Text, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("selector", sa.Text, nullable=False),
    sa.Column("pinned", sa.Text),
    # What placement looks at, in one value: agents with equal signatures can go to the same spokes.
    sa.Column("signature", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("start_ms", sa.BigInteger),
    sa.Column("deadline_ms", sa.BigInteger),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("gen", sa.BigInteger, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("spoke", sa.Text),
    sa.Column("exit", sa.Text),
    sa.Column("dead", sa.Boolean, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
    sa.Column("observed_ms", sa.BigInteger),
    sa.Column("retry_ms", sa.BigInteger),
    sa.Column("started_ms", sa.BigInteger),
    sa.Column("ended_ms", sa.BigInteger),
    sa.Column("kill_gen", sa.BigInteger, nullable=False),
    sa.Column("kill_requested_ms", sa.BigInteger),
    sa.Column("kill_accepted_ms", sa.BigInteger),
    sa.Column("kill_confirmed_ms", sa.BigInteger),
    sa.Index("ux_agents_key", "tenant", "idempotency_key", unique=True, sqlite_where=sa.text("idempotency_key IS NOT NULL"),
             postgresql_where=sa.text("idempotency_key IS NOT NULL")),
    sa.Index("ix_agents_state", "state", "spoke", "id"),
    sa.Index("ix_agents_pending", "signature", "priority", "created_ms", "id", sqlite_where=sa.text("state = 'pending'"),
             postgresql_where=sa.text("state = 'pending'")),
    sa.Index("ix_agents_waiting", "start_ms", sqlite_where=sa.text("state = 'waiting'"),
             postgresql_where=sa.text("state = 'waiting'")),
    sa.Index("ix_agents_deadline", "deadline_ms", sqlite_where=sa.text(f"deadline_ms IS NOT NULL AND {_UNPLACED}"),
             postgresql_where=sa.text(f"deadline_ms IS NOT NULL AND {_UNPLACED}")),
    sa.Index("ix_agents_dead", "id", sqlite_where=sa.text("dead"), postgresql_where=sa.text("dead")),
)  # fmt: skip

# One row per generation: where it was placed, and the proof that it is gone from there.
placements = sa.Table(
    "placements",
    metadata,
    sa.Column("agent", sa.Text, primary_key=True),
    sa.Column("gen", sa.BigInteger, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("spoke", sa.Text, nullable=False),
    sa.Column("cmd", sa.Text, nullable=False),
    sa.Column("cmd_sha256", sa.Text, nullable=False),
    sa.Column("placed_ms", sa.BigInteger, nullable=False),
    sa.Column("accepted_ms", sa.BigInteger),
    sa.Column("gone_ms", sa.BigInteger),
    sa.Index("ix_placements_live", "spoke", sqlite_where=sa.text("gone_ms IS NULL"), postgresql_where=sa.text("gone_ms IS NULL")),
)  # fmt: skip

# One row per command item, with its exact bytes. An event accepts it (no more sending), the outcome deletes it.
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("spoke", sa.Text, nullable=False),
    sa.Column("op", sa.Text, nullable=False),
    sa.Column("agent", sa.Text),
    sa.Column("gen", sa.BigInteger, nullable=False),
    sa.Column("item", sa.Text, nullable=False),
    sa.Column("sent", sa.Integer, nullable=False),
    sa.Column("next_ms", sa.BigInteger, nullable=False),
    sa.Column("accepted_ms", sa.BigInteger),
    sa.Index("ix_outbox_due", "spoke", "id", sqlite_where=sa.text("accepted_ms IS NULL"), postgresql_where=sa.text("accepted_ms IS NULL")),
    sa.Index("ix_outbox_agent", "agent"),
)  # fmt: skip

# What was put on the wire, by hash: the proof of what was ordered.
sent = sa.Table(
    "sent",
    metadata,
    sa.Column("sha256", sa.Text, primary_key=True),
    sa.Column("spoke", sa.Text, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("items", sa.Text, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column(
        "id",
        sa.BigInteger().with_variant(sa.Integer, "sqlite"),
        primary_key=True,
        autoincrement=True,
    ),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("agent", sa.Text, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("recorded_ms", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("gen", sa.BigInteger, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("spoke", sa.Text),
    sa.Index("ix_events_agent", "agent", "id"),
)

spokes = sa.Table(
    "spokes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("connection", sa.Text, nullable=False),  # pending, active, suspended, revoked
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("incarnation", sa.BigInteger, nullable=False),
    sa.Column("evt_ack", sa.BigInteger, nullable=False),
    sa.Column("offer", sa.Text, nullable=False),
    sa.Column("heartbeat", sa.Text),
    sa.Column("heartbeat_counter", sa.BigInteger, nullable=False),
    sa.Column(
        "hello_ms", sa.BigInteger, nullable=False
    ),  # its clock at the newest hello: older ones are replays
    sa.Column("seen_ms", sa.BigInteger),
    sa.Column("skew_ms", sa.BigInteger),
    sa.Column("is_full", sa.Boolean, nullable=False),
    sa.Column("rev", sa.BigInteger, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("cordoned", sa.Boolean, nullable=False),
)

# (agent, spoke) pairs that the site's policy refused, until that policy changes.
exclusions = sa.Table(
    "exclusions",
    metadata,
    sa.Column("agent", sa.Text, primary_key=True),
    sa.Column("spoke", sa.Text, primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

types = sa.Table(
    "types",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("chain", sa.Text, primary_key=True),
    sa.Column("n", sa.BigInteger, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("object", sa.Text, nullable=False),
    sa.Column("result", sa.Text, nullable=False),
    sa.Column("envelope", sa.Text, nullable=False),
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)

facts = sa.Table(
    "facts",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
