"""The client: questions to a tickflight server, answered as Arrow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, overload

from tickflight.bulk import BulkWriter
from tickflight.connection import Connection
from tickflight.coverage import Coverage, Gaps
from tickflight.errors import InvalidRequestError
from tickflight.live import Live
from tickflight.replay import LiveReplay, Replay
from tickflight.reports import Status, SymbolInfo
from tickflight.result import Result, plain_schema
from tickflight.settings import resolve
from tickflight.tickets import (
    Compression,
    Instant,
    Order,
    Session,
    column_list,
    instant,
    symbol_list,
    ticket,
)
from tickflight.writer import Overflow, Writer, WriterLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pyarrow as pa

    from tickflight.coverage import Gap
    from tickflight.progress import Position
    from tickflight.replay import Columns

DEFAULT_TIMEOUT_SECONDS: Final = 30.0
"""For calls that answer at once. Streams have none: a year of ticks takes as long as it takes."""


def connect(
    uri: str | None = None,
    api_key: str | None = None,
    *,
    tls_root_certs: str | Path | None = None,
    tls_server_name: str | None = None,
    timeout: float | None = DEFAULT_TIMEOUT_SECONDS,
) -> Client:
    """Connect to a tickflight server.

    Args:
        uri: ``grpc://host:port`` or ``grpc+tls://host:port``; default ``TICKFLIGHT_FLIGHT_URI``,
            then ``grpc://127.0.0.1:8815``.
        api_key: ``tf_…``; default ``TICKFLIGHT_API_KEY``, then the key file that a service
            running on this machine leaves in its data directory (``TICKFLIGHT_DATA_DIR``, or
            ``./data``), offered only to the address written beside it.
        tls_root_certs: a PEM file, where the server's certificate is not signed by a public
            authority; default ``TICKFLIGHT_TLS_ROOT_CERTS``, then what the key file of this
            machine's service names.
        tls_server_name: the name to expect in the certificate, where it is not the address's, as
            behind a tunnel.
        timeout: seconds a call that answers at once may take; None for ever.

    Raises:
        ConfigurationError: there is no key, or address, key or certificates can't be used.
    """
    settings = resolve(uri, api_key, tls_root_certs=tls_root_certs, tls_server_name=tls_server_name)
    return Client(Connection(settings), timeout=timeout)


class Client:
    """Questions to one server; safe to share between threads; ``connect`` makes one.

    Symbols are one name or several. Instants are ISO 8601 text, ``"now"``, ``"-15m"`` (s, m, h, d),
    aware datetimes or epoch microseconds. All methods raise errors of ``tickflight.errors``.
    """

    def __init__(self, connection: Connection, *, timeout: float | None = None) -> None:
        self._connection = connection
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<Client {self._connection.uri}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def uri(self) -> str:
        """Where the server is."""
        return self._connection.uri

    def close(self) -> None:
        """Close the connection; idempotent. Writers made from this client have their own."""
        self._connection.close()

    def latest(
        self,
        symbols: str | Iterable[str],
        *,
        dataset: str = "ticks",
        limit: int = 100,
        columns: Iterable[str] | None = None,
        source: str | None = None,
        timeout: float | None = None,
    ) -> Result:
        """The newest ``limit`` rows of each symbol, oldest first.

        Args:
            symbols: one or several; an empty list means all the key may see.
            dataset: ``ticks``, ``quotes``, ``depth``, ``gex``, …
            limit: rows per symbol.
            columns: names to send, all by default.
            source: rows of this source alone.
            timeout: seconds for this call, the client's by default.
        """
        asked = ticket(
            "latest",
            dataset=dataset,
            symbols=symbol_list(symbols),
            limit=limit,
            columns=column_list(columns),
            source=source,
        )
        return Result(self._connection.get(asked, timeout=self._or_default(timeout)))

    def range(
        self,
        dataset: str,
        symbols: str | Iterable[str],
        start: Instant,
        end: Instant = "now",
        *,
        columns: Iterable[str] | None = None,
        where: str | None = None,
        order: Order | str | None = None,
        source: str | None = None,
        compression: Compression | str | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Rows with start ≤ ts_event < end, in total order, streamed.

        Args:
            dataset: ``ticks``, ``quotes``, ``depth``, ``gex``, …
            symbols: one or several; an empty list means all the key may see.
            start: the first instant.
            end: the first instant behind.
            columns: names to send, all by default.
            where: rows for which this SQL expression is true, like
                ``"size >= 10 and price between 21000 and 21050"``; its columns need not be sent.
            order: ``"time"`` (default) or ``"symbol"``.
            source: rows of this source alone.
            compression: ``"lz4"`` or ``"zstd"``, for slow links.
            timeout: seconds the whole stream may take, for ever by default.
        """
        asked = ticket(
            "range",
            dataset=dataset,
            symbols=symbol_list(symbols),
            start=instant(start, "start"),
            end=instant(end, "end"),
            columns=column_list(columns),
            where=where,
            order=order,
            source=source,
            compression=compression,
        )
        return Result(self._connection.get(asked, timeout=timeout))

    def ticks(
        self,
        symbols: str | Iterable[str],
        start: Instant,
        end: Instant = "now",
        *,
        columns: Iterable[str] | None = None,
        order: Order | str | None = None,
        source: str | None = None,
        compression: Compression | str | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Trades with start ≤ ts_event < end: ``range`` on ``ticks``, with its arguments."""
        return self.range(
            "ticks",
            symbols,
            start,
            end,
            columns=columns,
            order=order,
            source=source,
            compression=compression,
            timeout=timeout,
        )

    def bars(
        self,
        symbols: str | Iterable[str],
        interval: str,
        start: Instant,
        end: Instant = "now",
        *,
        session: Session | str | None = None,
        source: str | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Open, high, low, close and volume of the bars with start ≤ ts_event < end, streamed.

        A bar's ``ts_event`` is its start and its ``ts_recv`` its end; intervals without trades
        have none. The coverage is that of the ticks they are made of.

        Args:
            symbols: one or several; an empty list means all the key may see.
            interval: a number and ``s``, ``m``, ``h`` or ``d`` that divides a day, such as
                ``"1m"``.
            start: the first instant.
            end: the first instant behind.
            session: ``"utc"`` (default), or ``"cme"`` for bars aligned to CME's trade dates.
            source: made of the ticks of this source alone.
            timeout: seconds the whole stream may take, for ever by default.
        """
        asked = ticket(
            "bars",
            symbols=symbol_list(symbols),
            interval=interval,
            start=instant(start, "start"),
            end=instant(end, "end"),
            session=session,
            source=source,
        )
        return Result(self._connection.get(asked, timeout=timeout))

    @overload
    def live(
        self,
        symbols: str | Iterable[str] = (),
        *,
        dataset: str = "ticks",
        start: Instant | None = None,
        end: Instant | None = None,
        columns: Iterable[str] | None = None,
        min_interval_ms: int | None = None,
        after: Position | None = None,
        on_gap: Callable[[Gap], None] | None = None,
        on_caught_up: Callable[[], None] | None = None,
        speed: None = None,
    ) -> Live: ...

    @overload
    def live(
        self,
        symbols: str | Iterable[str] = (),
        *,
        dataset: str = "ticks",
        start: Instant,
        end: Instant,
        columns: Iterable[str] | None = None,
        speed: float,
    ) -> LiveReplay: ...

    def live(
        self,
        symbols: str | Iterable[str] = (),
        *,
        dataset: str = "ticks",
        start: Instant | None = None,
        end: Instant | None = None,
        columns: Iterable[str] | None = None,
        min_interval_ms: int | None = None,
        after: Position | None = None,
        on_gap: Callable[[Gap], None] | None = None,
        on_caught_up: Callable[[], None] | None = None,
        speed: float | None = None,
    ) -> Live | LiveReplay:
        """Rows as they come, each once, over lost connections and restarts of the server.

        Without ``start``, what arrives from now on, however old it is. With it, first all rows
        with ts_event ≥ start in total order, then what arrives: at any time the rows given out are
        those that ``range`` from ``start`` on would have, of all sources.

        With a ``speed``, the rows from ``start`` to ``end`` come again, as ``replay`` gives them.

        Args:
            symbols: one or several; an empty list means all the key may see.
            dataset: ``ticks``, ``quotes``, ``depth``, ``gex``, …
            start: the first instant.
            end: the first instant behind; the stream ends when it has come.
            columns: names to give out, all by default.
            min_interval_ms: at most one batch in so many milliseconds.
            after: go on where another stream has ended (``Live.position``).
            on_gap: told when rows are found to be missing, or have been found.
            on_caught_up: told when all that there was is given out, after each connection.
            speed: a replay so many times as fast as it was; 0 is as fast as possible.
        """
        if speed is not None:
            if start is None or end is None:
                raise InvalidRequestError("a replay (speed) needs a start and an end")
            return LiveReplay(
                self.replay(
                    [dataset], symbols, start, end, speed=speed, columns=column_list(columns)
                )
            )
        asked = ticket(
            "live",
            symbols=symbol_list(symbols),
            start=None if start is None else instant(start, "start"),
            end=None if end is None else instant(end, "end"),
            min_interval_ms=min_interval_ms,
        )
        return Live(
            self._connection,
            dataset,
            asked,
            columns=column_list(columns),
            after=after,
            on_gap=on_gap,
            on_caught_up=on_caught_up,
        )

    def replay(
        self,
        datasets: str | Iterable[str],
        symbols: str | Iterable[str],
        start: Instant,
        end: Instant = "now",
        *,
        speed: float = 1.0,
        columns: Columns | None = None,
    ) -> Replay:
        """Rows of the past again, in the order in which they were received, over all datasets.

        What a model gets is what it would have got then: rows that came late come late. The clock
        of a replay starts with its first row and stops at ``end``; rows of the span that were
        received after that come with it. ``speed=0`` does not wait: the same rows as ``range`` has,
        of all sources.

        Args:
            datasets: ``["ticks", "quotes"]``: one or several.
            symbols: one or several; an empty list means all the key may see.
            start: the first ts_event.
            end: the first one behind.
            speed: so many times as fast as it was.
            columns: names to give out, all by default; of each dataset, or the same of all.
        """
        asked = ticket(
            "live",
            symbols=symbol_list(symbols),
            start=instant(start, "start"),
            end=instant(end, "end"),
        )
        names = [datasets] if isinstance(datasets, str) else list(datasets)
        if not isinstance(columns, Mapping):
            columns = dict.fromkeys(names, () if columns is None else column_list(columns) or ())
        chosen = {name: list(those) for name, those in columns.items() if those}
        return Replay(self._connection, names, asked, speed=speed, columns=chosen)

    def symbols(self, dataset: str | None = None) -> tuple[SymbolInfo, ...]:
        """What the server holds and the key may see: rows and times by dataset and symbol."""
        held = SymbolInfo.from_answer(self.action("symbols"))
        return tuple(one for one in held if dataset in (None, one.dataset))

    def coverage(
        self,
        symbols: str | Iterable[str],
        start: Instant | None = None,
        end: Instant | None = None,
        *,
        dataset: str = "ticks",
        source: str | None = None,
    ) -> Coverage:
        """How complete a slice is, without its rows.

        Args:
            symbols: one or several; an empty list means all the key may see.
            start: the first instant; without instants, all there is.
            end: the first instant behind.
            dataset: ``ticks``, ``quotes``, ``depth``, ``gex``, …
            source: rows of this source alone.
        """
        asked = {
            "dataset": dataset,
            "symbols": symbol_list(symbols),
            "start": None if start is None else instant(start, "start"),
            "end": None if end is None else instant(end, "end"),
            "source": source,
        }
        return Coverage.from_answer(self.action("coverage", asked))

    def gaps(
        self,
        symbols: str | Iterable[str] = (),
        start: Instant | None = None,
        end: Instant | None = None,
        *,
        dataset: str | None = None,
        states: Iterable[str] = (),
        limit: int = 1_000,
    ) -> Gaps:
        """Which rows are missing, and why; each gap once, as it is now.

        Args:
            symbols: one or several; an empty list means all the key may see.
            start: gaps that end before it don't count.
            end: gaps that begin at it or later don't count.
            dataset: of this dataset alone.
            states: ``open``, ``filled``, ``unfillable``; all of them by default.
            limit: how many at most, the last ones of more.
        """
        asked = {
            "dataset": dataset,
            "symbols": symbol_list(symbols),
            "start": None if start is None else instant(start, "start"),
            "end": None if end is None else instant(end, "end"),
            "states": list(states),
            "limit": limit,
        }
        return Gaps.from_answer(self.action("gaps", asked))

    def status(self) -> Status:
        """How the server and its sources are."""
        return Status.from_answer(self.action("status"))

    def action(
        self,
        name: str,
        body: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Run a named action of the server and return its JSON answer."""
        return self._connection.action(name, body or {}, timeout=self._or_default(timeout))

    def _or_default(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout

    def schema(self, dataset: str) -> pa.Schema:
        """The Arrow schema of a dataset's rows, without asking for any."""
        asked = ticket("latest", dataset=dataset, symbols=[], limit=1)
        schema = plain_schema(self._connection.schema(asked, timeout=self._timeout))
        return schema.remove_metadata()

    def writer(
        self,
        dataset: str,
        *,
        name: str = "sdk",
        producer: str | None = None,
        first_seq: int = 1,
        schema: pa.Schema | None = None,
        spool: str | Path | None = None,
        limits: WriterLimits | None = None,
        on_overflow: Callable[[Overflow], None] | None = None,
    ) -> Writer:
        """Open a writer of rows into ``dataset``; see ``Writer`` for what it promises.

        Args:
            dataset: where the rows belong.
            name: what operators see; this life's producer id is ``<name>-<uuid>``.
            producer: an id of your own instead, for an import that can be resumed.
            first_seq: the number of the first batch, one behind what the server has of
                ``producer``.
            schema: the types for rows given as dicts; the server is asked when it is missing.
            spool: a directory that takes the rows while the server can't.
            limits: bounds of memory, spool and patience.
            on_overflow: told of rows that were not taken because the spool was full; without it
                ``write`` raises.
        """
        return Writer(
            self._connection,
            dataset,
            name=name,
            producer=producer,
            first_seq=first_seq,
            schema=schema if schema is not None else lambda: self.schema(dataset),
            spool=None if spool is None else Path(spool),
            limits=limits or WriterLimits(),
            on_overflow=on_overflow,
        )

    def bulk(
        self, dataset: str, job: str, *, first_seq: int = 1, schema: pa.Schema | None = None
    ) -> BulkWriter:
        """Open a way into ``dataset`` for old data by the million, past the server's memory.

        Args:
            dataset: where the rows belong; ``ticks``, ``quotes``, ``depth``, ``gex`` or ``bars``.
            job: a name of your own for these rows: 1 to 128 of A-Z a-z 0-9 . _ -. What was sent
                under it before is not taken again.
            first_seq: the number of the first batch, where those before it are known to be there.
            schema: the types for rows given as dicts; the server is asked when it is missing.
        """
        known = schema if schema is not None else lambda: self.schema(dataset)
        return BulkWriter(self._connection, dataset, job, first_seq=first_seq, schema=known)
