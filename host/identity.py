"""Who answers at the other end of a link: what a board's registers say, and the description of its build."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from gateware.engine.parameters import EngineParameters
from gateware.registers import CSR_BASE, IDENTITY, INTERFACE_VERSION, register_offsets
from host.bus import Bus
from profiles.errors import BoardError, EdenError, LinkError
from profiles.geometry import Geometry

CONSTANTS = (
    *("tck_ps", "nphases", "read_phase", "write_phase", "cas_latency", "cas_write_latency"),
    *("banks", "rows", "columns", "data_width", "burst_length"),
    *("program_depth", "log_blocks", "buffer_bursts", "row_counters"),
)
DESCRIPTIONS = "build/*/*/board.json"  # of gateware and simulated boards, from the working directory


@dataclass(frozen=True)
class Identity:
    """What a board says of itself.

    Attributes:
        constants: values of the registers that are constants of the build, by name.
        build: CRC-32 of the build's board.json; 0: it has none.
    """

    constants: dict[str, int]
    build: int

    @property
    def sys_clk_hz(self) -> float:
        """System clock, hertz."""
        return 1e12 / (self.constants["tck_ps"] * self.constants["nphases"])


@dataclass(frozen=True)
class Description:
    """A build's board.json (`gateware.description`).

    Attributes:
        path: where it lies; the build's csr.json lies beside it.
        about: all of it.
        engine: what the engine was built for.
    """

    path: Path
    about: dict[str, Any]
    engine: EngineParameters

    def registers(self) -> dict[str, int]:
        """Byte addresses of the build's registers by LiteX's names, from its csr.json.

        Raises:
            BoardError: it cannot be read.
        """
        return register_addresses(self.path.with_name("csr.json"))


def register_addresses(csr_json: Path) -> dict[str, int]:
    """Byte addresses of a build's registers, from LiteX's csr.json.

    Raises:
        BoardError: it cannot be read.
    """
    try:
        content = json.loads(csr_json.read_text(encoding="utf-8"))
        return {name: int(register["addr"]) for name, register in content["csr_registers"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BoardError(f"{csr_json} lists no registers ({error!r}); build the gateware again") from error


def identify(bus: Bus, name: str) -> Identity:
    """Ask the board ``name`` at the end of ``bus`` who it is.

    Raises:
        LinkError: nothing answers as a test engine, or not twice the same.
        BoardError: its interface version is not this host's.
    """
    offsets = register_offsets()
    first, last = min(offsets[name] for name in CONSTANTS), max(offsets[name] for name in CONSTANTS)

    def registers(offset: int, count: int) -> list[int]:
        return [int(word) for word in bus.read(CSR_BASE + 4 * offset, count)]

    identity, version = registers(offsets["identity"], 1)[0], registers(offsets["interface_version"], 1)[0]
    if identity != IDENTITY:
        raise LinkError(
            f"'{name}' answers {identity:#010x} where a test engine says {IDENTITY:#010x}; check link and bitstream"
        )
    if version != INTERFACE_VERSION:
        raise BoardError(f"gateware interface {version}, host {INTERFACE_VERSION}; load the bitstream of this release")
    looks = [registers(first, last - first + 1) + registers(offsets["build"], 1) for _ in range(2)]
    if looks[0] != looks[1]:
        raise LinkError(f"'{name}' describes itself differently at each reading; check the link")
    *values, build = looks[0]
    return Identity({each: values[offsets[each] - first] for each in CONSTANTS}, build)


def find_description(identity: Identity, name: str) -> Description:
    """The board.json that the board was built with: the one whose CRC-32 it names.

    Raises:
        BoardError: there is none among `DESCRIPTIONS`, or it contradicts the board.
    """
    if not identity.build:
        raise BoardError(f"'{name}' names no description of its build; build and load its gateware with make gateware")
    for path in sorted(Path().glob(DESCRIPTIONS)):
        content = path.read_bytes()
        if crc32(content) == identity.build:
            return _description(path, content, identity, name)
    raise BoardError(
        f"'{name}' was built with the board.json of CRC-32 {identity.build:#010x}, which is none of {DESCRIPTIONS}; "
        "copy the folder of that build there, or build and load it anew"
    )


def _description(path: Path, content: bytes, identity: Identity, name: str) -> Description:
    try:
        about = json.loads(content)
        engine = EngineParameters(**{**about["engine"], "geometry": Geometry(**about["engine"]["geometry"])})
    except (ValueError, KeyError, TypeError, EdenError) as error:
        raise BoardError(f"{path} describes no build ({error!r}); build the gateware anew") from error
    told = engine.constants()
    if wrong := [each for each in CONSTANTS if told[each] != identity.constants[each]]:
        raise BoardError(
            f"{path} says {wrong[0]} {told[wrong[0]]}, the board '{name}' {identity.constants[wrong[0]]}; "
            "load the bitstream that lies beside it"
        )
    return Description(path, about, engine)
