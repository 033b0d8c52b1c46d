"""The names that statements are completed with."""

from dataclasses import fields

from aioabort.models import AbortRequest
from aioabort.postgres.request_statements import SHORTEN_GRACE
from aioabort.postgres.tables import REQUEST_COLUMNS, Tables


def test_the_columns_of_a_request_are_its_fields() -> None:
    """A field that no statement reads, or a column without a field, shows here."""
    assert tuple(field.name for field in fields(AbortRequest)) == REQUEST_COLUMNS


def test_names_are_quoted() -> None:
    """A table or a schema may have any name."""
    tables = Tables('my "table"', "schema")
    statement = tables.fill(SHORTEN_GRACE)
    assert 'UPDATE "schema"."aioabort_request_my ""table""" AS r' in statement
    assert "RETURNING r.task_id, r.requested_at," in statement
