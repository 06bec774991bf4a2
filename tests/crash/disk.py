"""What a disk may hold after a power cut, given the calls that were made before it.

The model is stricter than any file system we know:

* A write is safe only once ``fsync`` or ``fdatasync`` of its file has returned that began after
  the write had returned. Until then any subset of the writes may be there, in any order; of each,
  any subset of its 512-byte sectors, and where it made the file longer, zeros in its place.
* A change of a file's size is such a write.
* Writes whose sync has failed are never safe, even if a later one succeeds: Linux forgets them.
* A new, changed or removed name is safe only once the *directory* has been synced. Until then any
  subset of those changes may be there.
"""

import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from tests.crash.recording import Call, Moment

SECTOR_BYTES: Final = 512
APPENDING: Final = -1
"""Offset of a descriptor that writes at the end, wherever that is."""
Image = dict[str, bytes | None]
"""Files by path, with their bytes; directories with None."""


class Fate(Enum):
    """What becomes of a change that was not synced."""

    KEPT = "kept"
    LOST = "lost"
    TORN = "torn"
    ZEROED = "zeroed"


@dataclass(eq=False)
class Change:
    """A change to a file or directory; durable once a sync has covered it."""

    returned: bool = False
    durable: bool = False
    doomed: bool = False
    """A sync of it has failed: no later one can be believed, whatever it says."""


@dataclass(eq=False)
class Write(Change):
    """Bytes at an offset."""

    offset: int = 0
    data: bytes = b""


@dataclass(eq=False)
class Resize(Change):
    """A new size."""

    size: int = 0


@dataclass(eq=False)
class Naming(Change):
    """Names that now mean another file, or none."""

    names: Mapping[str, "Node | None"] = field(default_factory=dict)


@dataclass(eq=False)
class Node:
    """A file or a directory: what is durable of it, and the changes that may not be."""

    changes: list[Change] = field(default_factory=list)

    def settle(self) -> None:
        """Fold in the oldest changes, as far as they are durable."""
        while self.changes and self.changes[0].durable:
            self.fold(self.changes.pop(0))

    def fold(self, change: Change) -> None:
        raise NotImplementedError


@dataclass(eq=False)
class File(Node):
    content: bytes = b""

    def fold(self, change: Change) -> None:
        content = bytearray(self.content)
        apply(content, change, Fate.KEPT, random.Random(0))
        self.content = bytes(content)


@dataclass(eq=False)
class Directory(Node):
    names: dict[str, Node | None] = field(default_factory=dict)

    def fold(self, change: Change) -> None:
        assert isinstance(change, Naming)
        self.names.update(change.names)

    def visible(self) -> dict[str, Node | None]:
        """Return the names as a running process sees them."""
        names = dict(self.names)
        for change in self.changes:
            assert isinstance(change, Naming)
            names.update(change.names)
        return names


