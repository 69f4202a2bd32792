"""What the hub knows of itself, by name: its epoch, which database this is."""

import sqlalchemy as sa

from hub.store.tables import facts

FIRST_EPOCH = 1


def hub_epoch(connection: sa.Connection) -> int:
    """Return the hub's epoch, raised whenever its database is restored from a backup."""
    value = connection.execute(
        sa.select(facts.c.value).where(facts.c.name == "hub_epoch")
    ).scalar()
    return FIRST_EPOCH if value is None else int(value)
