"""Rows of a file as ticks."""

from collections.abc import Callable
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.errors import BadValueError
from ingest.files import values
from ingest.files.columns import ColumnPlan
from ingest.files.values import InstantColumn
from storage.schemas import DICTIONARY, TICKS, TIMESTAMP, Flag, Kind

SOURCE: Final = "import"
_SCHEMA: Final = pa.schema(field.with_nullable(True) for field in TICKS.wire_schema)  # noqa: FBT003
"""What a file lacks is null, also where a tick needs it: the service sets such rows aside."""
_CONVERTERS: Final[dict[str, Callable[[pa.Array], pa.Array]]] = {
    "price": values.numbers,
    "size": values.numbers,
    "bid": values.numbers,
    "ask": values.numbers,
    "side": values.sides,
    "exchange": values.texts,
    "condition": values.texts,
}


class TickConverter:
    """Makes ticks of one file's rows; used for its batches in order.

    Args:
        plan: Where each field comes from.
        symbol: What people will ask for.
        contract: What traded.
        timezone: Zone of instants that name none; None refuses those.
    """

    def __init__(
        self, plan: ColumnPlan, *, symbol: str, contract: str, timezone: str | None
    ) -> None:
        self._plan = plan
        self._constants = {"symbol": symbol, "contract": contract, "source": SOURCE}
        self._event = InstantColumn(timezone)
        self._receipt = InstantColumn(timezone)

    @property
    def truncated_rows(self) -> int:
        """Rows whose ``ts_event`` was finer than a microsecond."""
        return self._event.truncated_rows

    def convert(self, rows: pa.RecordBatch, first_sequence: int) -> pa.RecordBatch:
        """Return ``rows`` as ticks.

        Args:
            rows: The plan's columns.
            first_sequence: ``sequence`` of the first of them; the rest count up.

        Raises:
            BadValueError: A value is not what its column must hold; its row is one of ``rows``.
        """
        columns = self._constant(rows.num_rows) | self._times(rows)
        for field in self._plan.mapped:
            if field in _CONVERTERS:
                columns[field] = self._taken(rows, field, _CONVERTERS[field])
        columns["sequence"] = pa.array(
            np.arange(first_sequence, first_sequence + rows.num_rows, dtype=np.int64)
        )
        absent = [field for field in TICKS.wire_schema if field.name not in columns]
        columns |= {field.name: _absent(field, rows.num_rows) for field in absent}
        return pa.RecordBatch.from_arrays(
            [columns[name] for name in TICKS.schema.names], schema=_SCHEMA
        )

    def _times(self, rows: pa.RecordBatch) -> dict[str, pa.Array]:
        """When it happened and when it came; without the second, the first, and a flag for it."""
        event = self._taken(rows, "ts_event", self._event.read)
        if "ts_recv" in self._plan.mapped:
            given = self._taken(rows, "ts_recv", self._receipt.read)
        else:
            given = pa.nulls(len(event), TIMESTAMP)
        backfilled = np.where(
            given.is_null().to_numpy(zero_copy_only=False), int(Flag.BACKFILLED), 0
        )
        return {
            "ts_event": event,
            "ts_recv": pc.coalesce(given, event),
            "flags": pa.array(backfilled | int(Flag.VALID_TICK), pa.uint16()),
        }

    def _taken(
        self, rows: pa.RecordBatch, field: str, convert: Callable[[pa.Array], pa.Array]
    ) -> pa.Array:
        column = self._plan.mapped[field]
        taken = rows.column(column)
        if pa.types.is_dictionary(taken.type):
            taken = taken.dictionary_decode()
        try:
            return convert(taken)
        except BadValueError as error:
            raise BadValueError(error.row, f"{field} from column {column!r}: {error}") from None

    def _constant(self, count: int) -> dict[str, pa.Array]:
        index = pa.array(np.zeros(count, np.int32))
        return {
            name: pa.DictionaryArray.from_arrays(index, pa.array([value]))
            for name, value in self._constants.items()
        }


def _absent(field: pa.Field, count: int) -> pa.Array:
    if field.type == DICTIONARY:
        return pa.nulls(count, DICTIONARY)
    if field.nullable:
        return pa.nulls(count, field.type)
    # Side and kind: 0 is unknown, and a new tick.
    return pa.array(np.full(count, int(Kind.NEW)), field.type)
