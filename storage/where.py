"""Filtering the rows of an answer by one SQL expression, a batch at a time.

The expression is checked as a tree before anything is bound, written anew from that tree, and
evaluated by DuckDB over the columns it reads. Rows keep their order and their dictionaries: DuckDB
only says which of them to keep.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, Self

import duckdb
import pyarrow as pa

from storage.errors import InvalidDataError
from storage.expressions import FIELD, Node, bound_of, columns_read, conditions
from storage.schemas import Dataset
from storage.selection import Bound, Comparison

WHERE_CHARS_MAX: Final = 4_096
"""Longest expression: hundreds of comparisons."""
BATCH_TIME_LIMIT_MS: Final = 5_000
"""Time for one batch of at most 65,536 rows, which takes about 2 ms."""
ENGINE_MEMORY: Final = "512MB"
"""Memory for all expressions together; a batch of them needs a few MB."""

_PROBE: Final = "SELECT true AS keep FROM rows"
_OUTSIDE: Final = "SELECT true AS keep FROM rows WHERE true"
_WHERE: Final = "SELECT true AS keep FROM rows WHERE {}"


class Where:
    """An expression that was checked. Evaluates any number of streams, one after another or not.

    Attributes:
        columns: Columns it reads.
        bounds: Numbers that every row it keeps lies within.
    """

    def __init__(self, sql: str, columns: tuple[str, ...], dataset: Dataset, tree: Node) -> None:
        self.columns = columns
        self._sql = sql
        self._span = (0, 1 << 62)
        found: list[Bound] = []
        for condition in conditions(tree):
            if condition.column == "ts_event":
                self._narrow(condition.comparison, condition.value)
            elif condition.column in columns:
                bound = bound_of(condition, dataset)
                found.extend([] if bound is None else [bound])
        self.bounds = tuple(found)

    def __repr__(self) -> str:
        return f"<Where of {', '.join(self.columns)}>"

    @classmethod
    def parse(cls, text: str, dataset: Dataset) -> Self:
        """Read an expression over the columns of a dataset.

        Raises:
            InvalidDataError: It is not one boolean expression of what may be used.
        """
        if len(text) > WHERE_CHARS_MAX:
            raise _refused(f"it is longer than {WHERE_CHARS_MAX} characters")
        tree = _tree(text)
        columns = columns_read(tree, dataset)
        with _cursor() as cursor:
            sql = _written(cursor, tree)
            # A column at least, so that there are rows to say it of.
            read = columns or ("ts_event",)
            absent = [pa.nulls(1, dataset.schema.field(name).type) for name in read]
            if not pa.types.is_boolean(_evaluated(cursor, sql, pa.record_batch(absent, read)).type):
                raise _refused("it is neither true nor false: compare it with something")
        return cls(sql, read, dataset, tree)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return which part of a span of time has rows that may be kept, µs, end excluded."""
        first, last = max(start, self._span[0]), min(end, self._span[1])
        return first, max(first, last)

    def kept(
        self, batches: Iterator[pa.RecordBatch], names: tuple[str, ...]
    ) -> Iterator[pa.RecordBatch]:
        """Yield columns of the rows for which the expression is true.

        Raises:
            InvalidDataError: The expression can't be evaluated on a row.
        """
        with _cursor() as cursor:
            for batch in batches:
                keep = _evaluated(cursor, self._sql, batch.select(list(self.columns)))
                rows = batch.select(list(names))
                if keep.true_count < len(keep):
                    rows = rows.filter(keep)
                if rows.num_rows:
                    yield rows

    def _narrow(self, comparison: Comparison, text: str) -> None:
        instant = _instant(text)
        if instant is None:
            return
        first, last = self._span
        if comparison in (Comparison.ABOVE, Comparison.AT_LEAST, Comparison.EQUAL):
            first = max(first, instant + (comparison is Comparison.ABOVE))
        if comparison in (Comparison.BELOW, Comparison.AT_MOST, Comparison.EQUAL):
            last = min(last, instant + (comparison is not Comparison.BELOW))
        self._span = (first, last)


