"""Profiles on disk: a folder that is its own journal.

::

    my_dimm/
        profile.json            `ProfileHeader`
        points/00000.parquet    one file a finished point: its cells, and its `PointRecord` in the file's metadata
        points/00001.parquet    ...

A point's file appears whole or not at all (temporary file, fsync, rename, fsync of the folder), so whatever is there
is finished, and what is missing is still to be measured. Each bank's cells form one Parquet row group with its own
checksum; another over the record ties record and cells together.
"""

import json
import re
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from profiles.cells import CellCounts
from profiles.errors import ProfileError
from profiles.files import TEMPORARY_FILE, atomic_file, disk_errors, first_problem, one_line, read_bounded
from profiles.geometry import CellArray, Geometry
from profiles.pattern import Pattern
from profiles.schema import FORMAT_VERSION, OperatingPoint, PointRecord, ProfileHeader, WriteCondition

HEADER_NAME = "profile.json"
POINTS_NAME = "points"
MAX_HEADER_BYTES = 64 << 20
MAX_RECORD_BYTES = 1 << 20

_POINT_FILE = re.compile(r"(\d{5,9})\.parquet")
_RECORD_KEY = b"eden.point"
_CHECKSUM_KEY = b"eden.crc32"
_SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in (
    ("cell", pa.int64()), ("errors", pa.uint16()), ("stored", pa.bool_())
)])  # fmt: skip


