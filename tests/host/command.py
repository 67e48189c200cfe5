"""The `eden` command in a process of its own, which can be stopped, and a small plan for it."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from host.boards import open_board
from host.cli.plan import load_plan
from host.scan import scan
from profiles.storage import Profile

PLAN = """
board = "mock:B:1"
output = "{output}"
[scan]
banks = [0, 1]
rows = {{ start = 0, count = 4 }}
patterns = ["0x00", "0xFF"]
rounds = 3
write = ["nominal", "operating_point"]
[[scan.grid]]
trcd_ps = 10000
vdd_mv = {vdd}
"""


def write_plan(folder: Path, vdd: str = "[1100, 1040]") -> Path:
    """A plan for ``folder``/run in ``folder``."""
    plan = folder / "plan.toml"
    plan.write_text(PLAN.format(output=folder / "run", vdd=vdd))
    return plan


def alone(plan: Path, board: str, folder: Path) -> Profile:
    """The scan of ``board`` by ``plan``, in this process, that nobody disturbs."""
    opened = open_board(board)
    try:
        return scan(opened, load_plan(plan).scan, folder)
    finally:
        opened.close()


def begin(*arguments: str | Path) -> "subprocess.Popen[str]":
    """`eden` with ``arguments``, begun."""
    command = [sys.executable, "-m", "host.cli.main", *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def until(condition: Callable[[], bool], child: "subprocess.Popen[str]") -> None:
    """Wait for ``condition``, which the running ``child`` brings about."""
    while not condition():
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)


def points_in(profile: Path) -> int:
    """How many points are finished in the folder of a profile."""
    return len(list(profile.glob("points/?????.parquet")))
