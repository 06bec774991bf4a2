"""The door: what comes in becomes fixed-width columns, and no impossible row gets past.

Three outcomes. A batch of the wrong schema is refused whole. An *impossible* row (a required value
missing, a price that is no number, a negative size, a bad symbol) goes to quarantine. An
*improbable* row (crossed, off the tick grid, far from the last price, from the future) is stored
with the SUSPICIOUS flag: the tape is what the venue said.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.dictionary import INVALID, NULL, Codes, Dictionary
from storage.errors import SchemaMismatchError
from storage.ports import MICROSECONDS
from storage.runs import Mask
from storage.schemas import Dataset, Flag

Column = npt.NDArray[Any]

INSTANT_MAX: Final = 7_258_118_400 * MICROSECONDS
"""The year 2200: an instant beyond it is a unit mixed up (ns for us), never an event."""
CLOCK_SKEW_MAX: Final = 2 * MICROSECONDS
"""How far a venue's clock may run ahead of ours before its instant is suspicious."""
OUTLIER_RATIO: Final = 0.2
"""A trade this far from the feed's last price is suspicious: exchanges halt long before."""
TICK_SIZES: Final[Mapping[str, float]] = {"MES": 0.25, "ES": 0.25, "MNQ": 0.25, "NQ": 0.25}
"""Price grids that every trade of a symbol lies on; equities print between their cents."""

CLEAR: Final = 0
"""The action of a depth row that empties a side of the book."""

_CODED_VALUES: Final = {"side": (-1, 1), "kind": (0, 2), "action": (0, 3)}
_NEVER_NEGATIVE: Final = frozenset(
    {"size", "bid_size", "ask_size", "volume", "buy_volume", "sell_volume", "orders", "trades"}
)


@dataclass(frozen=True, slots=True)
class Rejected:
    """Rows that can't be: their numbers in the batch, and why."""

    rows: npt.NDArray[np.int64]
    reason: str


class Decoder:
    """Turns the batches of one DoPut stream into the hot store's columns."""

    def __init__(
        self, dataset: Dataset, schema: pa.Schema, dictionaries: Mapping[str, Dictionary]
    ) -> None:
        check_schema(dataset, schema)
        self._dataset = dataset
        self._dictionaries = dictionaries
        self._at = [schema.get_field_index(name) for name in dataset.schema.names]
        # Codes of a dictionary seen before. Holding the dictionary keeps its memory from being
        # reused, so an equal address is proof of equal strings.
        self._mapped: dict[str, tuple[pa.Array, Codes]] = {}

    def decode(self, batch: pa.RecordBatch) -> tuple[list[Column], list[Rejected]]:
        """Return one array a dataset column, and the rows that lack a required value."""
        rejected: list[Rejected] = []
        columns = []
        for at, field in zip(self._at, self._dataset.schema, strict=True):
            array = None if at < 0 else batch.column(at)
            if array is not None and array.null_count and not field.nullable:
                rows = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
                rejected.append(Rejected(rows, f"{field.name} is missing"))
            columns.append(self._column(field, array, batch.num_rows))
        return columns, rejected

    def _column(self, field: pa.Field, array: pa.Array | None, rows: int) -> Column:
        if field.name in self._dictionaries:
            if array is None:
                return np.full(rows, NULL, np.int32)
            return self._codes(field.name, array)
        width: np.dtype[Any] = np.dtype(storage_type(field.type))
        if array is None:
            return np.full(rows, np.nan, width)
        values = fixed_width_values(array, width)
        if array.null_count and field.nullable:
            values = values.copy()
            values[array.is_null().to_numpy(zero_copy_only=False)] = np.nan
        return values

    def _codes(self, name: str, array: pa.Array) -> Codes:
        if not pa.types.is_dictionary(array.type):
            array = array.dictionary_encode()
        indices = array.indices
        at = fixed_width_values(indices, np.dtype(indices.type.to_pandas_dtype()))
        if indices.null_count:
            at = at.astype(np.int64)
            at[indices.is_null().to_numpy(zero_copy_only=False)] = -1
        return self._mapping(name, array.dictionary)[at]

    def _mapping(self, name: str, dictionary: pa.Array) -> Codes:
        known = self._mapped.get(name)
        if known is not None and _same_memory(known[0], dictionary):
            return known[1]
        codes = self._dictionaries[name].encode(dictionary)
        self._mapped[name] = (dictionary, codes)
        return codes