class Profile:
    """An error profile: what a scan found, point by point.

    Use `create` or `open`. One process may append at a time; any number may read.

    Attributes:
        path: the profile's folder.
        header: what holds for all of it.
    """

    def __init__(self, path: Path, header: ProfileHeader, points: dict[int, PointRecord]) -> None:
        self.path = path
        self.header = header
        self._points = points

    @classmethod
    def create(cls, path: Path | str, header: ProfileHeader) -> "Profile":
        """Start a profile in ``path``, a folder that does not exist yet or is empty.

        Raises:
            ProfileError: something is there already, or the folder cannot be written.
        """
        path = Path(path)
        if path.exists():
            if not path.is_dir():
                raise ProfileError(f"{path} is a file; give the name of a new folder for the profile")
            # A run killed inside `create` leaves a temporary file and nothing of value.
            if any(not TEMPORARY_FILE.fullmatch(entry.name) for entry in path.iterdir()):
                kind = "already holds a profile" if (path / HEADER_NAME).exists() else "is not empty"
                raise ProfileError(f"{path} {kind}; open it to go on with it, or give the name of a new folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ProfileError(f"cannot make the folder {path} ({error.strerror}); choose another place") from error
        with atomic_file(path / HEADER_NAME) as file:
            file.write(header.model_dump_json(indent=2).encode())
        return cls(path, header, {})

    @classmethod
    def open(cls, path: Path | str) -> "Profile":
        """Open the profile in folder ``path`` and read the record of every finished point (not their cells).

        Raises:
            ProfileError: no profile, a damaged file, or one that a later version wrote.
        """
        path = Path(path)
        header = _read_header(path)
        points = {}
        for file in _point_files(path):
            record = _open_point(file, header).record
            points[record.index] = record
        return cls(path, header, dict(sorted(points.items())))

    @property
    def geometry(self) -> Geometry:
        return self.header.geometry

    @property
    def points(self) -> list[PointRecord]:
        """Records of the finished points, by index."""
        return list(self._points.values())

    @property
    def missing(self) -> list[int]:
        """Indices of planned points that are still to be measured."""
        return [index for index in range(self.header.planned_points) if index not in self._points]

    @property
    def complete(self) -> bool:
        return len(self._points) == self.header.planned_points

    def append(self, record: PointRecord, cells: CellCounts) -> None:
        """Add a finished point; when this returns, it is on disk.

        Raises:
            ProfileError: the point does not fit the profile or does not reconcile with its cells, or the disk is full.
        """
        file = self._file(record.index)
        if record.index in self._points or file.exists():
            raise ProfileError(f"{self.path} already holds point {record.index}; measure one of its missing points")
        try:
            _check_record(record, self.header)
            _check_cells(record, cells, self.geometry)
        except ValueError as error:
            raise ProfileError(f"point {record.index} is not stored in {self.path}: {error}") from error
        with disk_errors(file, _KEPT):
            file.parent.mkdir(exist_ok=True)
            for entry in file.parent.iterdir():
                if TEMPORARY_FILE.fullmatch(entry.name):  # of a run that was killed
                    entry.unlink(missing_ok=True)
        with atomic_file(file, _KEPT) as target:
            _write_point(target, record, cells, self.geometry)
        self._points[record.index] = record
        self._points = dict(sorted(self._points.items()))

    def cells(self, index: int, bank: int | None = None) -> CellCounts:
        """The cells that failed at point ``index``: of its whole region, or of one ``bank`` without reading the rest.

        Raises:
            ProfileError: there is no such point, its file is damaged, or cells and record do not reconcile.
        """
        if index not in self._points:
            raise ProfileError(
                f"{self.path} has no point {index}; it has {len(self._points)} points, see eden profile show"
            )
        file = self._file(index)
        stored = _open_point(file, self.header)
        if stored.record != self._points[index]:
            raise ProfileError(f"{file} changed while the profile was open; open the profile again")
        cells = stored.read(bank)
        if bank is None:
            try:
                _check_cells(stored.record, cells, self.geometry)
            except ValueError as error:
                raise ProfileError(f"{file} does not reconcile: {error}; {_REMEASURE}") from error
        return cells

    def find(
        self,
        point: OperatingPoint,
        write_condition: WriteCondition | None = None,
        pattern: Pattern | None = None,
    ) -> list[PointRecord]:
        """Records measured at ``point``; None leaves a condition open."""
        return [
            record
            for record in self._points.values()
            if record.point == point
            and write_condition in (None, record.write_condition)
            and pattern in (None, record.pattern)
        ]

    def operating_points(self) -> list[OperatingPoint]:
        """The operating points measured so far, from the highest VDD and longest tRCD down."""
        distinct = {record.point for record in self._points.values()}
        return sorted(distinct, key=lambda point: (-point.vdd_mv, -point.trcd_ps))

    def _file(self, index: int) -> Path:
        return self.path / POINTS_NAME / f"{index:05d}.parquet"


_KEPT = "every finished point is safe, this one is not stored"
_REMEASURE = "delete this file and run the scan again to measure its point anew, or restore it from a copy"


def _read_header(path: Path) -> ProfileHeader:
    file = path / HEADER_NAME
    if not path.is_dir():
        what = "is a single file; bring it in with eden profile import" if path.is_file() else "does not exist"
        raise ProfileError(f"{path} is not a profile folder: it {what}")
    if not file.is_file():
        raise ProfileError(f"{path} holds no {HEADER_NAME}, so it is not a profile; check the path")
    return parse_header(read_bounded(file, MAX_HEADER_BYTES), file)


def parse_header(text: bytes, file: Path) -> ProfileHeader:
    """The header in the JSON ``text``, which came from ``file`` (named in errors).

    Raises:
        ProfileError: foreign, damaged, or of a future version.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{file} is not valid JSON; it is truncated or damaged: restore it from a copy") from error
    if not isinstance(content, dict) or content.get("format") != "eden-profile":
        raise ProfileError(f"{file} is not the header of an error profile; check the path")
    version = content.get("version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ProfileError(
            f"{file} has format version {version}, this toolkit reads up to {FORMAT_VERSION}; update the toolkit"
        )
    try:
        return ProfileHeader.model_validate_json(text)
    except ValidationError as error:
        raise ProfileError(f"{file} is damaged: {first_problem(error)}; restore it from a copy") from error


def _point_files(path: Path) -> list[Path]:
    folder = path / POINTS_NAME
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if _POINT_FILE.fullmatch(file.name))


def _check_record(record: PointRecord, header: ProfileHeader) -> None:
    """Raises ValueError where the record does not fit the profile or cannot be true."""
    if record.index >= header.planned_points:
        raise ValueError(f"its index {record.index} is outside the {header.planned_points} planned points")
    record.region.check(header.geometry)
    bank_cells = record.region.row_count * header.geometry.row_bits
    if len(record.stored_ones) != len(record.region.banks):
        raise ValueError(f"stored_ones has {len(record.stored_ones)} entries for {len(record.region.banks)} banks")
    if not all(0 <= ones <= bank_cells for ones in record.stored_ones):
        raise ValueError(f"stored_ones {list(record.stored_ones)} is outside 0..{bank_cells} cells a bank")
    ones = sum(record.stored_ones)
    zeros = record.region.cells(header.geometry) - ones
    for direction, errors, cells in (
        ("1 to 0", record.errors_one_to_zero, ones),
        ("0 to 1", record.errors_zero_to_one, zeros),
    ):
        if errors > cells * record.rounds:
            raise ValueError(f"{errors} errors {direction} are more than {cells} cells x {record.rounds} rounds")


def _check_cells(record: PointRecord, cells: CellCounts, geometry: Geometry) -> None:
    """Raises ValueError where the cells lie outside the region or disagree with the record's counts."""
    inside = sum(high - low for low, high in _bank_slices(record, cells.cell, geometry))
    if inside != cells.cell.size:
        raise ValueError(f"{cells.cell.size - inside} of its cells are outside the tested region")
    if cells.cell.size and not 1 <= int(cells.errors.min()) <= int(cells.errors.max()) <= record.rounds:
        raise ValueError(
            f"errors a cell {cells.errors.min()}..{cells.errors.max()} are outside 1..{record.rounds} rounds"
        )
    if cells.cell.size and int(cells.stored.max()) > 1:
        raise ValueError(f"a stored bit is {cells.stored.max()}, not 0 or 1")
    counted = (cells.errors_zero_to_one, cells.errors_one_to_zero)
    recorded = (record.errors_zero_to_one, record.errors_one_to_zero)
    if counted != recorded:
        raise ValueError(f"errors (0 to 1, 1 to 0) are {counted} in the cells and {recorded} in the record")


def _bank_slices(record: PointRecord, cell: CellArray, geometry: Geometry) -> list[tuple[int, int]]:
    """Half-open index range of each of the region's banks in the ascending ``cell``."""
    first = np.array(record.region.banks, np.int64) * geometry.bank_bits + record.region.row_start * geometry.row_bits
    low = np.searchsorted(cell, first)
    high = np.searchsorted(cell, first + record.region.row_count * geometry.row_bits)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _write_point(target: IO[bytes], record: PointRecord, cells: CellCounts, geometry: Geometry) -> None:
    slices = [(low, high) for low, high in _bank_slices(record, cells.cell, geometry) if high > low]
    text = record.model_dump_json().encode()
    cell = np.ascontiguousarray(cells.cell, np.int64)
    errors = np.ascontiguousarray(cells.errors, np.uint16)
    stored = np.ascontiguousarray(cells.stored, np.uint8)
    groups = [_checksum(cell[low:high], errors[low:high], stored[low:high]) for low, high in slices]
    banks = [int(cell[low] // geometry.bank_bits) for low, _ in slices]
    metadata = {_RECORD_KEY: text, _CHECKSUM_KEY: _Checksums(zlib.crc32(text), groups, banks).to_json()}
    table = pa.table([pa.array(cell), pa.array(errors), pa.array(stored).cast(pa.bool_())], schema=_SCHEMA)
    with pq.ParquetWriter(
        target,
        _SCHEMA.with_metadata(metadata),
        compression="zstd",
        use_dictionary=["errors"],
        column_encoding={"cell": "DELTA_BINARY_PACKED"},
        write_page_checksum=True,
    ) as writer:
        for low, high in slices:
            writer.write_table(table.slice(low, high - low), row_group_size=high - low)


def _checksum(cell: CellArray, errors: npt.NDArray[np.uint16], stored: npt.NDArray[np.uint8]) -> int:
    crc = 0
    for column in (cell.astype("<i8", copy=False), errors.astype("<u2", copy=False), stored):
        crc = zlib.crc32(np.ascontiguousarray(column).data, crc)
    return crc


@dataclass(frozen=True)
class _Checksums:
    """CRC-32 of a point's record and of each row group, and the bank that each row group holds."""

    record: int
    groups: list[int]
    banks: list[int]

    def to_json(self) -> bytes:
        body = asdict(self)
        return json.dumps(body | {"check": zlib.crc32(json.dumps(body).encode())}).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "_Checksums":
        """Raises ValueError, TypeError or KeyError where ``text`` is not what `to_json` wrote."""
        body = json.loads(text)
        found = cls(int(body["record"]), [int(v) for v in body["groups"]], [int(v) for v in body["banks"]])
        if found.to_json() != text or len(found.groups) != len(found.banks):
            raise ValueError("checksums do not match their own check")
        return found


class _StoredPoint:
    """An opened point file whose metadata have been checked; its cells are read on demand."""

    def __init__(
        self, path: Path, parquet: Any, record: PointRecord, checksums: _Checksums, geometry: Geometry
    ) -> None:
        self.path = path
        self.parquet = parquet
        self.record = record
        self.checksums = checksums
        self.geometry = geometry

    def read(self, bank: int | None) -> CellCounts:
        groups = [group for group, held in enumerate(self.checksums.banks) if bank in (None, held)]
        columns: list[tuple[Any, Any, Any]] = []
        for group in groups:
            try:
                table = self.parquet.read_row_group(group, use_threads=False)
            except (pa.ArrowException, OSError, MemoryError) as error:
                raise _damaged(self.path, one_line(error)) from error
            if any(table.column(name).null_count for name in _SCHEMA.names):
                raise _damaged(self.path, "it has empty entries")
            cell, errors = (table.column(name).to_numpy() for name in ("cell", "errors"))
            stored = table.column("stored").cast(pa.uint8()).to_numpy()
            if _checksum(cell, errors, stored) != self.checksums.groups[group]:
                raise _damaged(self.path, f"the checksum of row group {group} does not match its cells")
            columns.append((cell, errors, stored))
        if not columns:
            return CellCounts(np.empty(0, np.int64), np.empty(0, np.uint16), np.empty(0, np.uint8))
        try:
            return CellCounts(
                *(parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*columns, strict=True))
            )
        except ProfileError as error:
            raise _damaged(self.path, str(error)) from error


def _open_point(path: Path, header: ProfileHeader) -> _StoredPoint:
    """Open a point file and check all of it but the cells."""
    try:
        parquet = pq.ParquetFile(path, page_checksum_verification=True, memory_map=False)
        # Names and types as they are in the file; nothing is decoded yet.
        names, kinds = parquet.schema_arrow.names, parquet.schema_arrow.types
        metadata = parquet.metadata.metadata or {}
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _damaged(path, one_line(error)) from error
    if _RECORD_KEY not in metadata or _CHECKSUM_KEY not in metadata:
        raise ProfileError(f"{path} is no point of a profile; remove it from the folder")
    if names != _SCHEMA.names or kinds != _SCHEMA.types:
        raise _damaged(path, f"its columns are {names}, not {_SCHEMA.names}")
    record, checksums = _parse_metadata(path, metadata)
    try:
        _check_record(record, header)
    except ValueError as error:
        raise ProfileError(f"{path} does not fit {path.parents[1] / HEADER_NAME}: {error}; {_REMEASURE}") from error
    if path.name != f"{record.index:05d}.parquet":
        raise ProfileError(f"{path} holds point {record.index}; give it its own name back, or remove it")
    _check_size(path, parquet.metadata, record, header.geometry, len(checksums.groups))
    return _StoredPoint(path, parquet, record, checksums, header.geometry)


def _parse_metadata(path: Path, metadata: dict[bytes, bytes]) -> tuple[PointRecord, _Checksums]:
    text, checks = metadata[_RECORD_KEY], metadata[_CHECKSUM_KEY]
    if max(len(text), len(checks)) > MAX_RECORD_BYTES:
        raise _damaged(path, f"its record is larger than {MAX_RECORD_BYTES >> 20} MiB")
    try:
        checksums = _Checksums.from_json(checks)
        if checksums.record != zlib.crc32(text):
            raise _damaged(path, "the checksum of its record does not match")
        return PointRecord.model_validate_json(text), checksums
    except ValidationError as error:
        raise _damaged(path, first_problem(error)) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, "its checksums are unreadable") from error


def _check_size(path: Path, metadata: Any, record: PointRecord, geometry: Geometry, groups: int) -> None:
    """Bound what reading may allocate, before reading: no more cells than were tested, nor than reads failed."""
    limit = min(record.region.cells(geometry), record.errors)
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if len(rows) != groups or min(rows, default=0) < 0 or max(metadata.num_rows, sum(rows)) > limit:
        raise _damaged(
            path, f"it claims {metadata.num_rows} cells in {len(rows)} groups, its record {limit} in {groups}"
        )
    for group in range(groups):
        for column in range(len(_SCHEMA.names)):
            chunk = metadata.row_group(group).column(column)
            # 16 bytes a cell and 64 KiB for page headers and dictionary: twice what our encodings can need.
            if not 0 <= chunk.total_uncompressed_size <= 16 * rows[group] + (64 << 10):
                raise _damaged(path, f"column {column} claims {chunk.total_uncompressed_size} bytes")


def _damaged(path: Path, what: str) -> ProfileError:
    return ProfileError(f"{path} is truncated or damaged ({what}); {_REMEASURE}")
