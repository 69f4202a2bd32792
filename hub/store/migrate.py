"""Migrations of the hub's database, by alembic; at the newest version nothing is imported and nothing is touched."""

from pathlib import Path
from typing import Final

import sqlalchemy as sa
import structlog

from hub.store.engine import open_engine
from shared.errors import ConfigError

log = structlog.get_logger()

NEWEST: Final = "0001"
# `UPDATE … FROM` came with 3.33, `->>` with 3.38.
OLDEST_SQLITE: Final = (3, 38, 0)


def upgrade(file: Path) -> str:
    """Bring a database up to the newest version and return that; raises ConfigError for one from a later Felloe."""
    engine = open_engine(file)
    with engine.connect() as connection:
        _check_sqlite(connection)
        version = _version(connection)
    if version == NEWEST:
        return NEWEST
    from alembic import command  # noqa: PLC0415 - 10 MB that a hub needs once in its life
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util.exc import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, NEWEST)
        except CommandError as error:
            raise ConfigError(f"{file} is from a later Felloe ({version}): {error}") from None
    log.info("database_upgraded", file=str(file), version=NEWEST, before=version or "new")
    return NEWEST


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _check_sqlite(connection: sa.Connection) -> None:
    found = connection.execute(sa.text("SELECT sqlite_version()")).scalar_one()
    if tuple(int(part) for part in found.split(".")) < OLDEST_SQLITE:
        wanted = ".".join(str(part) for part in OLDEST_SQLITE)
        raise ConfigError(f"this Python has SQLite {found}; the hub needs {wanted} or later")
