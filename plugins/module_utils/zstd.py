# Copyright: (c) 2026, hotspare contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""zstd by its library, as a stream: Python has it only from 3.14 on, and a process for each file costs more than it.

The library is what dpkg itself needs, so it is there. Its functions and numbers are those of zstd.h, stable since 1.4.
"""

from __future__ import annotations

import abc
import ctypes
import functools
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Optional

from .shell import HotspareError

LIBRARY = "libzstd.so.1"
LEVEL = 1  # 3 leaves a fifth less of pgbench's WAL, nothing less of random bytes, and takes two to four times as long
BLOCK = 1 << 17  # larger ones come from the kernel each time, which costs more than to fill them

_ADDRESS = ctypes.c_void_p
_LEVEL, _CHECKSUM = 100, 201  # ZSTD_cParameter
_CONTINUE, _END = 0, 2  # ZSTD_EndDirective


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer, ZSTD_outBuffer."""

    _fields_ = (("address", _ADDRESS), ("size", ctypes.c_size_t), ("position", ctypes.c_size_t))


class Filter(abc.ABC):
    """Turns a stream into another; as a context manager it gives its memory back."""

    def __init__(self) -> None:
        self._library = _library()
        self._block = ctypes.create_string_buffer(BLOCK)
        self._room = _Buffer(ctypes.addressof(self._block), BLOCK, 0)
        self._context: Optional[int] = self._create()
        if self._context is None:
            raise HotspareError("zstd failed: it gets no memory; see what has it all on this host")

    def __enter__(self) -> Filter:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    @abc.abstractmethod
    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Give it the next bytes; what it has for us so far. HotspareError."""

    @abc.abstractmethod
    def finish(self) -> Iterator[bytes]:
        """The stream has ended; the rest of what it has for us. HotspareError."""

    @abc.abstractmethod
    def close(self) -> None:
        """End it, wherever it is."""

    @abc.abstractmethod
    def _create(self) -> Optional[int]:
        """The address of what the library keeps for it."""

    def _taken(self) -> bytes:
        """What it wrote; there is room again."""
        taken = ctypes.string_at(self._block, self._room.position)
        self._room.position = 0
        return taken

    def _checked(self, code: int) -> int:
        """What a function returned, unless that is an error."""
        if self._library.ZSTD_isError(code):
            raise _damaged(self._library.ZSTD_getErrorName(code).decode())
        return code


class Compressor(Filter):
    """Makes one frame, with a checksum."""

    def __init__(self, level: int = LEVEL) -> None:
        super().__init__()
        for parameter, value in ((_LEVEL, level), (_CHECKSUM, 1)):
            self._checked(self._library.ZSTD_CCtx_setParameter(self._context, parameter, value))

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        given = _given(chunk)
        while given.position < given.size:
            self._step(given, _CONTINUE)
            yield self._taken()

    def finish(self) -> Iterator[bytes]:
        given, left = _given(b""), 1
        while left:
            left = self._step(given, _END)
            yield self._taken()

    def close(self) -> None:
        context, self._context = self._context, None
        self._library.ZSTD_freeCCtx(context)

    def _create(self) -> Optional[int]:
        return self._library.ZSTD_createCCtx()  # type: ignore[no-any-return]

    def _step(self, given: _Buffer, end: int) -> int:
        return self._checked(self._library.ZSTD_compressStream2(self._context, self._room, given, end))


class Decompressor(Filter):
    """Takes whole frames, one or more; a checksum that is there has to be right."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 1  # of a frame; 0 at its end

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        given = _given(chunk)
        full = False  # then there may be more
        while given.position < given.size or (full and self._left):
            self._left = self._checked(self._library.ZSTD_decompressStream(self._context, self._room, given))
            full = self._room.position == self._room.size
            yield self._taken()

    def finish(self) -> Iterator[bytes]:
        if self._left:
            raise _damaged("it is cut off")
        yield from ()

    def close(self) -> None:
        context, self._context = self._context, None
        self._library.ZSTD_freeDCtx(context)

    def _create(self) -> Optional[int]:
        return self._library.ZSTD_createDCtx()  # type: ignore[no-any-return]


def compressed(chunks: Iterable[bytes], level: int = LEVEL) -> Generator[bytes, None, None]:
    """A stream as one frame; HotspareError."""
    yield from through(Compressor(level), chunks)


def decompressed(chunks: Iterable[bytes]) -> Generator[bytes, None, None]:
    """What is in the frames of a stream; HotspareError."""
    yield from through(Decompressor(), chunks)


def through(filter: Filter, chunks: Iterable[bytes]) -> Generator[bytes, None, None]:
    """What a filter makes of a stream; HotspareError."""
    with filter:
        for chunk in chunks:
            yield from filter.feed(chunk)
        yield from filter.finish()


@functools.cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise HotspareError(f"cannot load {LIBRARY}: {error}; install libzstd1 on this host") from error
    number, size, buffer = ctypes.c_int, ctypes.c_size_t, ctypes.POINTER(_Buffer)
    for name, result, arguments in (
        ("createCCtx", _ADDRESS, ()),
        ("createDCtx", _ADDRESS, ()),
        ("freeCCtx", size, (_ADDRESS,)),
        ("freeDCtx", size, (_ADDRESS,)),
        ("CCtx_setParameter", size, (_ADDRESS, number, number)),
        ("compressStream2", size, (_ADDRESS, buffer, buffer, number)),
        ("decompressStream", size, (_ADDRESS, buffer, buffer)),
        ("isError", ctypes.c_uint, (size,)),
        ("getErrorName", ctypes.c_char_p, (size,)),
    ):
        function = getattr(library, f"ZSTD_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _given(data: bytes) -> _Buffer:
    """What is to be read; `data` has to live as long."""
    return _Buffer(ctypes.cast(ctypes.c_char_p(data), _ADDRESS), len(data), 0)


def _damaged(why: str) -> HotspareError:
    return HotspareError(f"zstd failed: {why}; the data is damaged, or not what it was said to be")
