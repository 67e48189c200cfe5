"""Profiles for others: flat tables that any tool opens, and a single file to hand over and bring back."""

import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from profiles.cells import LINE_KINDS
from profiles.errors import ProfileError
from profiles.files import atomic_file, disk_errors, one_line
from profiles.schema import PointRecord
from profiles.storage import HEADER_NAME, MAX_HEADER_BYTES, POINTS_NAME, Profile

SUFFIXES = (".parquet", ".csv", ".npz", ".zip")

_ENTRY = re.compile(rf"{re.escape(HEADER_NAME)}|{POINTS_NAME}/\d{{5,9}}((\.\d{{1,5}})?\.(bitmaps|counters))?\.parquet")
_MAX_EXPANSION = 4  # point files are compressed already; an archive that promises more is no profile
_SLACK_BYTES = 1 << 20
_ROWS_A_BATCH = 1 << 20

_TEXT = pa.dictionary(pa.int32(), pa.string())
_CELL_SCHEMA = pa.schema(
    [
        ("point_index", pa.int32()),
        ("vdd_mv", pa.int32()),
        ("trcd_ps", pa.int32()),
        ("write_condition", _TEXT),
        ("pattern", _TEXT),
        ("bank", pa.int16()),
        ("row", pa.int32()),
        ("column", pa.int16()),
        ("dq", pa.int16()),
        ("stored", pa.uint8()),
        ("trials", pa.int32()),
        ("errors", pa.int32()),
    ]
)

_LINE_SCHEMA = pa.schema(
    [
        *(_CELL_SCHEMA.field(name) for name in ("point_index", "vdd_mv", "trcd_ps", "write_condition", "pattern")),
        ("kind", _TEXT),
        ("bank", pa.int16()),
        ("line", pa.int32()),
        *((name, pa.int64()) for name in ("errors_zero_to_one", "errors_one_to_zero", "trials_zero", "trials_one")),
    ]
)


def export(profile: Profile, path: Path | str) -> list[Path]:
    """Write ``profile`` to ``path``, in the form that its suffix names.

    - ``.parquet``, ``.csv``: one row for each cell that failed at a point, with address, operating point, pattern,
      stored bit, trials and errors. Beside it ``NAME.points.parquet`` or ``.csv``, one row for each point, those
      without an error included, and ``NAME.profile.json``, the profile's header with geometry and licence. A cell that
      is in no row but in a point's region was read ``rounds`` times without an error; outside it was not tested. Where
      ``counted`` is true, that holds in ``cell_regions`` only, and ``NAME.lines.parquet`` or ``.csv`` has the failed
      reads and the reads of each row, bitline (``column * data_width + dq``) and data line of the region.
    - ``.npz``: for `numpy.load`. ``header`` (JSON), ``points/COLUMN`` (one entry a point; missing numbers are NaN),
      ``00007/cell``, ``/errors``, ``/stored`` of point 7, and where it was counted ``00007/rows_errors``,
      ``/rows_trials`` and so on, int64[banks, lines, 2] by stored bit.
    - ``.zip``: the whole profile; `import_profile` brings it back.

    Returns:
        The files that were written; existing ones are replaced.

    Raises:
        ProfileError: another suffix, a damaged profile, or a full disk.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ProfileError(f"cannot export to '{path.name}'; end its name in one of {', '.join(SUFFIXES)}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with atomic_file(path) as file:
            _write_archive(profile, file)
        return [path]
    if path.suffix == ".npz":
        with atomic_file(path) as file:
            _write_arrays(profile, file)
        return [path]
    points, header = path.with_suffix(f".points{path.suffix}"), path.with_suffix(".profile.json")
    with atomic_file(header) as file:
        file.write(profile.header.model_dump_json(indent=2).encode())
    with atomic_file(points) as file:
        _write_table(file, path.suffix, _points_table(profile).schema, iter([_points_table(profile)]))
    with atomic_file(path) as file:
        _write_table(file, path.suffix, _CELL_SCHEMA, _cell_tables(profile))
    if not any(record.counted for record in profile.points):
        return [path, points, header]
    lines = path.with_suffix(f".lines{path.suffix}")
    with atomic_file(lines) as file:
        _write_table(file, path.suffix, _LINE_SCHEMA, _line_tables(profile))
    return [path, points, lines, header]


def import_profile(path: Path | str, folder: Path | str) -> Profile:
    """Bring the ``.zip`` that `export` wrote back as a profile in ``folder``, and check every point of it.

    Raises:
        ProfileError: not such a file, a damaged one, or ``folder`` exists already. ``folder`` is then as it was.
    """
    path, folder = Path(path), Path(folder)
    if folder.exists():
        raise ProfileError(f"{folder} exists already; give the name of a new folder for the profile")
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _extract(path, staging / "profile")
            profile = Profile.open(staging / "profile")
            profile.verify()
            (staging / "profile").replace(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return Profile.open(folder)


def _write_archive(profile: Profile, file: IO[bytes]) -> None:
    # Stored, not deflated: the point files are compressed already.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        points = (file for record in profile.points for file in profile.files(record.index))
        names = [HEADER_NAME, *(f"{POINTS_NAME}/{file.name}" for file in points)]
        for name in names:
            archive.write(profile.path / name, name)
        archive.comment = _manifest([entry.filename for entry in archive.infolist()])


def _manifest(names: list[str]) -> bytes:
    """What an archive's comment says of its files, which no other checksum covers: number, and CRC-32 of names."""
    return f"{len(names)} files {zlib.crc32(chr(10).join(sorted(names)).encode()):08x}".encode()


