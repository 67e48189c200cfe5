"""Profiles on disk: a folder that is its own journal.

::

    my_dimm/
        profile.json            `ProfileHeader`
        points/00000.parquet    a finished point (`profiles.points`), with further tables of it beside it
        points/00001.parquet    ...
        scan.lock               empty, and locked by the process that appends

A point's file appears whole or not at all (temporary file, fsync, rename, fsync of the folder) and after the tables
that belong to it, so whatever is there is finished, and what is missing is still to be measured.
"""

import contextlib
import fcntl
import json
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from profiles.cells import CellCounts, LineCounts
from profiles.errors import ProfileError
from profiles.files import TEMPORARY_FILE, atomic_file, disk_errors, first_problem, one_line, read_bounded
from profiles.geometry import Geometry
from profiles.pattern import Pattern, PatternKind, stored_bits
from profiles.points import KEPT, PointWriter, StoredPoint, check_cells, open_point
from profiles.schema import FORMAT_VERSION, OperatingPoint, PointRecord, ProfileHeader, Region, WriteCondition

HEADER_NAME = "profile.json"
POINTS_NAME = "points"
LOCK_NAME = "scan.lock"
MAX_HEADER_BYTES = 64 << 20

_CHECK = "crc32"
_POINT_FILE = re.compile(r"\d{5,9}\.parquet")
_LOCK_S, _PAUSE_S = 1.0, 0.01  # a look at the lock (`is_growing`) holds it for an instant


