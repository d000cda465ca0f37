"""Alembic's way in: migrates over the connection, and in the transaction, that `store.migrate` opened."""

from alembic import context

from promptlooper.runner.store.models import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