def _tree(text: str) -> Node:
    """Return the tree of an expression and of nothing else."""
    with _cursor() as cursor:
        select = _statement(cursor, _WHERE.format(text))
        expected = _statement(cursor, _OUTSIDE)
    tree: Node | None = select["node"].get("where_clause")
    # Clauses may follow it: then something else is not as it was, either.
    if {**select["node"], "where_clause": None} != {**expected["node"], "where_clause": None}:
        raise _refused("it must be one expression")
    assert tree is not None  # noqa: S101 - as much as was expected is there
    return tree


def _statement(cursor: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    with _explained():
        rows = cursor.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()
    try:
        answer = json.loads(rows[0][0])
    except RecursionError:
        raise _refused("it is nested too deeply") from None
    if answer["error"]:
        raise _refused(str(answer["error_message"]))
    if len(answer["statements"]) != 1 or answer["statements"][0]["named_param_map"]:
        raise _refused("it must be one expression, without parameters")
    statement: dict[str, Any] = answer["statements"][0]
    return statement


def _written(cursor: duckdb.DuckDBPyConnection, tree: Node) -> str:
    """Return SQL that evaluates a tree, written from the tree alone."""
    statement = _statement(cursor, _PROBE)
    statement["node"]["select_list"] = [{**tree, "alias": "keep"}]
    whole = json.dumps({"error": False, "statements": [statement]})
    with _explained():
        return str(cursor.execute("SELECT json_deserialize_sql(?::JSON)", [whole]).fetchall()[0][0])


def _evaluated(
    cursor: duckdb.DuckDBPyConnection, sql: str, batch: pa.RecordBatch
) -> pa.BooleanArray:
    with _explained():
        cursor.register("rows", batch)
        table = cursor.sql(sql).to_arrow_table()
    keep = table.column(0).combine_chunks()
    return keep.chunk(0) if isinstance(keep, pa.ChunkedArray) else keep


@lru_cache(maxsize=256)
def _instant(text: str) -> int | None:
    """Return what DuckDB takes a text for, µs since 1970; None where it is no instant."""
    with _cursor() as cursor:
        try:
            rows = cursor.execute("SELECT epoch_us(CAST(? AS TIMESTAMPTZ))", [text]).fetchall()
        except duckdb.Error:
            return None
    return None if rows[0][0] is None else int(rows[0][0])


@contextmanager
def _explained() -> Iterator[None]:
    """Tell DuckDB's errors as ours, without what it adds below its first line."""
    try:
        yield
    except duckdb.InterruptException:
        raise _refused("it takes too long") from None
    except duckdb.Error as error:
        raise _refused(str(error).partition("\n")[0]) from None


def _refused(why: str) -> InvalidDataError:
    return InvalidDataError(f"{FIELD}: {why}", field=FIELD)


@contextmanager
def _cursor() -> Iterator[duckdb.DuckDBPyConnection]:
    with _ENGINE_STARTING:
        engine = _engine()
    cursor = engine.cursor()
    try:
        cursor.execute(f"SET max_execution_time = {BATCH_TIME_LIMIT_MS}")
        yield cursor
    finally:
        cursor.close()


_ENGINE_STARTING: Final = threading.Lock()


@lru_cache(maxsize=1)
def _engine() -> duckdb.DuckDBPyConnection:
    """Return the one DuckDB of this process for expressions: it reaches nothing outside."""
    engine = duckdb.connect(
        ":memory:",
        config={
            "threads": 1,
            "memory_limit": ENGINE_MEMORY,
            "temp_directory": "",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
        },
    )
    engine.execute("SET GLOBAL TimeZone = 'UTC'")
    engine.execute("SET allowed_configs = ['max_execution_time']")
    engine.execute("SET enable_external_access = false")
    engine.execute("SET lock_configuration = true")
    return engine