class Profile:
    """An error profile: what a scan found, point by point.

    Use `create` or `open`. One process may append at a time (`appending`); any number may read.

    Attributes:
        path: the profile's folder.
        header: what holds for all of it.
    """

    def __init__(self, path: Path, header: ProfileHeader, points: dict[int, PointRecord]) -> None:
        self.path = path
        self.header = header
        self._points = points
        self._header_stamp: tuple[int, int] | None = None  # of the files that header and points were read from
        self._stamps: dict[int, tuple[int, int] | None] = {}

    @classmethod
    def create(cls, path: Path | str, header: ProfileHeader) -> "Profile":
        """Start a profile in ``path``, a folder that does not exist yet or is empty.

        Raises:
            ProfileError: something is there already, or the folder cannot be written.
        """
        path = Path(path)
        if (path / HEADER_NAME).exists():
            raise ProfileError(f"{path} already holds a profile; open it to go on with it, or give a new folder")
        _make_folder(path)
        with atomic_file(path / HEADER_NAME) as file:
            file.write(_header_text(header))
        return cls(path, header, {})

    @classmethod
    def open(cls, path: Path | str) -> "Profile":
        """Open the profile in folder ``path`` and read the record of every finished point (not their cells).

        Raises:
            ProfileError: no profile, a damaged file, or one that a later version wrote.
        """
        path = Path(path)
        profile = cls(path, read_header(path), {})
        profile.refresh()
        return profile

    def refresh(self) -> None:
        """Take in what is on disk now: another process may have finished points, or extended or begun the scan anew.

        Raises:
            ProfileError: a file is damaged; what was known stays as it was.
        """
        stamp, header, points, stamps = _stamp(self.path / HEADER_NAME), self.header, self._points, self._stamps
        if stamp != self._header_stamp:
            header, points, stamps = read_header(self.path), {}, {}
        now = {file: _stamp(file) for file in _point_files(self.path)}
        found = {}
        for file, written in now.items():
            index = int(file.stem)
            known = index in points and stamps.get(index) == written
            found[index] = points[index] if known else open_point(file, header).record
        self.header, self._header_stamp, self._points = header, stamp, dict(sorted(found.items()))
        self._stamps = {int(file.stem): written for file, written in now.items()}

    @property
    def geometry(self) -> Geometry:
        return self.header.geometry

    @property
    def points(self) -> list[PointRecord]:
        """Records of the finished points, by index."""
        return list(self._points.values())

    def record(self, index: int) -> PointRecord | None:
        """The record of point ``index``; None while it is not finished."""
        return self._points.get(index)

    @property
    def missing(self) -> list[int]:
        """Indices of planned points that are still to be measured."""
        return [index for index in range(self.header.planned_points) if index not in self._points]

    @property
    def complete(self) -> bool:
        return len(self._points) == self.header.planned_points

    def conclude(self) -> None:
        """Say in the header that nothing is missing, where the number of points was not known before.

        Raises:
            ProfileError: points are missing between those that are there, or the disk is full.
        """
        if self.complete or self.missing[0] != len(self._points):
            return
        self._replace_header(planned_points=len(self._points))

    def plan_more(self, plan: dict[str, Any], planned_points: int) -> None:
        """Take a larger plan, whose points begin with those of the present one, in the place of the present plan.

        Raises:
            ProfileError: it has fewer points than are there, or the disk is full.
        """
        if any(index >= planned_points for index in self._points):
            raise ProfileError(f"{self.path} holds more points than a plan of {planned_points}; give the larger plan")
        self._replace_header(plan=plan, planned_points=planned_points)

    def _replace_header(self, **changes: Any) -> None:
        header = self.header.model_copy(update=changes)
        with atomic_file(self.path / HEADER_NAME, KEPT) as file:
            file.write(_header_text(header))
        self.header = header

    def append(self, record: PointRecord, cells: CellCounts) -> None:
        """Add a finished point whose cells are all known; when this returns, it is on disk.

        Raises:
            ProfileError: the point does not fit the profile or does not reconcile with its cells, or the disk is full.
        """
        buffered = record.pattern.kind == PatternKind.BUFFER
        with self.writing(record.index, record.region, record.pattern, record.rounds) as point:
            if not buffered and not np.array_equal(
                stored_bits(record.pattern, self.geometry, cells.cell), cells.stored
            ):
                raise ProfileError(
                    f"point {record.index} is not stored in {self.path}: its cells store other bits than its pattern "
                    f"{record.pattern}; measure it anew"
                )
            rows = (record.region.row_start, record.region.row_count)
            inside = 0
            for bank in record.region.banks:
                first = (bank * self.geometry.rows + rows[0]) * self.geometry.row_bits
                low, high = np.searchsorted(cells.cell, (first, first + rows[1] * self.geometry.row_bits))
                stored = cells.stored[low:high] if buffered else None
                point.add(bank, *rows, cells.cell[low:high], cells.errors[low:high], stored)
                inside += int(high - low)
            if inside != cells.cell.size:
                raise ProfileError(
                    f"point {record.index} is not stored in {self.path}: {cells.cell.size - inside} of its cells are "
                    "outside the tested region; measure it anew"
                )
            point.finish(record)

    @contextlib.contextmanager
    def writing(
        self,
        index: int,
        region: Region,
        pattern: Pattern,
        rounds: int,
        cell_regions: tuple[Region, ...] | None = None,
    ) -> Iterator[PointWriter]:
        """Write point ``index`` while it is measured; it is there, on disk, once `PointWriter.finish` has returned.

        Yields:
            The writer. Leaving the block before it has finished leaves nothing behind.

        Raises:
            ProfileError: the point is there already, does not fit the profile or reconcile, or the disk is full.
        """
        file = self._file(index)
        if index in self._points or file.exists():
            raise ProfileError(f"{self.path} already holds point {index}; measure one of its missing points")
        writer = self._writer(index, [], region, pattern, rounds, cell_regions)
        yield from self._written(index, writer)

    @contextlib.contextmanager
    def adding(self, index: int, rounds: int) -> Iterator[PointWriter]:
        """Write point ``index`` anew, with more rounds: what it held, which the caller merges, and what is measured.

        Until `PointWriter.finish` has returned the point is what it was, whatever happens; from then on it is the new
        one.

        Args:
            index: of a point that is there.
            rounds: of all times together.

        Raises:
            ProfileError: there is no such point, the new one does not fit the profile or reconcile, or the disk is
                full.
        """
        stored = self._stored(index)
        before, kept = stored.record, stored.files
        writer = self._writer(index, kept, before.region, before.pattern, rounds, before.cell_regions, before.times + 1)
        yield from self._written(index, writer)
        if writer.finished is not None:
            now = self.files(index)
            for entry in kept:
                if entry not in now:
                    entry.unlink(missing_ok=True)

    def _writer(self, index: int, keep: list[Path], *what: Any) -> PointWriter:
        """A writer of a point, once what a killed run left of it is gone; files to ``keep`` are not that."""
        file = self._file(index)
        with disk_errors(file, KEPT):
            file.parent.mkdir(exist_ok=True)
            for entry in file.parent.iterdir():
                # Of a run that was killed: temporary files, and tables whose point was not yet there.
                left_over = TEMPORARY_FILE.fullmatch(entry.name) or entry.name.startswith(f"{file.stem}.")
                if left_over and entry not in keep:
                    entry.unlink(missing_ok=True)
        return PointWriter(file, self.header, *what)

    def _written(self, index: int, writer: PointWriter) -> Iterator[PointWriter]:
        try:
            yield writer
        finally:
            writer.abandon()
        if writer.finished is not None:
            self._points[index] = writer.finished
            self._points = dict(sorted(self._points.items()))

    def cells(self, index: int, bank: int | None = None, rows: tuple[int, int] | None = None) -> CellCounts:
        """The cells that failed at point ``index``, wherever it knows single cells (`PointRecord.known_cells`).

        Args:
            index: which point.
            bank: only this one; no others are read.
            rows: start and count, only these of ``bank``; row groups that hold none of them are not read.

        Raises:
            ProfileError: there is no such point, its file is damaged, or cells and record do not reconcile.
        """
        stored = self._stored(index)
        cells = stored.cells(bank, rows)
        check_cells(stored.path, stored.record, cells, self.geometry)
        return cells

    def cells_by_bank(self, index: int, banks: Sequence[int] | None = None) -> Iterator[tuple[int, CellCounts]]:
        """What `cells` gives, one bank after the other, so that memory holds one bank's; banks without a cell too.

        Args:
            index: which point.
            banks: only these; None for all whose cells are known.

        Raises:
            ProfileError: as `cells`.
        """
        stored = self._stored(index)
        known = {bank for area in stored.record.known_cells for bank in area.banks}
        for bank in sorted(known if banks is None else known & set(banks)):
            cells = stored.cells(bank, None)
            check_cells(stored.path, stored.record, cells, self.geometry)
            yield bank, cells

    def lines(self, index: int, bank: int) -> LineCounts:
        """Failed reads of each row, bitline and data line of a bank, at a point that was counted so.

        Raises:
            ProfileError: there is no such point, it has no counters of that bank, or its file is damaged.
        """
        stored = self._stored(index)
        if not stored.record.counted or bank not in stored.record.region.banks:
            raise ProfileError(f"point {index} of {self.path} has no counters of bank {bank}; see its cells")
        return stored.lines(bank)

    def line_trials(self, index: int, bank: int) -> dict[str, npt.NDArray[np.int64]]:
        """Reads behind `lines`, by kind of line: int64[n, 2], while storing 0 and 1."""
        return self._stored(index).trials(bank)

    def verify(self) -> None:
        """Read all there is, and reconcile cells, counters and records.

        Raises:
            ProfileError: a file is damaged, or does not reconcile.
        """
        for index in self._points:
            self._stored(index).verify()

    def files(self, index: int) -> list[Path]:
        """The files of a point."""
        return self._stored(index).files

    def _stored(self, index: int) -> StoredPoint:
        if index not in self._points:
            raise ProfileError(
                f"{self.path} has no point {index}; it has {len(self._points)} points, see eden profile show"
            )
        stored = open_point(self._file(index), self.header)
        if stored.record != self._points[index]:
            raise ProfileError(f"{stored.path} changed while the profile was open; open the profile again")
        return stored

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


