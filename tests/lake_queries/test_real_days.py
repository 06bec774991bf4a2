"""Two real days of SPY in the lake: equal to the files they came from, whoever reads them."""

import os
from collections.abc import Iterator
from pathlib import Path

import daft
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tickflight
from ingest.files import import_ticks
from tests.flight_server.conftest import House, new_key, serving, until

SAMPLES = Path(__file__).parents[3] / "shared" / "samples" / "ticks"
DAYS = ("2013-10-07", "2013-10-08")
COLUMNS = ["ts_event", "price", "size", "exchange", "condition"]
ORDER = ("ts_event", "sequence")
PIECES = 2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files() -> list[Path]:
    paths = [SAMPLES / f"spy-{day}.trades.parquet" for day in DAYS]
    if not all(path.exists() for path in paths):
        if "CI" in os.environ:
            pytest.fail(f"sample files are missing in {SAMPLES}")
        pytest.skip("sample files are not here")
    return paths


def pieces(files: list[Path], directory: Path) -> Iterator[Path]:
    """Cut each day in pieces, for the lake to have several parts of it."""
    for path in files:
        day = pq.read_table(path)
        rows = -(-day.num_rows // PIECES)
        for piece in range(PIECES):
            target = directory / f"{path.stem}-{piece}.parquet"
            pq.write_table(day.slice(piece * rows, rows), target)
            yield target


def in_memory(house: House) -> int:
    store = house.service._store
    assert store is not None
    return store.datasets()["ticks"].rows


@pytest.fixture(scope="module")
def place(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a service that has both days in its lake, joined, and verified."""
    directory = tmp_path_factory.mktemp("spy")
    with (
        serving(directory, hot_window_us=1) as house,
        tickflight.connect(house.service.uri, new_key(directory)) as client,
    ):
        for piece in pieces(files, tmp_path_factory.mktemp("pieces")):
            import_ticks(client, [piece], symbol="SPY")
            client.action("rollover", {"all": True})
            until(lambda: in_memory(house) == 0, seconds=120)
        joined = client.action("compact", {"dataset": "ticks"}, timeout=300)["joined"]
        assert [one["files"] for one in joined] == [PIECES] * len(DAYS)
        verified = client.action("verify", {}, timeout=300)
        assert (verified["left"], verified["damaged"]) == (0, [])
    return directory


@pytest.fixture
def client(place: Path) -> Iterator[tickflight.Client]:
    """A client of a service that found the lake there when it started."""
    with (
        serving(place / "copy", lake_directory=place / "lake") as house,
        tickflight.connect(house.service.uri, new_key(place / "copy")) as client,
    ):
        yield client


def on_file(files: list[Path]) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path, columns=COLUMNS) for path in files])


def same(found: pl.DataFrame, files: list[Path]) -> bool:
    text = pl.col("exchange", "condition").cast(pl.String)
    utc = pl.col("ts_event").cast(pl.Datetime("us", "UTC"))
    return found.select(COLUMNS).with_columns(text, utc).equals(on_file(files).with_columns(text))


def frame(table: pa.Table) -> pl.DataFrame:
    found = pl.from_arrow(table)
    assert isinstance(found, pl.DataFrame)
    return found


def test_the_service_answers_the_files_row_for_row(
    client: tickflight.Client, files: list[Path]
) -> None:
    answer = client.range("ticks", "SPY", DAYS[0], "2013-10-09", columns=COLUMNS)
    assert same(answer.polars(), files)


def test_polars_reads_the_same_rows(place: Path, files: list[Path]) -> None:
    assert same(pl.scan_delta(str(place / "lake" / "ticks")).sort(ORDER).collect(), files)


def joined(place: Path) -> str:
    """The files of today: what was joined stays beside them for those who read it already."""
    return str(place / "lake" / "ticks" / "symbol=*" / "date=*" / "compact-*.parquet")


def test_duckdb_reads_the_same_rows_from_plain_parquet(place: Path, files: list[Path]) -> None:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        rows = connection.read_parquet(joined(place), hive_partitioning=True)
        table = rows.order(", ".join(ORDER)).to_arrow_table()
    assert same(frame(table), files)


def test_daft_reads_the_same_rows_from_plain_parquet(place: Path, files: list[Path]) -> None:
    rows = daft.read_parquet(joined(place), hive_partitioning=True)
    assert same(frame(rows.sort([*ORDER]).to_arrow()), files)


def test_bars_of_a_minute_are_those_of_polars(client: tickflight.Client, files: list[Path]) -> None:
    price, size = pl.col("price"), pl.col("size")
    expected = (
        on_file(files)
        .group_by_dynamic("ts_event", every="1m")
        .agg(
            open=price.first(),
            high=price.max(),
            low=price.min(),
            close=price.last(),
            volume=size.sum(),
            trades=pl.len().cast(pl.Int64),
        )
    )
    found = client.bars("SPY", "1m", DAYS[0], "2013-10-09").polars()
    assert found.select(expected.columns).equals(expected)
