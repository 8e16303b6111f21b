"""Alembic's entry: one migrator at a time, on the ledger's own database."""

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from infra.db.trigger_tables import Base  # with it all tables are known

# An arbitrary constant that names the lock; a second migrator waits on it and then finds nothing to do.
MIGRATION_LOCK = 7_243_107


def run() -> None:
    """Apply what is missing in one transaction."""
    url = context.config.get_main_option("sqlalchemy.url")
    if url is None:
        raise RuntimeError("sqlalchemy.url is not set")
    # No pool: nobody would close what it keeps.
    with create_engine(url, poolclass=NullPool).connect() as connection, connection.begin():
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        context.configure(connection=connection, target_metadata=Base.metadata)
        context.run_migrations()


run()