def _extract(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries)
            if archive.comment != _manifest([entry.filename for entry in entries]):
                raise ProfileError(
                    f"{path} does not hold the files it was exported with; it is damaged: fetch it again"
                )
            (folder / POINTS_NAME).mkdir(parents=True)
            for entry in entries:
                with archive.open(entry) as source, (folder / entry.filename).open("xb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)  # zipfile stops at file_size, and checks the CRC
    except FileNotFoundError as error:
        raise ProfileError(f"{path} does not exist; check the path") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ProfileError(f"{path} is no intact profile archive ({one_line(error)}); fetch it again") from error


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Only files that a profile has, each once, none larger than its compressed size can explain."""
    names = [entry.filename for entry in entries]
    strange = [name for name in names if not _ENTRY.fullmatch(name)]
    if strange or HEADER_NAME not in names:
        what = f"holds '{strange[0][:80]}'" if strange else f"holds no {HEADER_NAME}"
        raise ProfileError(f"{path} {what}, so it is not an exported profile; check the path")
    if len(set(names)) != len(names):
        raise ProfileError(f"{path} holds a file twice; it is damaged: fetch it again")
    for entry in entries:
        limit = _MAX_EXPANSION * entry.compress_size + _SLACK_BYTES
        if entry.file_size > (MAX_HEADER_BYTES if entry.filename == HEADER_NAME else limit):
            raise ProfileError(
                f"{path} claims {entry.file_size} bytes for {entry.filename}; it is damaged: fetch it again"
            )


def _write_table(file: IO[bytes], suffix: str, schema: pa.Schema, tables: Iterator[Any]) -> None:
    if suffix == ".csv":
        plain = pa.schema([(field.name, pa.string() if field.type == _TEXT else field.type) for field in schema])
        with pacsv.CSVWriter(file, plain) as writer:
            for table in tables:
                writer.write_table(table.cast(plain))
    else:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)


def _cell_tables(profile: Profile) -> Iterator[Any]:
    for record in profile.points:
        for _, cells in profile.cells_by_bank(record.index):
            for low in range(0, cells.cell.size, _ROWS_A_BATCH):
                part = slice(low, low + _ROWS_A_BATCH)
                yield _cell_table(profile, record, cells.cell[part], cells.errors[part], cells.stored[part])


def _line_tables(profile: Profile) -> Iterator[Any]:
    for record in (record for record in profile.points if record.counted):
        for bank in record.region.banks:
            lines, trials = profile.lines(record.index, bank), profile.line_trials(record.index, bank)
            for kind in LINE_KINDS:
                errors = getattr(lines, kind)
                first = record.region.row_start if kind == "rows" else 0
                size = len(errors)
                columns = {
                    "point_index": np.full(size, record.index, np.int32),
                    "vdd_mv": np.full(size, record.point.vdd_mv, np.int32),
                    "trcd_ps": np.full(size, record.point.trcd_ps, np.int32),
                    "write_condition": _same(record.write_condition, size),
                    "pattern": _same(str(record.pattern), size),
                    "kind": _same(kind, size),
                    "bank": np.full(size, bank, np.int16),
                    "line": np.arange(first, first + size, dtype=np.int32),
                    **{"errors_zero_to_one": errors[:, 0], "errors_one_to_zero": errors[:, 1]},
                    **{"trials_zero": trials[kind][:, 0], "trials_one": trials[kind][:, 1]},
                }
                yield pa.table(columns, schema=_LINE_SCHEMA)


def _write_arrays(profile: Profile, file: IO[bytes]) -> None:
    """What `numpy.load` reads, array by array, so that memory holds one."""

    def put(name: str, array: npt.NDArray[Any]) -> None:
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)

    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        put("header", np.array(profile.header.model_dump_json()))
        for name, values in _points_table(profile).to_pydict().items():
            kind = _POINT_SCHEMA.field(name).type
            text = pa.types.is_string(kind)
            filled = ["" if value is None else value for value in values] if text else values
            missing = not text and any(value is None for value in values)
            put(
                f"points/{name}",
                np.array(filled, np.str_ if text else np.float64 if missing else kind.to_pandas_dtype()),
            )
        for record in profile.points:
            cells = profile.cells(record.index)
            for name in ("cell", "errors", "stored"):
                put(f"{record.index:05d}/{name}", getattr(cells, name))
            if record.counted:
                of_banks = [profile.lines(record.index, bank) for bank in record.region.banks]
                trials = [profile.line_trials(record.index, bank) for bank in record.region.banks]
                for kind in LINE_KINDS:
                    put(f"{record.index:05d}/{kind}_errors", np.stack([getattr(lines, kind) for lines in of_banks]))
                    put(f"{record.index:05d}/{kind}_trials", np.stack([each[kind] for each in trials]))


def _same(value: str, size: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(size, np.int32)), pa.array([value]))


def _cell_table(profile: Profile, record: PointRecord, cell: Any, errors: Any, stored: Any) -> Any:
    geometry = profile.geometry

    def constant(value: int) -> Any:
        return np.full(cell.size, value, np.int32)

    columns = {
        "point_index": constant(record.index),
        "vdd_mv": constant(record.point.vdd_mv),
        "trcd_ps": constant(record.point.trcd_ps),
        "write_condition": _same(record.write_condition, cell.size),
        "pattern": _same(str(record.pattern), cell.size),
        "bank": geometry.bank(cell).astype(np.int16),
        "row": geometry.row(cell).astype(np.int32),
        "column": geometry.column(cell).astype(np.int16),
        "dq": geometry.dq(cell).astype(np.int16),
        "stored": stored,
        "trials": constant(record.rounds),
        "errors": errors.astype(np.int32),
    }
    return pa.table(columns, schema=_CELL_SCHEMA)


def _points_table(profile: Profile) -> Any:
    return pa.Table.from_pylist([_point_row(profile, record) for record in profile.points], schema=_POINT_SCHEMA)


def _point_row(profile: Profile, record: PointRecord) -> dict[str, Any]:
    flat = record.model_dump(mode="json")
    region = flat.pop("region")
    return {
        **flat,
        **flat["point"],
        "point_index": record.index,
        "pattern": str(record.pattern),
        "banks": " ".join(map(str, region["banks"])),
        "row_start": region["row_start"],
        "row_count": region["row_count"],
        "stored_ones": " ".join(map(str, record.stored_ones)),
        "counted": record.counted,
        "cell_regions": "; ".join(
            f"banks {' '.join(map(str, area.banks))} rows {area.row_start}..{area.row_end - 1}"
            for area in record.known_cells
        ),
        "overwritten": str(record.overwritten) if record.overwritten is not None else None,
        **_ends("vdd_{}_mv", record.vdd_range_mv),
        **_ends("temperature_{}_c", record.temperature_range_c),
        "tested_cells": record.region.cells(profile.geometry),
        "started": record.started.isoformat(),
    }


def _ends(name: str, ends: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = ends or (None, None)
    return {name.format("lowest"): low, name.format("highest"): high}


_POINT_SCHEMA = pa.schema(
    [
        ("point_index", pa.int32()),
        ("epoch", pa.int64()),
        ("vdd_mv", pa.int32()),
        ("trcd_ps", pa.int32()),
        ("trcd_clocks", pa.int32()),
        ("vdd_measured_mv", pa.float64()),
        ("vdd_uncertainty_mv", pa.float64()),
        ("vdd_lowest_mv", pa.float64()),
        ("vdd_highest_mv", pa.float64()),
        ("current_ma", pa.float64()),
        ("power_mw", pa.float64()),
        ("temperature_c", pa.float64()),
        ("temperature_lowest_c", pa.float64()),
        ("temperature_highest_c", pa.float64()),
        ("temperature_sensor", pa.string()),
        ("write_condition", pa.string()),
        ("write_vdd_mv", pa.int32()),
        ("write_trcd_ps", pa.int32()),
        ("overwritten", pa.string()),
        ("pattern", pa.string()),
        ("access_mode", pa.string()),
        ("rewritten_each_round", pa.bool_()),
        ("refresh", pa.string()),
        ("refresh_interval_ps", pa.int64()),
        ("refreshes", pa.int64()),
        ("banks", pa.string()),
        ("row_start", pa.int32()),
        ("row_count", pa.int32()),
        ("tested_cells", pa.int64()),
        ("rounds", pa.int32()),
        ("stored_ones", pa.string()),
        ("counted", pa.bool_()),
        ("cell_regions", pa.string()),
        ("errors_zero_to_one", pa.int64()),
        ("errors_one_to_zero", pa.int64()),
        ("started", pa.string()),
        ("duration_s", pa.float64()),
    ]
)
