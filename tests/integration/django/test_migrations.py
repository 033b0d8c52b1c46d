"""The migration, which makes the table that ``init-db`` makes."""

from tests.integration.conftest import Stranger
from tests.support.databases import NewDatabase, query
from tests.support.django_project import Project

COLUMNS = """
    SELECT attname, format_type(atttypid, atttypmod), attnotnull
    FROM pg_attribute
    WHERE attrelid = 'aioabort_request'::regclass AND attnum > 0
    ORDER BY attnum
"""

INDEXES = """
    SELECT indexdef FROM pg_indexes WHERE tablename = 'aioabort_request'
    ORDER BY indexname
"""

MODEL = """
from django.db import connection
from aioabort.django.models import AbortRequest

show([
    [field.column, field.db_type(connection), not field.null]
    for field in AbortRequest._meta.fields
])
"""


def test_migration_makes_the_table_of_init_db(
    migrated: Project, new_database: NewDatabase
) -> None:
    """Columns, constraints and indexes are the same, and the model has the columns."""
    with new_database() as dsn:
        columns, indexes = query(dsn, COLUMNS), query(dsn, INDEXES)

    assert query(migrated.dsn, COLUMNS) == columns
    assert query(migrated.dsn, INDEXES) == indexes
    types = {"varchar(155)": "character varying(155)"}
    assert [
        (name, types.get(type_, type_), not_null)
        for name, type_, not_null in migrated.run(MODEL)
    ] == columns


def test_nothing_is_left_to_migrate(migrated: Project) -> None:
    """The model and the migration agree."""
    printed = migrated.manage("makemigrations", "--check", "--dry-run")

    assert "No changes detected" in printed


def test_migration_adopts_a_table(
    project: Project, dsn: str, stranger: Stranger
) -> None:
    """A table that ``init-db`` or a worker made keeps its rows, even if another role owns it."""
    for rights in (
        "CREATE ON SCHEMA public",
        "SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public",
        "USAGE ON ALL SEQUENCES IN SCHEMA public",
    ):
        query(dsn, f"GRANT {rights} TO {stranger.role}")
    query(dsn, "INSERT INTO aioabort_request (task_id, expires_at) VALUES ('a', now())")
    adopting = Project(project.folder, stranger.dsn(dsn))
    adopting.manage("migrate", "aioabort")

    assert query(dsn, "SELECT task_id FROM aioabort_request") == [("a",)]


def test_sqlmigrate_prints_the_statements(project: Project) -> None:
    """A DBA can read and run them."""
    printed = project.manage("sqlmigrate", "aioabort", "0001")
    query(project.dsn, printed)

    assert len(query(project.dsn, COLUMNS)) == 11
    printed = project.manage("sqlmigrate", "--backwards", "aioabort", "0001")
    assert "DROP TABLE" in printed


def test_migration_can_be_reversed(migrated: Project) -> None:
    """The table is dropped, and can be made again."""
    migrated.manage("migrate", "aioabort", "zero")
    assert query(migrated.dsn, "SELECT to_regclass('aioabort_request')") == [(None,)]

    migrated.manage("migrate", "aioabort")
    assert query(migrated.dsn, "SELECT count(*) FROM aioabort_request") == [(0,)]


def test_migration_leaves_sqlite_alone(project: Project) -> None:
    """A project may have other databases beside PostgreSQL."""
    project.configure(
        "DATABASES['lite'] = "
        "{'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'lite.sqlite3'}"
    )
    project.manage("migrate", "aioabort", "--database=lite")
    project.manage("migrate", "aioabort", "zero", "--database=lite")


def test_permissions_exist(migrated: Project) -> None:
    """There are rights to abort and to view, and none to add, change or delete."""
    names = migrated.run("""
from django.contrib.auth.models import Permission
found = Permission.objects.filter(content_type__app_label="aioabort")
show(sorted(found.values_list("codename", flat=True)))
""")

    assert names == ["abort_task", "view_abortrequest"]