@contextlib.contextmanager
def appending(path: Path) -> Iterator[None]:
    """Be the one process that appends to the profile in the folder ``path``, which need not exist yet.

    Raises:
        ProfileError: another process does, the folder holds something else, or it cannot be written.
    """
    _make_folder(path)
    file = path / LOCK_NAME
    with contextlib.ExitStack() as held:
        with disk_errors(file):
            lock = held.enter_context(file.open("ab"))
            end = time.monotonic() + _LOCK_S
            while not _locked(lock, fcntl.LOCK_EX):
                if time.monotonic() >= end:
                    raise ProfileError(f"another process scans into {path}; wait until it ends, or give another folder")
                time.sleep(_PAUSE_S)
        yield


def count_points(path: Path) -> int:
    """How many points of the profile in the folder ``path`` are finished; none of them is opened."""
    return len(_point_files(path))


def is_growing(path: Path) -> bool:
    """Whether a process appends to the profile in the folder ``path`` now."""
    try:
        with (path / LOCK_NAME).open("rb") as lock:
            return not _locked(lock, fcntl.LOCK_SH)
    except OSError:  # no scan of this release has been there, or it cannot be seen into
        return False


def _stamp(file: Path) -> tuple[int, int] | None:
    """Tells a file from another one in its place; None if there is none."""
    try:
        about = file.stat()
    except FileNotFoundError:
        return None
    return about.st_ino, about.st_mtime_ns


