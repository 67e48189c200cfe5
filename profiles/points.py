"""The files of one tested point, written as it is measured and read piece by piece.

::

    00007.parquet            cells that failed: address, errors; and, in its metadata, the `PointRecord` and an index of
                             all three files. It is written last: with it the point is there, without it, it is not.
    00007.bitmaps.parquet    wordlines of which so many cells failed that a bit for each cell is smaller
    00007.counters.parquet   where cells are known in parts of the region only: failed reads of every row, bitline, DQ

A point to which rounds were added is written anew: its further files then carry the number of times in their names
(``00007.1.counters.parquet``), so that until the first file takes the place of the one before, all of both is there.

Each is sorted by bank within a table, in row groups of one bank each, so that a bank, or rows of one, are read without
the rest. Every row group has a checksum over its decoded content.
"""

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from profiles.cells import LINE_KINDS, CellCounts, LineCounts
from profiles.counting import by_direction
from profiles.errors import ProfileError
from profiles.files import atomic_file, disk_errors, first_problem, one_line
from profiles.geometry import CellArray, Geometry
from profiles.pattern import Pattern, PatternKind, ones_by_line, stored_bits
from profiles.schema import PointRecord, ProfileHeader, Region

MAX_RECORD_BYTES = 4 << 20
GROUP_CELLS = 1 << 20  # failing cells of a row group
DENSE = 1 / 16  # of its cells failed: a bit a cell, entropy-coded, is then smaller than a gap a failing cell
_DENSE_CELLS = 1 << 24  # cells of a row group of bitmaps
KEPT = "every finished point is safe, this one is not stored"
REMEASURE = "delete this file and run the scan again to measure its point anew, or restore it from a copy"

_RECORD_KEY, _INDEX_KEY = b"eden.point", b"eden.index"
_CELLS, _BITMAPS, _COUNTERS = "cells", "bitmaps", "counters"
SUFFIXES = {_CELLS: ".parquet", _BITMAPS: ".bitmaps.parquet", _COUNTERS: ".counters.parquet"}


def table_file(path: Path, table: str, sessions: int) -> Path:
    """The file of a point's table; ``path`` is that of its cells, ``sessions`` how often rounds of it were measured."""
    stem, again = path.name.removesuffix(".parquet"), f".{sessions - 1}" if sessions > 1 and table != _CELLS else ""
    return path.with_name(stem + again + SUFFIXES[table])


Bits = npt.NDArray[np.uint8]
Errors = npt.NDArray[np.uint16]
Integers = npt.NDArray[np.int64]
_ReadGroup = Callable[[int], tuple[CellArray, Errors, Bits | None]]


def _fields(*columns: tuple[str, Any]) -> Any:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])


