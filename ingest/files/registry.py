"""What the service knows of a file: its number, and how far an import of it got."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from ingest.errors import ImportFileError
from ingest.ports import Service

_DIGEST_BYTES: Final = 32
_CHUNK_BYTES: Final = 1 << 20


class Standing(Enum):
    """How far the import of a file has got."""

    NEW = "new"
    PARTIAL = "partial"
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True)
class Registration:
    """The service's word on one file.

    Attributes:
        number: The file's; the upper half of its rows' ``sequence``.
        standing: How far it got.
        options: Those it was first registered with.
        durable_seq: Number of the last batch that is safe, 0 when there is none.
        bulk_seq: Likewise, of those that went past memory.
    """

    number: int
    standing: Standing
    options: Mapping[str, Any]
    durable_seq: int
    bulk_seq: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a file was when it was read: a file that is still written to can't be imported."""

    digest: str
    size_bytes: int
    modified_ns: int

    @property
    def producer(self) -> str:
        """Under which id the file's batches are sent, whoever sends them."""
        return f"file-{self.digest}"


def fingerprint(path: Path) -> Fingerprint:
    """Read the whole file and say what it is.

    Raises:
        ImportFileError: It can't be read.
    """
    digest = blake2b(digest_size=_DIGEST_BYTES)
    with _naming(path):
        status = path.stat()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return Fingerprint(digest.hexdigest(), status.st_size, status.st_mtime_ns)


def check_unchanged(path: Path, file: Fingerprint) -> None:
    """Refuse a file that is no longer the one whose digest was taken.

    Raises:
        ImportFileError: It has changed, or can't be seen.
    """
    with _naming(path):
        status = path.stat()
    if (status.st_size, status.st_mtime_ns) != (file.size_bytes, file.modified_ns):
        raise ImportFileError(
            path, "it changed while it was imported; wait until nobody writes to it"
        )


def register(
    service: Service, path: Path, file: Fingerprint, options: Mapping[str, Any]
) -> Registration:
    """Give the file a number, or learn the one it has."""
    answer = service.action(
        "files.register",
        {
            "digest": file.digest,
            "name": path.name,
            "dataset": "ticks",
            "options": dict(options),
            "producer": file.producer,
        },
    )
    return Registration(
        number=answer["number"],
        standing=Standing(answer["state"]),
        options=answer["options"],
        durable_seq=answer["durable_seq"],
        bulk_seq=answer["bulk_seq"],
    )


def complete(service: Service, file: Fingerprint, rows: int) -> None:
    """Say that the file's last row is durable: from now on it is imported."""
    service.action("files.complete", {"digest": file.digest, "rows": rows})


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ImportFileError(path, error.strerror or str(error)) from None