def apply(content: bytearray, change: Change, fate: Fate, chance: random.Random) -> None:
    """Let a change happen to the bytes of a file, wholly or in part."""
    if fate is Fate.LOST:
        return
    if isinstance(change, Resize):
        grown = bytes(max(0, change.size - len(content)))
        content[:] = content[: change.size] + grown
        return
    assert isinstance(change, Write)
    end = change.offset + len(change.data)
    if fate is Fate.KEPT:
        _put(content, change.offset, change.data)
    elif fate is Fate.ZEROED:
        content.extend(bytes(max(0, end - len(content))))
    else:
        for start, stop in _sectors(change.offset, end):
            if chance.random() < 0.5:
                piece = change.data[start - change.offset : stop - change.offset]
                _put(content, start, piece)


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _sectors(start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        yield start, stop
        start = stop


class UnknownCallError(AssertionError):
    """A process changed a file in a way the model does not know: it would prove nothing."""


class CrashDisk:
    """Follows a recording; at any moment it can say what a power cut might leave.

    Args:
        root: Directory that the model covers; what lies elsewhere is nobody's business.
        image: What was there, durable, before the recording began.
    """

    def __init__(self, root: Path, image: Image | None = None) -> None:
        self._root = root
        self._top = Directory()
        self._open: dict[tuple[int, int], Node] = {}
        self._offsets: dict[tuple[int, int], int] = {}
        self._begun: dict[int, list[tuple[Node, Change]]] = {}
        for path, content in sorted((image or {}).items()):
            where, name = self._parent(self._root / path)
            where.names[name] = Directory() if content is None else File(content=content)

    def follow(self, moment: Moment) -> None:
        """Take in the next moment of the recording."""
        call = moment.call
        handler = _HANDLERS.get(call.name)
        if handler is None:
            if self.concerns(call):
                raise UnknownCallError(f"{call.name}{call.arguments!r:.200}")
            return
        if moment.begins or call.result is not None:
            handler(self, call, begins=moment.begins)

    def crash(self, chance: random.Random) -> Image:
        """Return what may be left if the power fails now."""
        image: Image = {}
        self._walk(self._top, "", _Policy(chance), image)
        return image

    def pending(self) -> int:
        """Return how many changes are not durable."""
        return sum(len(node.changes) for node in self._nodes(self._top))

    def fails_to_sync_a_directory(self, moment: Moment) -> bool:
        """Whether a moment is the end of a sync of a directory that has failed."""
        call = moment.call
        if call.name not in ("fsync", "fdatasync") or moment.begins or call.result == 0:
            return False
        return isinstance(self._open.get(self._key(call, str(call.arguments[0]))), Directory)

    # What a power cut leaves

    def _walk(self, directory: Directory, prefix: str, policy: "_Policy", image: Image) -> None:
        names = dict(directory.names)
        for change, fate in policy.of_names(directory.changes):
            assert isinstance(change, Naming)
            if fate is Fate.KEPT:
                names.update(change.names)
        for name, node in sorted(names.items()):
            path = prefix + name
            if isinstance(node, Directory):
                image[path] = None
                self._walk(node, path + "/", policy, image)
            elif isinstance(node, File) and not node.changes:
                image[path] = node.content
            elif isinstance(node, File):
                content = bytearray(node.content)
                for change, fate in policy.of_bytes(node.changes):
                    apply(content, change, fate, policy.chance)
                image[path] = bytes(content)

    def _nodes(self, directory: Directory) -> Iterator[Node]:
        yield directory
        for node in directory.visible().values():
            if isinstance(node, Directory):
                yield from self._nodes(node)
            elif node is not None:
                yield node

    # Following

    def concerns(self, call: Call) -> bool:
        """Whether a call is about what lies below the root."""
        paths = [part for part in call.arguments if isinstance(part, bytes)]
        if any(Path(os.fsdecode(path)).is_relative_to(self._root) for path in paths):
            return True
        descriptor = call.arguments[0] if call.arguments else ""
        return isinstance(descriptor, str) and self._key(call, descriptor) in self._open

    def _covers(self, path: Path) -> bool:
        # What processes share of a log (-shm) is made anew by the first of them.
        below = path.is_relative_to(self._root) and path != self._root
        return below and not path.name.endswith("-shm")

    @staticmethod
    def _key(call: Call, descriptor: str) -> tuple[int, int]:
        return call.process, int(descriptor) if descriptor.isdigit() else -1

    def _parent(self, path: Path) -> tuple[Directory, str]:
        """Return the directory of a path, and the name in it; one of its own if there is none."""
        directory = self._top
        for part in path.relative_to(self._root).parts[:-1]:
            child = directory.visible().get(part)
            if not isinstance(child, Directory):
                return Directory(), path.name  # a call that is about to fail
            directory = child
        return directory, path.name

    def _begin(self, call: Call, node: Node, change: Change) -> None:
        """Note a change when its call begins: from now on it may be there."""
        node.changes.append(change)
        self._begun[id(call)] = [(node, change)]

    def _return(self, call: Call) -> None:
        """Note that a change was made, now that its call returns; or that nothing came of it."""
        for node, change in self._begun.pop(id(call), []):
            change.returned = True
            if call.result is None or call.result < 0:
                node.changes.remove(change)
            elif isinstance(change, Write):
                change.data = change.data[: call.result]

    def _path(self, call: Call, at: int = 0) -> Path:
        paths = [part for part in call.arguments if isinstance(part, bytes)]
        return Path(os.fsdecode(paths[at]))

    def on_open(self, call: Call, *, begins: bool) -> None:
        path, flags = self._path(call), " ".join(p for p in call.arguments if isinstance(p, str))
        if begins or call.result is None or call.result < 0:
            return
        if path == self._root:
            self._open[call.process, call.result] = self._top
            return
        if not self._covers(path):
            return
        directory, name = self._parent(path)
        node = directory.visible().get(name)
        if node is None:
            node = File()
            directory.changes.append(Naming(returned=True, names={name: node}))
        elif "O_TRUNC" in flags:
            node.changes.append(Resize(returned=True, size=0))
        self._open[call.process, call.result] = node
        self._offsets[call.process, call.result] = APPENDING if "O_APPEND" in flags else 0

    def on_close(self, call: Call, *, begins: bool) -> None:
        if begins:
            self._open.pop(self._key(call, str(call.arguments[0])), None)

    def on_write(self, call: Call, *, begins: bool) -> None:
        key = self._key(call, str(call.arguments[0]))
        node = self._open.get(key)
        if not isinstance(node, File):
            return
        if not begins:
            self._return(call)
            if call.name == "write" and self._offsets[key] != APPENDING:
                self._offsets[key] += max(0, call.result or 0)
            return
        data = call.arguments[1]
        assert isinstance(data, bytes)
        offset = int(str(call.arguments[3])) if call.name == "pwrite64" else self._offsets[key]
        self._begin(call, node, Write(offset=size(node) if offset < 0 else offset, data=data))

    def on_truncate(self, call: Call, *, begins: bool) -> None:
        node = self._open.get(self._key(call, str(call.arguments[0])))
        if not begins:
            self._return(call)
        elif node is not None:
            self._begin(call, node, Resize(size=int(str(call.arguments[1]))))

    def on_sync(self, call: Call, *, begins: bool) -> None:
        node = self._open.get(self._key(call, str(call.arguments[0])))
        if node is None:
            return
        if begins:
            covered = [c for c in node.changes if c.returned and not c.doomed]
            self._begun[id(call)] = [(node, change) for change in covered]
            return
        for _, change in self._begun.pop(id(call), []):
            change.durable = call.result == 0
            # Names are journaled: where that fails, the whole file system stops taking changes.
            change.doomed = not change.durable and isinstance(node, File)
        node.settle()

    def on_name(self, call: Call, *, begins: bool) -> None:
        if not begins:
            self._return(call)
            return
        path = self._path(call)
        if not self._covers(path):
            return
        directory, name = self._parent(path)
        names: dict[str, Node | None] = {name: None}
        if call.name.startswith("mkdir"):
            if directory.visible().get(name) is not None:
                return  # it is there, as the call will say
            names[name] = Directory()
        elif call.name.startswith(("link", "rename")):
            target, other = self._parent(self._path(call, 1))
            if target is not directory:
                raise UnknownCallError(f"{call.name} between directories")
            node = directory.visible()[name]
            names = {other: node} if call.name.startswith("link") else {other: node, name: None}
        self._begin(call, directory, Naming(names=names))


def size(node: File) -> int:
    """Return the size of a file as a running process sees it."""
    content = bytearray(node.content)
    for change in node.changes:
        apply(content, change, Fate.KEPT, random.Random(0))
    return len(content)


_NAMING_CALLS: Final = (
    *("rename", "renameat", "renameat2", "link", "linkat"),
    *("unlink", "unlinkat", "rmdir", "mkdir", "mkdirat"),
)
_HANDLERS: Final[Mapping[str, Callable[..., None]]] = {
    **dict.fromkeys(("open", "openat", "creat"), CrashDisk.on_open),
    "close": CrashDisk.on_close,
    **dict.fromkeys(("write", "pwrite64"), CrashDisk.on_write),
    "ftruncate": CrashDisk.on_truncate,
    **dict.fromkeys(("fsync", "fdatasync"), CrashDisk.on_sync),
    **dict.fromkeys(_NAMING_CALLS, CrashDisk.on_name),
}


class _Policy:
    """One way in which a power cut treats what was not synced.

    Independent coin tosses alone would hardly ever lose all but one of twenty writes, nor keep all
    but one, and these are the states that wrong orders of syncing show in.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self._names = chance.choice(("all", "all", "none", "some", "prefix"))
        self._bytes = chance.choice(("all", "none", "some", "some", "prefix", "but one", "one"))
        self._torn = chance.random() < 0.5

    def of_names(self, changes: list[Change]) -> Iterator[tuple[Change, Fate]]:
        yield from self._fates(changes, self._names, torn=False)

    def of_bytes(self, changes: list[Change]) -> Iterator[tuple[Change, Fate]]:
        yield from self._fates(changes, self._bytes, torn=self._torn)

    def _fates(
        self, changes: list[Change], policy: str, *, torn: bool
    ) -> Iterator[tuple[Change, Fate]]:
        loose = sum(not change.durable for change in changes)
        cut = self.chance.randrange(loose) if loose else 0
        share = self.chance.choice((0.1, 0.5, 0.9))
        at = -1
        for change in changes:
            if change.durable:
                yield change, Fate.KEPT
                continue
            at += 1
            if torn and at == cut:
                yield change, self.chance.choice((Fate.TORN, Fate.TORN, Fate.ZEROED))
            elif self._stays(policy, at, cut, share):
                yield change, Fate.KEPT
            else:
                yield change, Fate.LOST

    def _stays(self, policy: str, at: int, cut: int, share: float) -> bool:
        match policy:
            case "some":
                return self.chance.random() < share
            case "prefix":
                return at < cut
            case "one":
                return at == cut
            case "but one":
                return at != cut
            case _:
                return policy == "all"


def materialise(image: Image, directory: Path) -> None:
    """Write an image below an empty directory."""
    for path, content in image.items():
        if content is None:
            (directory / path).mkdir()
        else:
            (directory / path).write_bytes(content)
            (directory / path).chmod(0o600)
