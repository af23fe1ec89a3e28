"""The schema and the transitions, on a real PostgreSQL."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine

from darkroom.database.engine import migrate
from darkroom.database.tables import metadata


def test_the_tables_are_what_the_migrations_make(engine: Engine) -> None:
    def compared(obj: object, name: str, kind: str, reflected: bool, other: object) -> bool:
        return kind != "index"  # indexes are the migrations' alone

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_object": compared})
        assert compare_metadata(context, metadata) == []


def test_migrating_twice_changes_nothing(engine: Engine) -> None:
    migrate(engine)
    migrate(engine)
