"""The registry of datasets: what every other part relies on without looking."""

import pyarrow as pa
import pytest

from storage.schemas import DATASETS, DICTIONARY, SYMBOL_PATTERN, TIMESTAMP, Dataset, Flag, Layout

ALL = pytest.mark.parametrize("dataset", DATASETS.values(), ids=lambda dataset: dataset.name)


@ALL
def test_every_dataset_begins_with_the_same_three_columns(dataset: Dataset) -> None:
    assert dataset.schema.names[:3] == ["ts_event", "ts_recv", "symbol"]
    assert dataset.schema.types[:2] == [TIMESTAMP, TIMESTAMP]
    assert not dataset.schema.field("ts_event").nullable


@ALL
def test_every_named_column_exists(dataset: Dataset) -> None:
    named = {*dataset.lane, *dataset.identity, *dataset.dictionary, *dataset.order}
    assert named <= set(dataset.schema.names)


@ALL
def test_every_order_begins_with_the_event(dataset: Dataset) -> None:
    assert dataset.order[0] == "ts_event"
    assert "symbol" not in dataset.order


@ALL
def test_column_buffers_can_hold_every_column_and_its_nulls(dataset: Dataset) -> None:
    if dataset.layout is not Layout.COLUMNS:
        return
    for column in dataset.schema:
        coded = column.name in dataset.dictionary
        assert coded or pa.types.is_primitive(column.type), column
        # A code has a value for null and a float has NaN; nothing else has.
        assert coded or pa.types.is_floating(column.type) or not column.nullable, column


@ALL
def test_a_lane_is_a_symbol_a_source_and_a_name_where_columns_are_kept(dataset: Dataset) -> None:
    if dataset.layout is Layout.COLUMNS:
        assert dataset.lane[:2] == ("symbol", "source")
        assert len(dataset.lane) == 3
        assert set(dataset.lane) <= set(dataset.dictionary)


@ALL
def test_the_wire_carries_the_same_columns_with_names_as_dictionaries(dataset: Dataset) -> None:
    assert dataset.wire_schema.names == dataset.schema.names
    for sent, kept in zip(dataset.wire_schema, dataset.schema, strict=True):
        assert sent.type == (DICTIONARY if sent.name in dataset.dictionary else kept.type)
        assert sent.nullable == kept.nullable


def test_ticks_have_the_documented_order_and_identity() -> None:
    ticks = DATASETS["ticks"]
    assert ticks.order == ("ts_event", "source", "contract", "sequence", "kind")
    assert ticks.identity == ("source", "contract", "sequence", "kind")


def test_flags_keep_their_bits_for_ever() -> None:
    assert [flag.value for flag in Flag] == [1 << bit for bit in range(9)]
    assert (Flag.BACKFILLED, Flag.SUSPICIOUS, Flag.SYNTHETIC) == (64, 128, 256)


def test_operational_data_is_for_admins_except_what_tells_how_complete_an_answer_is() -> None:
    open_to_all = {name for name, dataset in DATASETS.items() if not dataset.admin_only}
    assert {"gaps", "segments", "spot_checks"} <= open_to_all
    assert open_to_all.isdisjoint({"jobs", "quarantine", "queries", "service_events"})


@pytest.mark.parametrize("symbol", ["MNQ", "BRK.B", "6E", "A" * 32, "ES_SPX", "X-Y"])
def test_a_symbol_is_what_people_type(symbol: str) -> None:
    assert SYMBOL_PATTERN.fullmatch(symbol)


@pytest.mark.parametrize("symbol", ["", "mnq", ".X", "A" * 33, "A B", "A\n", "É", "/MNQ"])
def test_anything_else_is_no_symbol(symbol: str) -> None:
    assert SYMBOL_PATTERN.fullmatch(symbol) is None
