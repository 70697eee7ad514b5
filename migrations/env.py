"""What Alembic runs: the revisions, inside the transaction that the caller has begun.

Only `memplan.store.migrate` calls this, with its own connection: the transaction there makes a
half-done migration impossible.
"""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
