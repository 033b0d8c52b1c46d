"""Type codecs that the user's pool may set for the whole application."""

from datetime import UTC, datetime
from typing import Any, Final

import asyncpg

from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.postgres.connection import Executor
from aioabort.postgres.errors import driver_errors

#: A value of each type that our statements send or read, and the same value in SQL.
#: Codecs that strip, fold or convert change it.
_SAMPLES: Final[dict[str, tuple[object, str]]] = {
    "text": (" aB ", "' aB '"),
    "varchar": (" aB ", "' aB '"),
    "bool": (True, "'true'"),
    "int4": (-5, "'-5'"),
    "int8": (2**40, "'1099511627776'"),
    "float8": (0.1, "'0.1'"),
    "bytea": (b"\0aB\xff", "'\\x006142ff'"),
    "timestamptz": (
        datetime(2001, 2, 3, 4, 5, 6, 7, tzinfo=UTC),
        "'2001-02-03 04:05:06.000007+00'",
    ),
}

# No row comes back if PostgreSQL gets another value than the sample.
_TRY_CODEC: Final = """
    -- $1 the sample
    SELECT {sample}::{type} AS value WHERE $1::{type} = {sample}::{type}
"""


async def refuse_foreign_codecs(pool: Executor) -> None:
    """Raise StoreError if the user's *pool* encodes or decodes a type in its own way."""
    for type_name, (value, sample) in _SAMPLES.items():
        query = _TRY_CODEC.format(type=type_name, sample=sample)
        try:
            comes_back = await _comes_back(pool, query, value)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, asyncpg.InternalClientError):
                raise
            raise _refusal(type_name) from error
        except Exception as error:  # what a codec raises
            raise _refusal(type_name) from error
        if not comes_back:
            raise _refusal(type_name)


async def _comes_back(pool: Executor, query: str, value: object) -> bool:
    with driver_errors():
        rows = await pool.fetch(query, value)
    found: list[Any] = [row["value"] for row in rows]
    return found == [value] and type(found[0]) is type(value)


def _refusal(type_name: str) -> StoreError:
    return StoreError(
        f"The pool that was passed to the client has a codec for {type_name}, set by "
        "set_type_codec(), which changes what aioabort sends or reads: pass a pool "
        "without it"
    )
