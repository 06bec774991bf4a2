"""Logging of a process: one structured line an event on stderr, with its role and no secrets.

Our packages log through structlog or ``logging``; both end in the same formatter. People at a
terminal get columns, everything else gets JSON lines. The finished line is what is searched for
secrets, so nothing (an event, a value, a traceback, another library's message) can go round it.
"""

import json
import logging
import logging.config
import re
import sys
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

REDACTED: Final = "[redacted]"
_KEY: Final = re.compile(r"(tf_[0-9A-Za-z]{1,64})_[0-9A-Za-z]+")
"""Any API key, also one that is cut short or that we never issued; its id may be seen."""
_SHORTEST_SECRET_CHARS: Final = 6
"""Shorter values are no secrets, and hiding them would riddle lines with holes."""
OUR_LOGGERS: Final = ("flight_server", "ingest", "storage", "tickflight", "tickflightd", "webui")


def redactor(secrets: Iterable[str]) -> Callable[[str], str]:
    """Return a function that leaves API keys and the given secrets out of a text."""
    spellings = {
        spelling
        for secret in secrets
        if len(secret) >= _SHORTEST_SECRET_CHARS
        # Twice: a traceback shows the repr of a value, and JSON escapes what that has escaped.
        for once in _escapes(secret)
        for spelling in _escapes(once)
    }
    # The longest first: one secret may be part of another.
    known = re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) or r"\Z.")

    def redact(text: str) -> str:
        return known.sub(REDACTED, _KEY.sub(rf"\1_{REDACTED}", text))

    return redact


def _escapes(text: str) -> set[str]:
    """Return the ways ``text`` is spelled inside JSON, inside a repr, and as it is."""
    quoted = (json.dumps(text), json.dumps(text, ensure_ascii=False), repr(text))
    return {text, *(spelling[1:-1] for spelling in quoted)}


class _RedactedFormatter(structlog.stdlib.ProcessorFormatter):
    """The formatter of all lines; its last act is to leave secrets out."""

    def __init__(
        self, *, role: str, render: Processor, redact: Callable[[str], str], pre: list[Processor]
    ) -> None:
        def bind_role(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
            event.setdefault("role", role)
            return event

        super().__init__(
            foreign_pre_chain=pre,
            processors=[
                bind_role,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                render,
            ],
        )
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(super().format(record))


def configure(
    role: str, *, level: str = "info", secrets: Iterable[str] = (), stream: TextIO | None = None
) -> None:
    """Set up logging for this process, uncaught exceptions included.

    Args:
        role: What this process does; every line says so.
        level: ``debug``, ``info``, ``warning`` or ``error``, for our own packages. Others speak
            from warning up: at debug, libraries are known to print credentials.
        secrets: Values that must not appear, beside API keys.
        stream: Where lines go; stderr by default.
    """
    stream = sys.stderr if stream is None else stream
    pre = _enrichers()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        _RedactedFormatter(role=role, render=_renderer(stream), redact=redactor(secrets), pre=pre)
    )
    # A line that can't be formatted or written is dropped: the default prints its raw arguments.
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in OUR_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *pre,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    _log_uncaught_exceptions()


def _enrichers() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _renderer(stream: TextIO) -> Processor:
    if stream.isatty():
        # Not rich's tracebacks: they show local variables, and wrap lines (and so secrets) in two.
        return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    render = structlog.processors.JSONRenderer(ensure_ascii=False, default=str)

    def json_line(logger: WrappedLogger, method: str, event: EventDict) -> str | bytes:
        return render(logger, method, structlog.processors.format_exc_info(logger, method, event))

    return json_line


def _log_uncaught_exceptions() -> None:
    """Send what nobody caught through the same formatter; Python's own knows no secrets."""
    log = structlog.get_logger(__name__)

    def in_main_thread(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            log.critical("uncaught exception", exc_info=(kind, error, trace))

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
            thread = args.thread.name if args.thread else None
            log.critical("uncaught exception", thread=thread, exc_info=args.exc_value)

    sys.excepthook = in_main_thread
    threading.excepthook = in_thread