class Plausibility:
    """Tells impossible rows from improbable ones, for one dataset."""

    def __init__(self, dataset: Dataset, dictionaries: Mapping[str, Dictionary]) -> None:
        self._at = {name: i for i, name in enumerate(dataset.schema.names)}
        self._checks = list(_impossible_checks(dataset))
        self._dictionaries = dictionaries
        self._last_prices = np.empty((0, 0))
        self._steps = np.empty(0)

    def impossible(self, columns: Sequence[Column]) -> list[Rejected]:
        """Return the rows that can't be, each with its reason."""
        found = []
        for name, reason, possible in self._checks:
            good = possible(columns[self._at[name]])
            if not good.all():
                found.append(Rejected(np.flatnonzero(~good), f"{name} {reason}"))
        return found

    def flag_improbable(self, columns: list[Column], arrival: int) -> None:
        """Set SUSPICIOUS in the ``flags`` column of improbable rows."""
        if "flags" not in self._at or not len(columns[0]):
            return
        flags = columns[self._at["flags"]]
        live = (flags & Flag.BACKFILLED) == 0
        # The market of a replay has a clock of its own, which may run ahead of ours.
        real = live & ((flags & Flag.SYNTHETIC) == 0)
        suspicious = (columns[0] > arrival + CLOCK_SKEW_MAX) & real
        if "bid" in self._at and "ask" in self._at:
            suspicious |= columns[self._at["bid"]] > columns[self._at["ask"]]
        if "price" in self._at:
            suspicious |= self._bad_price(columns, live)
        if suspicious.any():
            marked = np.where(suspicious, flags | Flag.SUSPICIOUS, flags)
            columns[self._at["flags"]] = marked.astype(flags.dtype)

    def _bad_price(self, columns: Sequence[Column], live: Mask) -> Mask:
        price = columns[self._at["price"]]
        symbols = columns[self._at["symbol"]]
        per_unit = self._steps_per_unit()[symbols]
        with np.errstate(over="ignore"):  # what overflows is off the grid and far from any price
            steps = price * per_unit
            bad = self._outliers(columns, price, live)
        bad |= (price <= 0) | (steps != np.rint(steps))
        if "action" in self._at:
            bad &= columns[self._at["action"]] != CLEAR  # it has no price
        return bad

    def _steps_per_unit(self) -> npt.NDArray[np.float64]:
        symbols = self._dictionaries["symbol"]
        if len(self._steps) != len(symbols):
            sizes = (TICK_SIZES.get(symbol) for symbol in symbols.values())
            self._steps = np.array([0.0 if size is None else 1 / size for size in sizes])
        return self._steps

    def _outliers(self, columns: Sequence[Column], price: Column, live: Mask) -> Mask:
        source, contract = columns[self._at["source"]], columns[self._at["contract"]]
        last_prices = self._last_prices_of_feeds()
        last = last_prices[source, contract]  # NaN before a feed's first price, which never differs
        last_prices[source[live], contract[live]] = price[live]
        outlier: Mask = np.abs(price - last) > OUTLIER_RATIO * np.abs(last)
        outlier &= live
        return outlier

    def _last_prices_of_feeds(self) -> npt.NDArray[np.float64]:
        feeds = (len(self._dictionaries["source"]), len(self._dictionaries["contract"]))
        if self._last_prices.shape != feeds:
            grown = np.full(feeds, np.nan)
            known = self._last_prices
            grown[: known.shape[0], : known.shape[1]] = known
            self._last_prices = grown
        return self._last_prices


