"""Read the rows of an SQLite file whose trees may be broken: each leaf by itself, whatever became of other pages.

SQLite reaches a row through the pages above it, so one damaged page costs it all rows below. The format of a page is
fixed (https://www.sqlite.org/fileformat2.html), and a leaf holds whole rows. Rows that do not add up are left out.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

Buffer = bytes | memoryview

MAGIC = b"SQLite format 3\x00"
PAGE_SIZES = tuple(2**power for power in range(9, 17))
_LEAF, _FILE_HEADER = 0x0D, 100
_WAL_MAGICS = (0x377F0682, 0x377F0683)
# Lengths of whole numbers by their serial type.
_WHOLE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}

Value = None | int | float | str | bytes


class Row(NamedTuple):
    """A row of any table: its number in the table, and its values in the order of the columns."""

    rowid: int
    values: tuple[Value, ...]


class _Broken(Exception):
    """The bytes at this place are no row."""


def _varint(data: Buffer, at: int) -> tuple[int, int]:
    """Read a number of one to nine bytes; also give where it ends."""
    value = 0
    for index in range(9):
        byte = data[at + index]
        if index == 8:
            value = value << 8 | byte
            return value - (1 << 64) if value >> 63 else value, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + index + 1
    raise AssertionError


def _value(kind: int, data: bytes) -> Value:
    if kind >= 12:
        if kind % 2 == 0:
            return data
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise _Broken from None
    if kind in _WHOLE:
        return int.from_bytes(data, "big", signed=True)
    if kind == 7:
        return struct.unpack(">d", data)[0]
    return {0: None, 8: 0, 9: 1}[kind]


def _length(kind: int) -> int:
    if kind >= 12:
        return (kind - 12) // 2
    if kind in (10, 11) or kind < 0:
        raise _Broken
    return 8 if kind == 7 else _WHOLE.get(kind, 0)


def _record(payload: bytes) -> tuple[Value, ...]:
    """Read the values of a record, whose lengths must add up to the byte."""
    header, at = _varint(payload, 0)
    kinds = []
    if not at <= header <= len(payload):
        raise _Broken
    while at < header:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    lengths = [_length(kind) for kind in kinds]
    if at != header or header + sum(lengths) != len(payload):
        raise _Broken
    values = []
    for kind, length in zip(kinds, lengths, strict=True):
        values.append(_value(kind, payload[at : at + length]))
        at += length
    return tuple(values)


def wal_pages(wal: bytes) -> dict[int, bytes]:
    """Read the newest committed pages of a write-ahead log, by their numbers.

    The result is empty where it is no such log.
    """
    if len(wal) < 32 or int.from_bytes(wal[:4], "big") not in _WAL_MAGICS:
        return {}
    size, salts = int.from_bytes(wal[8:12], "big"), wal[16:24]
    if size not in PAGE_SIZES:
        return {}
    committed: dict[int, bytes] = {}
    open_: dict[int, bytes] = {}
    for at in range(32, len(wal) - size - 23, 24 + size):
        number, pages_after = struct.unpack(">II", wal[at : at + 8])
        # Frames of an earlier round stand behind those of this one.
        if wal[at + 8 : at + 16] != salts:
            break
        open_[number] = wal[at + 24 : at + 24 + size]
        if pages_after:
            committed |= open_
            open_ = {}
    return committed


def size_said(beginning: bytes) -> int | None:
    """Read the page size from the beginning of a file; None where it has no valid one."""
    said = int.from_bytes(beginning[16:18], "big")
    said = 65536 if said == 1 else said
    is_whole = len(beginning) >= _FILE_HEADER and beginning.startswith(MAGIC)
    return said if is_whole and said in PAGE_SIZES else None


class Pages:
    """The pages of a file, taken to be of this size, with newer ones of its write-ahead log in their place."""

    def __init__(self, data: Buffer, newer: Mapping[int, bytes], size: int):
        self.size = size
        self._data = data
        self._newer = {number: page for number, page in newer.items() if len(page) == size}
        # The rest of a page that was cut through does not count as a page.
        self.count = max([len(data) // size, *self._newer])
        first = bytes(self._newer.get(1) or data[:_FILE_HEADER])
        is_said = size_said(first) == size
        self._usable = size - first[20] if is_said else size
        self._free = self._free_pages(first) if is_said else frozenset()

    def _page(self, number: int) -> Buffer:
        newer = self._newer.get(number)
        if newer is not None:
            return newer
        page = self._data[(number - 1) * self.size : number * self.size]
        if not number >= 1 or len(page) < self.size:
            raise _Broken
        return page

    def _free_pages(self, header: bytes) -> frozenset[int]:
        """List unused pages, which still hold deleted rows; empty where the list of them is damaged."""
        trunk, total = struct.unpack(">II", header[32:40])
        free: set[int] = set()
        try:
            while trunk:
                page = self._page(trunk)
                following, count = struct.unpack(">II", page[:8])
                if trunk in free or count > self._usable // 4 - 2:
                    return frozenset()
                free |= {trunk, *struct.unpack(f">{count}I", page[8 : 8 + 4 * count])}
                trunk = following
        except _Broken:
            return frozenset()
        return frozenset(free) if len(free) == total else frozenset()

    def rows(self) -> Iterator[Row]:
        """Read every row that can be read of any table, in the order of the pages."""
        for number in range(1, self.count + 1):
            if number not in self._free:
                yield from self._rows_of(number)

    def _rows_of(self, number: int) -> Iterator[Row]:
        try:
            page = self._page(number)
        except _Broken:
            return
        at = _FILE_HEADER if number == 1 else 0
        if page[at] != _LEAF:
            return
        cells = int.from_bytes(page[at + 3 : at + 5], "big")
        if at + 8 + 2 * cells > self._usable:
            return
        for pointer in range(at + 8, at + 8 + 2 * cells, 2):
            try:
                yield self._row(page, int.from_bytes(page[pointer : pointer + 2], "big"))
            except (_Broken, IndexError):
                continue

    def _row(self, page: Buffer, at: int) -> Row:
        length, at = _varint(page, at)
        rowid, at = _varint(page, at)
        if not 0 < length <= self.count * self.size:
            raise _Broken
        usable = self._usable
        local = length
        if length > usable - 35:
            least = (usable - 12) * 32 // 255 - 23
            local = least + (length - least) % (usable - 4)
            local = local if local <= usable - 35 else least
        if at + local > usable:
            raise _Broken
        payload = bytes(page[at : at + local])
        if local < length:
            payload += self._overflow(page[at + local : at + local + 4], length - local)
        return Row(rowid, _record(payload))

    def _overflow(self, pointer: Buffer, length: int) -> bytes:
        parts: list[bytes] = []
        seen: set[int] = set()
        while length:
            number = int.from_bytes(pointer, "big")
            if number in seen or number in self._free:
                raise _Broken
            seen.add(number)
            page = self._page(number)
            part = bytes(page[4 : 4 + min(length, self._usable - 4)])
            parts.append(part)
            length -= len(part)
            pointer = page[:4]
        return b"".join(parts)
