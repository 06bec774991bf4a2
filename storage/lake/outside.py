"""Errors of the libraries and of the disk below the lake, told as ours."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyarrow as pa
from deltalake.exceptions import DeltaError

from storage.errors import LakeError, LakeFullError

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_NO_ROOM_IN_WORDS: Final = ("No space left on device", "Disk quota exceeded")


@contextmanager
def errors_as_ours(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file or table at ``path`` into a ``LakeError``.

    Raises:
        LakeFullError: The disk is full.
        LakeError: Anything else.
    """
    try:
        yield
    except (OSError, pa.ArrowException, DeltaError) as error:
        said = str(error).partition("\n")[0]  # what follows is a trace of the library's own
        in_words = any(words in str(error) for words in _NO_ROOM_IN_WORDS)
        if getattr(error, "errno", None) in _NO_ROOM or in_words:
            raise LakeFullError(f"{path}: the disk is full: make room on it") from error
        raise LakeError(f"{path}: {said}") from error