def _schema(table: str, geometry: Geometry, pattern: Pattern) -> Any:
    if table == _COUNTERS:
        counts = ("errors_zero_to_one", "errors_one_to_zero", "trials_zero", "trials_one")
        return _fields(
            ("kind", pa.string()),
            ("bank", pa.int16()),
            ("line", pa.int32()),
            *((name, pa.int64()) for name in counts),
        )
    # What a pattern stores follows from the address; what came from a buffer is known from here only.
    stored = (("stored", pa.bool_()),) if pattern.kind == PatternKind.BUFFER else ()
    if table == _CELLS:
        return _fields(("cell", pa.int64()), ("errors", pa.int32()), *stored)
    return _fields(
        ("bank", pa.int16()),
        ("row", pa.int32()),
        ("failed", pa.binary(geometry.row_bits // 8)),
        ("errors", pa.list_(pa.field("element", pa.int32(), nullable=False))),
    )


# Cells ascend, so that their differences are small; of counts and bits, zstd finds the entropy if bytes of equal weight
# stand together. What is left of the cells is noise, on which zstd would only spend time.
_ENCODINGS: dict[str, dict[str, Any]] = {
    _CELLS: {
        "use_dictionary": False,
        "column_encoding": {"cell": "DELTA_BINARY_PACKED", "errors": "BYTE_STREAM_SPLIT"},
        "compression": {"cell": "NONE", "errors": "ZSTD", "stored": "ZSTD"},
    },
    _BITMAPS: {
        "use_dictionary": ["bank"],
        "column_encoding": {
            **{"row": "DELTA_BINARY_PACKED", "failed": "PLAIN", "errors.list.element": "BYTE_STREAM_SPLIT"}
        },
        "compression": "ZSTD",
    },
    _COUNTERS: {
        "use_dictionary": ["kind", "bank", "trials_zero", "trials_one"],
        "column_encoding": {
            "line": "DELTA_BINARY_PACKED",
            **dict.fromkeys(("errors_zero_to_one", "errors_one_to_zero"), "BYTE_STREAM_SPLIT"),
        },
        "compression": "ZSTD",
    },
}


@dataclass
class _Groups:
    """What is known of a table's row groups before they are read; lists of one entry a group.

    Attributes:
        bank: the bank that a group holds.
        first, last: first and last row (bitmaps, counters) or cell (cells).
        rows: entries.
        cells: failing cells.
        zero_to_one, one_to_zero: failed reads (of counters: by rows; the groups of other lines hold the same).
        crc: CRC-32 of the content.
    """

    bank: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    zero_to_one: list[int] = field(default_factory=list)
    one_to_zero: list[int] = field(default_factory=list)
    crc: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.bank)

    def add(self, **values: int) -> None:
        for name, value in values.items():
            getattr(self, name).append(int(value))

    @property
    def errors(self) -> tuple[int, int]:
        return sum(self.zero_to_one), sum(self.one_to_zero)


@dataclass(frozen=True)
class _Index:
    """CRC-32 of a point's record, and the row groups of its tables."""

    record: int
    tables: dict[str, _Groups]

    def to_json(self) -> bytes:
        body = {"record": self.record, "tables": {name: vars(groups) for name, groups in self.tables.items()}}
        return json.dumps(body | {"check": zlib.crc32(json.dumps(body).encode())}).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "_Index":
        """Raises ValueError, TypeError, KeyError or AttributeError where ``text`` is not what `to_json` wrote."""
        body = json.loads(text)
        tables = {
            str(name): _Groups(**{key: [int(v) for v in values] for key, values in groups.items()})
            for name, groups in body["tables"].items()
        }
        found = cls(int(body["record"]), tables)
        if found.to_json() != text or not set(tables) <= set(SUFFIXES) or _CELLS not in tables:
            raise ValueError("the index does not match its own check")
        for groups in tables.values():
            if len({len(values) for values in vars(groups).values()}) != 1:
                raise ValueError("the index has lists of different lengths")
            if any(min(values, default=0) < 0 for values in vars(groups).values()):
                raise ValueError("the index has negative entries")
        return found


def _checksum(*columns: npt.NDArray[Any]) -> int:
    crc = 0
    for column in columns:
        little = column.astype(column.dtype.newbyteorder("<"), copy=False)
        crc = zlib.crc32(np.ascontiguousarray(little).data, crc)
    return crc


def _ones(pattern: Pattern, geometry: Geometry, bank: int, region: Region) -> dict[str, Integers]:
    """Cells that store a 1 on each line of a bank's tested rows, by kind of line."""
    # What repeats is soon counted again; random data, counted row by row, would take most of the time of statistics.
    count = _kept_ones if pattern.kind == PatternKind.RANDOM else _counted_ones
    return count(pattern, geometry, bank, region)


def _counted_ones(pattern: Pattern, geometry: Geometry, bank: int, region: Region) -> dict[str, Integers]:
    rows, bitlines = ones_by_line(pattern, geometry, bank, region.row_start, region.row_count)
    return {"rows": rows, "bitlines": bitlines, "lanes": bitlines.reshape(-1, geometry.data_width).sum(axis=0)}


_kept_ones = lru_cache(maxsize=64)(_counted_ones)


def line_trials(pattern: Pattern, geometry: Geometry, region: Region, rounds: int, bank: int) -> dict[str, Integers]:
    """Reads behind the counters of a bank by kind of line: int64[n, 2], while storing 0 and 1."""
    ones = _ones(pattern, geometry, bank, region)
    cells = {
        "rows": geometry.row_bits,
        "bitlines": region.row_count,
        "lanes": region.row_count * geometry.columns,
    }
    return {kind: np.stack([cells[kind] - ones[kind], ones[kind]], axis=1) * rounds for kind in LINE_KINDS}


# ---- writing ---------------------------------------------------------------------------------------------------------


class _Table:
    """One Parquet file being written, row group after row group."""

    def __init__(self, target: IO[bytes], table: str, geometry: Geometry, pattern: Pattern) -> None:
        self.groups = _Groups()
        self._schema = _schema(table, geometry, pattern)
        options = dict(_ENCODINGS[table])
        if isinstance(options["compression"], dict):
            options["compression"] = {name: options["compression"][name] for name in self._schema.names}
        self._writer = pq.ParquetWriter(
            target, self._schema, compression_level=None, write_page_checksum=True, write_statistics=False, **options
        )

    def write(self, columns: list[Any], **group: int) -> None:
        """Append a row group; ``group`` is its entry in `_Groups`, without the number of entries."""
        table = pa.table([pa.array(column) for column in columns], schema=self._schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.groups.add(rows=table.num_rows, **group)

    def close(self, metadata: dict[bytes, bytes]) -> None:
        self._writer.add_key_value_metadata(metadata)
        self._writer.close()

    def give_up(self) -> None:
        """Close what will be removed, whatever the disk says."""
        with contextlib.suppress(OSError, ValueError, pa.ArrowException):
            self._writer.close()


class _AbandonedError(Exception):
    """Leaves files that are not to be kept."""


class PointWriter:
    """Takes a point's results as they are measured, so that memory holds parts of it only.

    Use `profiles.storage.Profile.writing`. Rows of each bank come in ascending order and without gaps that are not
    declared: what was not given is not tested, and `finish` refuses a point that lacks any of its region.

    Args:
        path: the point's file.
        header: of its profile.
        region, pattern, rounds, cell_regions: as the record will say.
        sessions: how often rounds of the point were measured, this time included; the files of the time before stay.

    Raises:
        ProfileError: they do not fit the module, or the disk cannot be written.
    """

    def __init__(
        self,
        path: Path,
        header: ProfileHeader,
        region: Region,
        pattern: Pattern,
        rounds: int,
        cell_regions: tuple[Region, ...] | None,
        sessions: int = 1,
    ) -> None:
        self._path, self._header, self._geometry, self._sessions = path, header, header.geometry, sessions
        self._region, self._pattern, self._rounds, self._cell_regions = region, pattern, rounds, cell_regions
        self._folder = path.parents[1]
        self._files = contextlib.ExitStack()
        self._tables: dict[str, _Table] = {}
        with self._refusals():
            region.check(header.geometry)
            check_cell_regions(region, cell_regions)
            if cell_regions is not None and pattern.kind == PatternKind.BUFFER:
                raise ValueError("counters of pattern buffer have no known trials; store all of its cells")
            self._table(_CELLS)
        self._covered: dict[int, list[tuple[int, int]]] = {bank: [] for bank in region.banks}
        self._pending: dict[int, list[tuple[CellArray, Errors, Bits]]] = {bank: [] for bank in region.banks}
        self._by_row: dict[int, Integers] = {}
        self._counted: dict[int, Integers] = {}
        self.finished: PointRecord | None = None

    def add(
        self,
        bank: int,
        row_start: int,
        row_count: int,
        cell: CellArray,
        errors: Errors,
        stored: Bits | None = None,
    ) -> None:
        """The cells that failed in rows ``row_start .. row_start + row_count - 1`` of ``bank``.

        Args:
            bank, row_start, row_count: rows that were tested in all rounds.
            cell: int64[n], ascending and unique.
            errors: uint16[n], failed reads of each, 1 .. rounds.
            stored: uint8[n], bits that had been stored; only with pattern BUFFER, others say it by themselves.

        Raises:
            ProfileError: rows that are not the point's or came before, cells outside them, or a full disk.
        """
        with self._refusals():
            self._add(bank, Region(banks=(bank,), row_start=row_start, row_count=row_count), cell, errors, stored)

    def _add(self, bank: int, rows: Region, cell: CellArray, errors: Errors, stored: Bits | None) -> None:
        row_start, row_count = rows.row_start, rows.row_count
        areas = (self._region,) if self._cell_regions is None else self._cell_regions
        if not any(area.holds(rows) for area in areas):
            raise ValueError(f"rows {row_start}..{rows.row_end - 1} of bank {bank} are outside the tested region")
        covered = self._covered[bank]
        if covered and covered[-1][1] > row_start:
            raise ValueError(f"row {row_start} of bank {bank} came after row {covered[-1][1] - 1}; give rows in order")
        first = (bank * self._geometry.rows + row_start) * self._geometry.row_bits
        self._check(cell, errors, first, first + row_count * self._geometry.row_bits)
        if (stored is not None) != (self._pattern.kind == PatternKind.BUFFER):
            raise ValueError("stored bits belong to pattern buffer, and to no other")
        bits = stored_bits(self._pattern, self._geometry, cell) if stored is None else stored
        if covered and covered[-1][1] == row_start:
            covered[-1] = (covered[-1][0], rows.row_end)
        else:
            covered.append((row_start, rows.row_end))
        if self._cell_regions is not None:
            self._count_rows(bank, cell, errors, bits)
        if cell.size > DENSE * row_count * self._geometry.row_bits and stored is None:
            self._flush(bank)
            self._write_bitmaps(bank, row_start, row_count, cell, errors, bits)
        elif cell.size:
            self._pending[bank].append((cell, errors, bits))
            if sum(part[0].size for part in self._pending[bank]) >= GROUP_CELLS:
                self._flush(bank)

    def count(self, lines: LineCounts) -> None:
        """The counters of one bank, over all tested rows and rounds.

        Raises:
            ProfileError: the bank's counters were given already, do not fit the point, or are more than its reads; or
                the disk is full.
        """
        with self._refusals():
            self._count(lines)

    def _count(self, lines: LineCounts) -> None:
        geometry, bank = self._geometry, lines.bank
        if self._cell_regions is None or bank not in self._region.banks or bank in self._counted:
            raise ValueError(f"counters of bank {bank} do not belong here, or came twice")
        self._counted[bank] = lines.rows
        for kind, trials in line_trials(self._pattern, geometry, self._region, self._rounds, bank).items():
            errors = np.ascontiguousarray(getattr(lines, kind), np.int64)
            if errors.shape != trials.shape or errors.min() < 0 or (errors > trials).any():
                raise ValueError(f"counters of {kind} of bank {bank} do not fit the region, or exceed its reads")
            first = self._region.row_start if kind == "rows" else 0
            line = np.arange(first, first + len(trials), dtype=np.int32)
            columns = (line, *errors.T, *trials.T)
            self._table(_COUNTERS).write(
                [[kind] * line.size, np.full(line.size, bank, np.int16), *columns],
                **{"bank": bank, "first": first, "last": first + line.size - 1, "cells": 0},
                **{"zero_to_one": lines.errors_zero_to_one, "one_to_zero": lines.errors_one_to_zero},
                crc=_checksum(*columns),
            )

    @property
    def errors(self) -> tuple[int, int]:
        """Failed reads so far, 0 to 1 and 1 to 0: of the counters where there are any, else of the cells."""
        if self._cell_regions is not None:
            both = sum((rows.sum(axis=0) for rows in self._counted.values()), np.zeros(2, np.int64))
            return int(both[0]), int(both[1])
        pending = [part for parts in self._pending.values() for part in parts]
        stored = [table.groups.errors for table in self._tables.values()]
        waiting = [by_direction(errors, bits) for _, errors, bits in pending]
        return sum(each[0] for each in stored + waiting), sum(each[1] for each in stored + waiting)

    def finish(self, record: PointRecord) -> None:
        """Reconcile with ``record`` and put the point in its place, on disk.

        Raises:
            ProfileError: rows are missing, record, cells and counters do not reconcile, or the disk is full; nothing is
                stored.
        """
        with self._refusals():
            self._finish(record)

    def _finish(self, record: PointRecord) -> None:
        check_record(record, self._header)
        if record.times != self._sessions:
            raise ValueError(f"its record has {record.times} sessions, this is number {self._sessions}")
        for name in ("region", "pattern", "rounds", "cell_regions"):
            if getattr(record, name) != getattr(self, f"_{name}"):
                raise ValueError(f"its {name} is {getattr(record, name)}, measured was {getattr(self, f'_{name}')}")
        self._check_complete(record)
        for bank in self._region.banks:
            self._flush(bank)
        counted, recorded = self.errors, (record.errors_zero_to_one, record.errors_one_to_zero)
        if counted != recorded:
            what = "cells" if self._cell_regions is None else "counters"
            raise ValueError(f"errors (0 to 1, 1 to 0) are {counted} in the {what} and {recorded} in the record")
        text = record.model_dump_json().encode()
        index = _Index(zlib.crc32(text), {name: table.groups for name, table in self._tables.items()})
        metadata = {_RECORD_KEY: text, _INDEX_KEY: index.to_json()}
        # The first file opened, that of the cells, is closed and renamed last.
        for table in (name for name in self._tables if name != _CELLS):
            self._tables[table].close({_RECORD_KEY: text})
        self._tables[_CELLS].close(metadata)
        self._files.close()
        self.finished = record

    def abandon(self) -> None:
        """Remove what was written, unless `finish` has returned."""
        if self.finished is not None:
            return
        for table in self._tables.values():
            table.give_up()
        with contextlib.suppress(_AbandonedError):
            self._files.__exit__(_AbandonedError, _AbandonedError(), None)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            with disk_errors(self._path, KEPT):
                yield
        except ValueError as error:  # Arrow's own among them
            raise ProfileError(f"point {int(self._path.stem)} is not stored in {self._folder}: {error}") from error

    def _table(self, name: str) -> _Table:
        if name not in self._tables:
            path = table_file(self._path, name, self._sessions)
            target = self._files.enter_context(atomic_file(path, KEPT))
            self._tables[name] = _Table(target, name, self._geometry, self._pattern)
        return self._tables[name]

    def _check(self, cell: CellArray, errors: Errors, first: int, end: int) -> None:
        if not cell.shape == errors.shape:
            raise ValueError(f"{cell.size} cells have {errors.size} counts")
        if not cell.size:
            return
        if not bool(np.all(cell[1:] > cell[:-1])):
            raise ValueError("its cells are not ascending and unique")
        if cell[0] < first or cell[-1] >= end:
            outside = int(((cell < first) | (cell >= end)).sum())
            raise ValueError(f"{outside} of its cells are outside the tested region")
        if not 1 <= int(errors.min()) <= int(errors.max()) <= self._rounds:
            raise ValueError(f"errors a cell {errors.min()}..{errors.max()} are outside 1..{self._rounds} rounds")

    def _count_rows(self, bank: int, cell: CellArray, errors: Errors, bits: Bits) -> None:
        rows = self._by_row.setdefault(bank, np.zeros((self._region.row_count, 2), np.int64))
        at = (self._geometry.row(cell) - self._region.row_start) * 2 + bits
        rows += np.bincount(at, weights=errors, minlength=rows.size).astype(np.int64).reshape(-1, 2)

    def _check_complete(self, record: PointRecord) -> None:
        for area in record.known_cells:
            for bank in area.banks:
                if not any(low <= area.row_start and area.row_end <= high for low, high in self._covered[bank]):
                    raise ValueError(f"rows of bank {bank} were not tested; untested is not free of errors")
        if not record.counted:
            return
        if missing := [bank for bank in record.region.banks if bank not in self._counted]:
            raise ValueError(f"bank {missing[0]} has no counters; untested is not free of errors")
        for area in record.known_cells:
            rows = slice(area.row_start - record.region.row_start, area.row_end - record.region.row_start)
            for bank in area.banks:
                cells = self._by_row.get(bank, np.zeros((record.region.row_count, 2), np.int64))
                if not np.array_equal(self._counted[bank][rows], cells[rows]):
                    raise ValueError(f"row counters of bank {bank} and its cells do not reconcile")

    def _flush(self, bank: int) -> None:
        """Write the cells that wait as row groups."""
        if not self._pending[bank]:
            return
        parts, self._pending[bank] = self._pending[bank], []
        whole = [np.concatenate([part[k] for part in parts]) for k in range(3)]
        size = whole[0].size
        pieces = max(1, round(size / GROUP_CELLS))
        for low, high in zip(*(np.arange(start, pieces + start) * size // pieces for start in (0, 1)), strict=True):
            cell, errors, bits = (column[low:high] for column in whole)
            cell, errors = np.ascontiguousarray(cell, np.int64), np.ascontiguousarray(errors, np.uint16)
            extra = [bits.astype(bool)] if self._pattern.kind == PatternKind.BUFFER else []
            zero_to_one, one_to_zero = by_direction(errors, bits)
            self._table(_CELLS).write(
                [cell, errors.astype(np.int32), *extra],
                **{"bank": bank, "first": int(cell[0]), "last": int(cell[-1]), "cells": cell.size},
                **{"zero_to_one": zero_to_one, "one_to_zero": one_to_zero},
                crc=_checksum(cell, errors, *([bits] if extra else [])),
            )

    def _write_bitmaps(
        self, bank: int, row_start: int, row_count: int, cell: CellArray, errors: Errors, bits: Bits
    ) -> None:
        width = self._geometry.row_bits
        step = max(1, _DENSE_CELLS // width)
        for low in range(row_start, row_start + row_count, step):
            rows = np.arange(low, min(low + step, row_start + row_count), dtype=np.int32)
            edges = (bank * self._geometry.rows + low + np.arange(rows.size + 1, dtype=np.int64)) * width
            at = np.searchsorted(cell, edges)
            inside = slice(int(at[0]), int(at[-1]))
            failed = np.zeros(rows.size * width, np.uint8)
            failed[cell[inside] - edges[0]] = 1
            packed = np.packbits(failed, bitorder="little")
            counts = np.ascontiguousarray(errors[inside], np.uint16)
            zero_to_one, one_to_zero = by_direction(counts, bits[inside])
            lists = pa.ListArray.from_arrays(
                pa.array((at - at[0]).astype(np.int32)), pa.array(counts.astype(np.int32)),
                type=_schema(_BITMAPS, self._geometry, self._pattern).field("errors").type,
            )  # fmt: skip
            binary = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(width // 8), rows.size, [None, pa.py_buffer(packed)]
            )
            self._table(_BITMAPS).write(
                [np.full(rows.size, bank, np.int16), rows, binary, lists],
                **{"bank": bank, "first": low, "last": int(rows[-1]), "cells": counts.size},
                **{"zero_to_one": zero_to_one, "one_to_zero": one_to_zero},
                crc=_checksum(rows, packed, counts),
            )


# ---- checks ----------------------------------------------------------------------------------------------------------


def check_cell_regions(region: Region, parts: tuple[Region, ...] | None) -> None:
    """Raises ValueError where parts of a region reach outside it or share a row."""
    for k, part in enumerate(parts or ()):
        if not region.holds(part):
            raise ValueError(f"cells of rows {part.row_start}..{part.row_end - 1} are asked for outside the region")
        if any(part.meets(other) for other in (parts or ())[:k]):
            raise ValueError(f"cells of rows {part.row_start}..{part.row_end - 1} are asked for twice")


def check_record(record: PointRecord, header: ProfileHeader) -> None:
    """Raises ValueError where the record does not fit the profile or cannot be true."""
    if record.index >= header.planned_points:
        raise ValueError(f"its index {record.index} is outside the {header.planned_points} planned points")
    record.region.check(header.geometry)
    check_cell_regions(record.region, record.cell_regions)
    bank_cells = record.region.row_count * header.geometry.row_bits
    if record.sessions and sum(session.rounds for session in record.sessions) != record.rounds:
        raise ValueError(f"its sessions have {[each.rounds for each in record.sessions]} rounds, not {record.rounds}")
    if len(record.stored_ones) != len(record.region.banks):
        raise ValueError(f"stored_ones has {len(record.stored_ones)} entries for {len(record.region.banks)} banks")
    if not all(0 <= ones <= bank_cells for ones in record.stored_ones):
        raise ValueError(f"stored_ones {list(record.stored_ones)} is outside 0..{bank_cells} cells a bank")
    ones = sum(record.stored_ones)
    zeros = record.region.cells(header.geometry) - ones
    if (control := record.control) is not None and (
        control.corrupted_one_to_zero > ones
        or control.corrupted_zero_to_one > zeros
        or control.path_errors > control.path_reads
    ):
        raise ValueError(f"its control reads found more wrong bits than were read: {control}")
    for direction, errors, cells in (
        ("1 to 0", record.errors_one_to_zero, ones),
        ("0 to 1", record.errors_zero_to_one, zeros),
    ):
        if errors > cells * record.rounds:
            raise ValueError(f"{errors} errors {direction} are more than {cells} cells x {record.rounds} rounds")


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_source(path: Path) -> Any:
    """The file as Arrow reads it: the place where a benchmark counts bytes."""
    return pa.OSFile(str(path))


class StoredPoint:
    """A point whose record and index have been checked; its tables are read on demand."""

    def __init__(self, path: Path, record: PointRecord, index: _Index, cells: Any, geometry: Geometry) -> None:
        self.path, self.record, self.geometry = path, record, geometry
        self._index = index
        self._open = {_CELLS: cells}

    @property
    def files(self) -> list[Path]:
        """The point's files."""
        return [self._file(name) for name in self._index.tables]

    def cells(self, bank: int | None, rows: tuple[int, int] | None) -> CellCounts:
        """Cells that failed, of all known ones or of one bank, or of rows ``start, count`` of it.

        Raises:
            ProfileError: a file is damaged.
        """
        width, per_bank = self.geometry.row_bits, self.geometry.bank_bits
        start, count = rows or (0, self.geometry.rows)
        wanted: list[tuple[int, int, _ReadGroup, int]] = []
        ways: dict[str, tuple[int, _ReadGroup]] = {_CELLS: (1, self._read_cells), _BITMAPS: (width, self._read_bitmaps)}
        for name, (scale, read) in ways.items():
            groups = self._index.tables.get(name, _Groups())
            for k in range(len(groups)):
                base = 0 if name == _CELLS else groups.bank[k] * per_bank
                low, high = base + groups.first[k] * scale, base + (groups.last[k] + 1) * scale
                begin = groups.bank[k] * per_bank + start * width
                if bank in (None, groups.bank[k]) and low < begin + count * width and begin < high:
                    wanted.append((low, groups.cells[k], read, k))
        wanted.sort(key=lambda group: group[0])
        # Each group goes straight to its place: what costs time here is memory that was never touched before.
        size, at = sum(group[1] for group in wanted), 0
        cell, errors = np.empty(size, np.int64), np.empty(size, np.uint16)
        buffered = self.record.pattern.kind == PatternKind.BUFFER
        stored = np.empty(size if buffered else 0, np.uint8)
        for _, entries, read, k in wanted:
            part = slice(at, at + entries)
            cell[part], errors[part], bits = read(k)
            if buffered and bits is not None:
                stored[part] = bits
            at += entries
        if not buffered:
            stored = stored_bits(self.record.pattern, self.geometry, cell)
        try:
            found = CellCounts(cell, errors, stored)
        except ProfileError as error:
            raise damaged(self.path, str(error)) from error
        if bank is None or rows is None:
            return found
        first = bank * per_bank + start * width
        begin, end = np.searchsorted(found.cell, (first, first + count * width))
        return CellCounts(found.cell[begin:end], found.errors[begin:end], found.stored[begin:end])

    def lines(self, bank: int) -> LineCounts:
        """The counters of one bank.

        Raises:
            ProfileError: a file is damaged, or does not reconcile.
        """
        groups = self._index.tables.get(_COUNTERS, _Groups())
        of_bank = [k for k, held in enumerate(groups.bank) if held == bank]
        found: dict[str, Integers] = {}
        path = self._file(_COUNTERS)
        for k in of_bank:
            table = self._group(_COUNTERS, k)
            names = [name for name in table.column_names if name not in ("kind", "bank")]
            columns = [_values(table.column(name).combine_chunks()) for name in names]
            kinds = table.column("kind").unique().to_pylist()
            if len(kinds) != 1 or table.column("bank").unique().to_pylist() != [bank]:
                raise damaged(path, f"row group {k} holds other lines than its index says")
            if _checksum(*columns) != groups.crc[k]:
                raise damaged(path, f"the checksum of row group {k} does not match")
            found[str(kinds[0])] = np.stack(columns[1:3], axis=1)
            trials = self.trials(bank).get(str(kinds[0]))
            if trials is None or not np.array_equal(trials, np.stack(columns[3:5], axis=1)):
                raise damaged(path, f"the trials of row group {k} are not those of its record")
        if set(found) != set(LINE_KINDS):
            raise damaged(path, f"bank {bank} lacks counters")
        try:
            return LineCounts(bank, **found)
        except ProfileError as error:
            raise damaged(path, str(error)) from error

    def trials(self, bank: int) -> dict[str, Integers]:
        """Reads behind the counters of a bank (see `line_trials`)."""
        return line_trials(self.record.pattern, self.geometry, self.record.region, self.record.rounds, bank)

    def verify(self) -> None:
        """Read everything there is and reconcile it.

        Raises:
            ProfileError: a file is damaged, or does not reconcile.
        """
        for bank in self.record.region.banks:
            rows = np.zeros((self.record.region.row_count, 2), np.int64)
            cells = self.cells(bank, None)
            check_cells(self.path, self.record, cells, self.geometry)
            if not self.record.counted:
                continue
            counted = self.lines(bank).rows
            at = (self.geometry.row(cells.cell) - self.record.region.row_start) * 2 + cells.stored
            rows += np.bincount(at, weights=cells.errors, minlength=rows.size).astype(np.int64).reshape(-1, 2)
            for area in self.record.known_cells:
                part = slice(area.row_start - self.record.region.row_start, area.row_end - self.record.region.row_start)
                if bank in area.banks and not np.array_equal(rows[part], counted[part]):
                    raise damaged(self._file(_COUNTERS), f"counters and cells of bank {bank} do not reconcile")

    def _file(self, table: str) -> Path:
        return table_file(self.path, table, self.record.times)

    def _group(self, table: str, group: int) -> Any:
        path = self._file(table)
        if table not in self._open:
            self._open[table] = _open_table(path, table, self.record, self._index, self.geometry)
        try:
            read = self._open[table].read_row_group(group, use_threads=False)
        except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
            raise damaged(path, one_line(error)) from error
        if any(column.null_count for column in read.columns):
            raise damaged(path, "it has empty entries")
        if read.num_rows != self._index.tables[table].rows[group]:
            raise damaged(path, f"row group {group} has {read.num_rows} entries")
        return read

    def _read_cells(self, group: int) -> tuple[CellArray, Errors, Bits | None]:
        table = self._group(_CELLS, group)
        cell = _values(table.column("cell").combine_chunks())
        errors = _as_counts(self.path, _values(table.column("errors").combine_chunks()))
        from_file = "stored" in table.column_names
        extra = [_values(table.column("stored").cast(pa.uint8()).combine_chunks())] if from_file else []
        if _checksum(cell, errors, *extra) != self._index.tables[_CELLS].crc[group]:
            raise damaged(self.path, f"the checksum of row group {group} does not match its cells")
        return cell, errors, extra[0] if extra else None

    def _read_bitmaps(self, group: int) -> tuple[CellArray, Errors, Bits | None]:
        path, width = self._file(_BITMAPS), self.geometry.row_bits
        groups = self._index.tables[_BITMAPS]
        table = self._group(_BITMAPS, group).combine_chunks()
        rows = _values(table.column("row").combine_chunks())
        counts = _as_counts(path, _values(table.column("errors").combine_chunks().flatten()))
        binary = table.column("failed").combine_chunks()
        packed = np.frombuffer(binary.buffers()[1], np.uint8)[
            binary.offset * width // 8 : (binary.offset + len(binary)) * width // 8
        ]
        if _checksum(rows, packed, counts) != groups.crc[group]:
            raise damaged(path, f"the checksum of row group {group} does not match its bitmap")
        first = (groups.bank[group] * self.geometry.rows + groups.first[group]) * width
        cell = np.flatnonzero(np.unpackbits(packed, bitorder="little")) + first
        if not cell.size == counts.size == groups.cells[group]:
            raise damaged(path, f"row group {group} has {counts.size} counts for {cell.size} failing cells")
        return cell, counts, None


def check_cells(path: Path, record: PointRecord, cells: CellCounts, geometry: Geometry) -> None:
    """Raises ProfileError where cells lie outside what was tested, or failed more often than they were read."""
    first = [
        ((bank * geometry.rows + area.row_start) * geometry.row_bits, area.row_count * geometry.row_bits)
        for area in record.known_cells
        for bank in area.banks
    ]
    edges = np.array([(low, low + count) for low, count in first], np.int64).reshape(-1, 2)
    at = np.searchsorted(cells.cell, edges)
    inside = int((at[:, 1] - at[:, 0]).sum())
    if inside != cells.cell.size:
        raise damaged(path, f"{cells.cell.size - inside} of its cells are outside the tested region")
    if cells.errors.size and not 1 <= int(cells.errors.min()) <= int(cells.errors.max()) <= record.rounds:
        raise damaged(path, f"errors a cell are outside 1..{record.rounds} rounds")


def _values(array: Any) -> npt.NDArray[Any]:
    """An Arrow array of numbers, none missing. Its ``to_numpy`` would import pandas: a third of a second."""
    values: npt.NDArray[Any] = np.from_dlpack(array)
    return values


def _as_counts(path: Path, errors: npt.NDArray[np.int32]) -> Errors:
    if errors.size and not 0 <= int(errors.min()) <= int(errors.max()) <= 0xFFFF:
        raise damaged(path, f"errors a cell {errors.min()}..{errors.max()} are outside 0..65535")
    return errors.astype(np.uint16)


def open_point(path: Path, header: ProfileHeader) -> StoredPoint:
    """Open a point and check all of it but its tables' content.

    Raises:
        ProfileError: it is damaged, lacks a file, or belongs to another profile.
    """
    parquet = _parquet(path)
    metadata = parquet.metadata.metadata or {}
    if _RECORD_KEY not in metadata or _INDEX_KEY not in metadata:
        raise ProfileError(f"{path} is no point of a profile; remove it from the folder")
    record, index = _parse_metadata(path, metadata)
    try:
        check_record(record, header)
    except ValueError as error:
        raise ProfileError(f"{path} does not fit the profile's header: {error}; {REMEASURE}") from error
    if path.name != f"{record.index:05d}.parquet":
        raise ProfileError(f"{path} holds point {record.index}; give it its own name back, or remove it")
    _check_index(path, index, record, header.geometry)
    _check_table(path, _CELLS, parquet, record, index, header.geometry)
    stored = StoredPoint(path, record, index, parquet, header.geometry)
    for file in stored.files:
        if not file.is_file():
            raise ProfileError(f"{file} is missing, which its point needs; restore it, or delete {path} and scan again")
    return stored


def _parquet(path: Path) -> Any:
    try:
        parquet = pq.ParquetFile(open_source(path), page_checksum_verification=True)
        _ = parquet.schema_arrow
        return parquet
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise damaged(path, one_line(error)) from error


def _open_table(path: Path, table: str, record: PointRecord, index: _Index, geometry: Geometry) -> Any:
    parquet = _parquet(path)
    _check_table(path, table, parquet, record, index, geometry)
    return parquet


def _parse_metadata(path: Path, metadata: dict[bytes, bytes]) -> tuple[PointRecord, _Index]:
    text, checks = metadata[_RECORD_KEY], metadata[_INDEX_KEY]
    if max(len(text), len(checks)) > MAX_RECORD_BYTES:
        raise damaged(path, f"its record is larger than {MAX_RECORD_BYTES >> 20} MiB")
    try:
        index = _Index.from_json(checks)
        if index.record != zlib.crc32(text):
            raise damaged(path, "the checksum of its record does not match")
        return PointRecord.model_validate_json(text), index
    except ValidationError as error:
        raise damaged(path, first_problem(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(path, "its checksums are unreadable") from error


def _check_index(path: Path, index: _Index, record: PointRecord, geometry: Geometry) -> None:
    """Reconcile record and index, which bounds what reading may allocate, before anything is read."""
    recorded = (record.errors_zero_to_one, record.errors_one_to_zero)
    tables = [index.tables.get(name, _Groups()) for name in (_CELLS, _BITMAPS)]
    counters = index.tables.get(_COUNTERS)
    in_cells = tuple(sum(groups.errors[way] for groups in tables) for way in (0, 1))
    if record.counted != (counters is not None):
        raise damaged(path, "its counters are not what its record says")
    if counters is not None and tuple(each // len(LINE_KINDS) for each in counters.errors) != recorded:
        raise damaged(path, f"its counters hold {counters.errors} errors, its record {recorded} for each kind of line")
    if in_cells != recorded and not (record.counted and all(a <= b for a, b in zip(in_cells, recorded, strict=True))):
        raise damaged(path, f"its cells hold {in_cells} errors, its record {recorded}")
    limit = sum(area.cells(geometry) for area in record.known_cells)
    held = sum(sum(groups.cells) for groups in tables)
    region = record.region
    lines = len(region.banks) * (region.row_count + geometry.row_bits + geometry.data_width)
    if (
        held > min(limit, sum(in_cells))
        or tables[0].rows != tables[0].cells
        or sum(tables[1].rows) > limit // geometry.row_bits
        or (counters is not None and sum(counters.rows) != lines)
    ):
        raise damaged(path, f"it claims {held} cells of {limit} with {sum(in_cells)} errors")


def _check_table(path: Path, table: str, parquet: Any, record: PointRecord, index: _Index, geometry: Geometry) -> None:
    schema = _schema(table, geometry, record.pattern)
    names, kinds = parquet.schema_arrow.names, parquet.schema_arrow.types
    if names != schema.names or kinds != schema.types:
        raise damaged(path, f"its columns are {names}, not {schema.names}")
    groups, metadata = index.tables[table], parquet.metadata
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if rows != groups.rows or metadata.num_rows != sum(rows):
        raise damaged(
            path, f"it claims {metadata.num_rows} entries in {len(rows)} groups, its index {sum(groups.rows)}"
        )
    for group in range(len(rows)):
        for column in range(metadata.num_columns):
            size = metadata.row_group(group).column(column).total_uncompressed_size
            if not 0 <= size <= _most_bytes(table, groups, group, geometry):
                raise damaged(path, f"column {column} claims {size} bytes")


def _most_bytes(table: str, groups: _Groups, group: int, geometry: Geometry) -> int:
    """No less than our encodings can need for a column: twice 8 bytes an entry, and page headers and dictionary."""
    entries = max(groups.rows[group], groups.cells[group])
    bitmap = groups.rows[group] * geometry.row_bits // 8 if table == _BITMAPS else 0
    return 16 * entries + 2 * bitmap + (64 << 10)


def damaged(path: Path, what: str) -> ProfileError:
    """What is wrong with a file, and what to do."""
    return ProfileError(f"{path} is truncated or damaged ({what}); {REMEASURE}")
