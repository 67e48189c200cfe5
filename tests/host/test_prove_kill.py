"""A scan killed again and again, at moments of chance, ends in the profile of a scan that nobody disturbed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from host.boards import open_board
from host.plan import ScanPlan
from host.scan import scan
from host.toml_file import load_toml
from profiles.storage import Profile

KILLS = 200
PLAN = """
banks = [0, 5]
rows = { start = 3, count = 8 }
patterns = ["0x00", "0xFF", "random:3/invert"]
rounds = 3
write = ["nominal", "operating_point"]
[[grid]]
trcd_ps = 10000
vdd_mv = { from = 1100, to = 1040, step = 2 }
"""
POINTS = 31 * 3 * 2  # voltages, patterns, where data are written
# Ready before it scans, so that kills fall into the scan and not into imports.
SCAN = """
import sys
from pathlib import Path
from host.boards import open_board
from host.plan import ScanPlan
from host.toml_file import load_toml
from host.scan import scan
board, plan = open_board("mock:B:9"), load_toml(Path(sys.argv[1]), ScanPlan)
print("ready", flush=True)
try:
    scan(board, plan, Path(sys.argv[2]))
finally:
    board.close()
"""


def assert_same(expected: Profile, found: Profile) -> None:
    assert found.complete
    assert len(found.points) == len(expected.points)
    for ours, theirs in zip(found.points, expected.points, strict=True):
        times = {"started": theirs.started, "duration_s": theirs.duration_s}
        assert ours.model_copy(update=times) == theirs
        for column in ("cell", "errors", "stored"):
            there, here = getattr(expected.cells(theirs.index), column), getattr(found.cells(ours.index), column)
            assert np.array_equal(there, here)


@pytest.mark.prove
def test_killed_two_hundred_times_scans_end_in_the_same_profile(tmp_path: Path) -> None:
    """Moments are even over the time that a scan takes, the end of its process included, and meet all of it."""
    plan_file = tmp_path / "plan.toml"
    plan_file.write_text(PLAN)
    plan = load_toml(plan_file, ScanPlan)
    whole = scan(open_board("mock:B:9"), plan, tmp_path / "whole")
    start = time.monotonic()
    scan(open_board("mock:B:9"), plan, tmp_path / "timed")
    lasts = time.monotonic() - start
    rng, found = np.random.default_rng(20190613), list[int]()
    folder, scans = tmp_path / "killed-0", 1
    while len(found) < KILLS:
        child = subprocess.Popen([sys.executable, "-c", SCAN, str(plan_file), str(folder)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(float(rng.uniform(0, 0.3 * lasts)))
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        assert child.returncode in (0, -signal.SIGKILL)
        begun = (folder / "profile.json").exists()
        profile = Profile.open(folder) if begun else None  # at every moment, what is there is whole
        if child.returncode:
            found.append(len(profile.points) if profile else 0)
        if profile is not None and profile.complete:
            assert_same(whole, profile)
            assert_same(whole, scan(open_board("mock:B:9"), plan, folder))  # nothing is left to be done
            folder, scans = tmp_path / f"killed-{scans}", scans + 1
    assert_same(whole, scan(open_board("mock:B:9"), plan, folder))
    share = np.array(found) / POINTS
    met, _ = np.histogram(share, np.linspace(0, 1, 11))
    assert (met > 0).all(), f"kills met only these tenths of a scan: {met}"
    assert (share == 1).any(), "no kill came between the last point and the end of the process"
