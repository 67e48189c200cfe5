"""How this package compiles with numba: `njit` and `inlined`, and a cache that notices every change.

numba's cache on disk compares a function's own file only. A function whose *callee* changed in another file would go on
running the old code, so the cache folder is named after the state of all sources that numba compiles here.
"""

import os
import shutil
import zlib
from functools import partial
from pathlib import Path

import numba

_ROOT = Path(__file__).parent.parent
_SOURCES = (
    *("gateware/errorlog.py", "gateware/isa.py", "gateware/registers.py", "profiles/pattern.py", "host/chip.py"),
    *("host/compiled.py", "host/crc.py", "host/errorlog.py", "host/jedec_monitor.py", "host/mock_engine.py"),
    *("host/programs.py", "host/simulated_dram.py"),
)


def _cache_folder() -> Path:
    digest = zlib.crc32(b"".join((_ROOT / source).read_bytes() for source in _SOURCES))
    base = Path(os.environ.get("NUMBA_CACHE_DIR") or Path(__file__).parent / "__pycache__")
    folder = base / f"eden-{digest:08x}"
    if not folder.exists():
        for old in base.glob("eden-????????"):
            shutil.rmtree(old, ignore_errors=True)
    return folder


numba.config.CACHE_DIR = str(_cache_folder())  # type: ignore[attr-defined]

# The chip's and the engine's tuples hold dozens of arrays: numba counts references to each at every call, unless told
# that nothing is allocated. What is called for every command is inlined, which saves copying those tuples.
njit = partial(numba.njit, cache=True, _nrt=False, error_model="numpy")
inlined = partial(njit, forceinline=True)
