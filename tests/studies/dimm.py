"""A whole DIMM on a whole grid, on the mock: ``python -m tests.studies.dimm [FOLDER]``.

8 GiB of vendor A's chips at 6 x 6 operating points and 8 patterns, 288 tests of 2^36 bits, is scanned as `eden scan`
does; stopped, it goes on where it was. Then the profile is used as one would, and what that costs is printed: time,
peak memory, bytes on disk.
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from host.boards import open_mock
from host.cli.scan_view import scan_view
from host.plan import ScanPlan
from host.scan import scan
from profiles.geometry import Geometry
from profiles.schema import WriteCondition
from profiles.storage import Profile
from profiles.surface import BerSurface

GEOMETRY = Geometry(banks=16, rows=65536, columns=1024, data_width=64)  # 8 GiB
TRCD_PS = (16000, 14000, 12000, 10000, 8000, 6000)
VDD_MV = [1350, 1275, 1200, 1150, 1100, 1050]
PATTERNS = ["0x00", "0xFF", "0xAA", "0x55", "0xCC", "0x33", "random:1", "random:2"]
PLAN = ScanPlan.model_validate(
    {
        "grid": [{"trcd_ps": trcd_ps, "vdd_mv": VDD_MV} for trcd_ps in TRCD_PS],
        "patterns": PATTERNS,
        "rounds": 1,
        "banks": list(range(GEOMETRY.banks)),
        "rows": {"start": 0, "count": GEOMETRY.rows},
    }
)


def main(folder: Path) -> None:
    """Scan, or go on scanning; then measure."""
    begun = time.perf_counter()
    with scan_view(PLAN) as watch:
        profile = scan(open_mock("A", 1, GEOMETRY), PLAN, folder, watch)
    print(f"scanned in {time.perf_counter() - begun:.0f} s (this call), peak memory {_peak_gib():.2f} GiB")
    tested = sum(record.region.cells(GEOMETRY) for record in profile.points)
    errors = sum(record.errors_zero_to_one + record.errors_one_to_zero for record in profile.points)
    seconds = sum(record.duration_s for record in profile.points)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    counted = sum(record.counted for record in profile.points)
    print(f"{len(profile.points)} tests, {counted} of them counted by line; {tested:.3g} cells, {errors:.3g} errors")
    print(f"{seconds:.0f} s of tests, {size / 2**20:.0f} MiB on disk")
    _use(profile, folder)
    print(f"peak memory of all {_peak_gib():.2f} GiB")


def _use(profile: Profile, folder: Path) -> None:
    logged = max(
        (record for record in profile.points if not record.counted),
        key=lambda record: record.errors_zero_to_one + record.errors_one_to_zero,
    )
    lines = next(record for record in reversed(profile.points) if record.counted)
    _timed("open the profile", lambda: Profile.open(folder))
    _timed(f"cells of bank 7 at {logged.point}", lambda: profile.cells(logged.index, 7))
    _timed(f"lines of bank 7 at {lines.point}", lambda: profile.lines(lines.index, 7))
    _timed("BER surface of all points", lambda: BerSurface.of(profile, WriteCondition.NOMINAL))


def _timed(what: str, work: Callable[[], Any]) -> None:
    begun = time.perf_counter()
    work()
    print(f"{what}: {time.perf_counter() - begun:.3f} s")


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/study/dimm"))
