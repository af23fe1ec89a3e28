"""Alembic runs this; the connection comes from `darkroom.database.engine.migrate`."""

from alembic import context

from darkroom.database.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
