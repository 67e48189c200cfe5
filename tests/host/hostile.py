"""A computer that turns against a process: its disk is full, its wall clock jumps (``hostile.cpp``, preloaded)."""

import os
import subprocess
from pathlib import Path


def build_hostile(folder: Path) -> Path:
    """The library to preload, compiled into ``folder``."""
    library = folder / "hostile.so"
    source = Path(__file__).with_suffix(".cpp")
    subprocess.run(
        ["c++", "-std=c++17", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, capture_output=True
    )
    return library


def hostile(library: Path, disk_bytes: int | None = None, clock_s: int | None = None) -> dict[str, str]:
    """The environment of a process whose files take ``disk_bytes``, and whose clock is off by up to ``clock_s``."""
    settings = {"HOSTILE_DISK_BYTES": disk_bytes, "HOSTILE_CLOCK_S": clock_s}
    chosen = {name: str(value) for name, value in settings.items() if value is not None}
    return {**os.environ, "LD_PRELOAD": str(library), **chosen}