def check_schema(dataset: Dataset, schema: pa.Schema) -> None:
    """Check that ``schema`` can be taken for ``dataset``, columns in any order.

    Raises:
        SchemaMismatchError: Names the column and what it must be.
    """
    for name in schema.names:
        if name not in dataset.schema.names:
            expected = ", ".join(dataset.schema.names)
            message = f"{dataset.name} has no column {name!r}; its columns are {expected}"
            raise SchemaMismatchError(message, field=name)
        if schema.names.count(name) > 1:
            raise SchemaMismatchError(f"column {name!r} comes twice", field=name)
    for field in dataset.schema:
        at = schema.get_field_index(field.name)
        if at >= 0 and not _fits(schema.field(at).type, field.type):
            sent = schema.field(at).type
            message = f"{dataset.name}.{field.name} must be {field.type}, not {sent}: cast it"
            raise SchemaMismatchError(message, field=field.name)
        if at < 0 and not field.nullable:
            message = f"{dataset.name} needs the column {field.name!r} ({field.type})"
            raise SchemaMismatchError(message, field=field.name)


def storage_type(data_type: pa.DataType) -> npt.DTypeLike:
    """Return the numpy type that the hot store keeps a fixed-width Arrow type in."""
    if pa.types.is_timestamp(data_type):
        return np.int64
    return data_type.to_pandas_dtype()  # type: ignore[no-any-return]


def fixed_width_values(array: pa.Array, width: np.dtype[Any]) -> Column:
    """Return the values of a fixed-width array without copying; null slots hold anything."""
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array), width)
    values = np.frombuffer(buffer, width, count=array.offset + len(array))
    return values[array.offset :]


def _fits(sent: pa.DataType, expected: pa.DataType) -> bool:
    if pa.types.is_string(expected):
        if pa.types.is_dictionary(sent):
            sent = sent.value_type
        elif pa.types.is_string_view(sent):  # which Arrow can't take out of a dictionary
            return True
        return bool(pa.types.is_string(sent) or pa.types.is_large_string(sent))
    return bool(sent.equals(expected))


def _same_memory(one: pa.Array, other: pa.Array) -> bool:
    if len(one) != len(other) or one.offset != other.offset:
        return False
    addresses = [[b and b.address for b in array.buffers()] for array in (one, other)]
    return addresses[0] == addresses[1]


def _impossible_checks(
    dataset: Dataset,
) -> list[tuple[str, str, Callable[[Column], Mask]]]:
    checks: list[tuple[str, str, Callable[[Column], Mask]]] = []
    for field in dataset.schema:
        name = field.name
        if pa.types.is_timestamp(field.type):
            checks.append((name, "lies outside 1970 to 2200", _is_instant))
        elif name in dataset.dictionary:
            # A null may also hide in the dictionary itself, where Arrow does not count it.
            kept = _is_kept_or_null if field.nullable else _is_kept
            checks.append((name, "is not a name we can keep", kept))
        elif pa.types.is_floating(field.type):
            finite = _is_finite_or_null if field.nullable else np.isfinite
            checks.append((name, "is not a finite number", finite))
        elif name in _CODED_VALUES:
            low, high = _CODED_VALUES[name]
            checks.append((name, f"is not in {low}…{high}", _between(low, high)))
        if name in _NEVER_NEGATIVE:
            checks.append((name, "is negative", lambda values: ~(values < 0)))
    return checks


def _is_instant(values: Column) -> Mask:
    return (values >= 0) & (values < INSTANT_MAX)


def _is_kept(codes: Column) -> Mask:
    kept: Mask = codes >= 0
    return kept


def _is_kept_or_null(codes: Column) -> Mask:
    kept: Mask = codes != INVALID
    return kept


def _is_finite_or_null(values: Column) -> Mask:
    return ~np.isinf(values)


def _between(low: int, high: int) -> Callable[[Column], Mask]:
    return lambda values: (values >= low) & (values <= high)
