"""Run by alembic: `hub.store.migrate` hands over an open connection, so there is no other way in."""

from alembic import context

from hub.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