def _locked(file: IO[bytes], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_folder(path: Path) -> None:
    """Make the folder of a profile that is to begin or to go on. Raises ProfileError if it is no place for one."""
    if path.exists():
        if not path.is_dir():
            raise ProfileError(f"{path} is a file; give the name of a new folder for the profile")
        if not (path / HEADER_NAME).exists():
            # A run killed before there is a header leaves a lock, a temporary file, and nothing of value.
            strange = (each.name for each in path.iterdir() if each.name != LOCK_NAME)
            if any(not TEMPORARY_FILE.fullmatch(name) for name in strange):
                raise ProfileError(f"{path} is not empty; give the name of a new folder for the profile")
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProfileError(f"cannot make the folder {path} ({error.strerror}); choose another place") from error


def read_header(path: Path) -> ProfileHeader:
    """The header alone of the profile in the folder ``path``.

    Raises:
        ProfileError: no profile, or its header is damaged or of a later version.
    """
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
    if isinstance(version, int) and version != FORMAT_VERSION:
        remedy = "update the toolkit" if version > FORMAT_VERSION else "scan again, or use the release that wrote it"
        raise ProfileError(f"{file} has format version {version}, this toolkit reads {FORMAT_VERSION}; {remedy}")
    check = content.pop(_CHECK, None)
    try:
        header = ProfileHeader.model_validate_json(json.dumps(content))
    except (ValidationError, ValueError) as error:
        what = first_problem(error) if isinstance(error, ValidationError) else one_line(error)
        raise ProfileError(f"{file} is damaged: {what}; restore it from a copy") from error
    if check != _checksum(header):
        raise ProfileError(f"{file} is damaged: its checksum does not match its content; restore it from a copy")
    return header


def _header_text(header: ProfileHeader) -> bytes:
    """JSON that `parse_header` reads, with a CRC-32 of what it says: layout may change, content may not."""
    return json.dumps({**json.loads(header.model_dump_json()), _CHECK: _checksum(header)}, indent=2).encode()


def _checksum(header: ProfileHeader) -> int:
    return zlib.crc32(header.model_dump_json().encode())


def _point_files(path: Path) -> list[Path]:
    folder = path / POINTS_NAME
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if _POINT_FILE.fullmatch(file.name))
