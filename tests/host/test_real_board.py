"""A real board end to end: PHY, DRAM, SPD and engine in stand-ins behind Etherbone, brought up and scanned."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from gateware.engine.parameters import EngineParameters
from host.boards import open_board, open_mock
from host.bus import Words
from host.chip_presets import PRESETS
from host.mock import MockBoard
from host.selftest import require_self_test
from profiles.errors import BoardError, RailError
from profiles.geometry import Geometry
from profiles.storage import Profile
from tests.host.etherbone_peer import EtherboneServer
from tests.host.phy_stand_in import ARTIX, BASE, ECP5, KINTEX, Family, PhyStandIn, Skew, dram_init
from tests.host.test_links import run  # noqa: F401 (a fixture)
from tests.host.test_spd import DDR3_GOLDEN, I2C, I2cStandIn, sealed

DDR3L = sealed(DDR3_GOLDEN, b3=3, b6=2)  # the KC705's module in its low-voltage variant: the chip model is of DDR3L
GRID = """[[scan.grid]]
trcd_ps = {trcd_ps}
vdd_mv = [1350]

[network]"""


def plan(trcd_ps: int) -> str:
    """The default plan's first rows at one point."""
    text = (Path(__file__).parents[2] / "plans" / "default.toml").read_text()
    begin, end = text.index("[[scan.grid]]"), text.index("[network]")
    return text[:begin] + GRID.format(trcd_ps=trcd_ps) + text[end + len("[network]") :]


class Engine(MockBoard):
    """The engine before a DRAM of the chip model."""

    def __init__(self, build: EngineParameters) -> None:
        super().__init__(build, PRESETS["C"], 1)
        self.set_environment(1_350_000, 20.0)

    def describe(self, text: str) -> None:
        self._constants = {**self._constants, "build": crc32(text.encode())}


class RealBoardStandIn:
    """All of a board's registers and memories; a `host.bus.Bus`."""

    def __init__(self, family: Family, skews: list[Skew], folder: Path, spd: bytes | None = None) -> None:
        self.phy = PhyStandIn(family, skews, access_s=1e-6)
        build = replace(self.phy.build, geometry=Geometry(banks=8, rows=16384, columns=1024, data_width=8 * len(skews)))
        self.phy.build = build
        self.engine = Engine(build)
        self.i2c = I2cStandIn(spd, 0x74) if spd else None
        monitor = {"xadc_temperature": XADC} if spd else {}
        registers = {**self.phy.addresses(), **(I2C if spd else {}), **monitor}
        home = folder / "build" / "gateware" / "kc705"
        home.mkdir(parents=True)
        about = {
            **{"board": "kc705", "title": "a board", "sys_clk_hz": 1e12 / build.tck_ps / build.nphases},
            "engine": {**asdict(build), "geometry": build.geometry.model_dump()},
            "phy": {name: getattr(family, name) for name in ("phytype", "memtype", "delays", "bitslips")},
            "dram_init": dram_init(family.memtype),
            "rail": {"nominal_mv": 1350, "floor_mv": 1140},
        }
        text = json.dumps(about)
        (home / "board.json").write_text(text)
        (home / "csr.json").write_text(json.dumps({"csr_registers": {k: {"addr": v} for k, v in registers.items()}}))
        self.engine.describe(text)

    def _of(self, address: int) -> MockBoard | PhyStandIn | I2cStandIn:
        if self.i2c is not None and address in I2C.values():
            return self.i2c
        return self.phy if BASE <= address < BASE + 0x1000 else self.engine

    def read(self, address: int, count: int) -> Words:
        if address == XADC:
            return np.array([2634], np.uint32)
        return self._of(address).read(address, count)

    def write(self, address: int, words: Words) -> None:
        self._of(address).write(address, words)

    def close(self) -> None:
        """Nothing to release."""


XADC = 0xF0007000  # of the board with an SPD: its die has 50.9 °C
SKEW = Skew(read_first=1, read_taps=3)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """While numba compiles the engine's code, a stand-in in a thread of this process answers nobody."""
    require_self_test(open_mock("C", 1))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eden.toml").write_text('[supply]\nkind = "fixed"\ndram = "DDR3L"\n')
    (tmp_path / "plan.toml").write_text(plan(10000))
    return tmp_path


@pytest.mark.slow
def test_a_board_is_brought_up_and_tested_over_etherbone(run, bench: Path) -> None:  # noqa: F811
    stand_in = RealBoardStandIn(ECP5, [SKEW, replace(SKEW, read_first=3)], bench)
    with EtherboneServer(stand_in) as server:
        name = f"etherbone:{server.host}:{server.port}"
        status, out, err = run("board", "info", "--board", name)
        assert status == 0, err
        assert "no SPD within the gateware's reach" in out
        assert "no sensor within the gateware's reach" in out
        assert stand_in.phy.dram.events == []  # info leaves the DRAM alone
        status, out, err = run("board", "init", "--board", name)
        assert status == 0, err
        assert "DRAM initialised in" in out
        assert "0 (DQ 0 .. 7)" in out
        assert "6 of 5 .. 7" in out  # lane 0: the window of three from 1, at the bitslip before
        status, out, err = run("board", "test", "--board", name)
        assert status == 0, err
        assert "passed" in out
        board = open_board(name)
        assert board.module.part_number == "chips of a board"
        assert board.seed is None
        assert (board.timings.trrd, board.timings.trfc) == (4, 17)  # 1 Gb: 110 ns at 6.667 ns
        board.close()
    assert stand_in.phy.dram.faults == []


@pytest.mark.slow
def test_no_experiment_begins_on_a_dram_that_fails(run, bench: Path) -> None:  # noqa: F811
    good = replace(SKEW, read_taps=8)
    stand_in = RealBoardStandIn(ARTIX, [good, replace(good, read_taps=0)], bench)
    with EtherboneServer(stand_in) as server:
        name = f"etherbone:{server.host}:{server.port}"
        for command in (("scan", "plan.toml", "--out", "profile"), ("board", "test"), ("board", "init")):
            status, _, err = run(*command, "--board", name)
            assert status == 1
            assert "lane 1 (DQ 8 to 15) reads no test data" in err
        assert not (bench / "profile").exists()
        stand_in.phy.skews[1] = good
        stand_in.engine.set_environment(900_000, 20.0)  # where the chip model wants 16 ns of tRCD
        status, _, err = run("scan", "plan.toml", "--out", "profile", "--board", name)
        assert status == 1
        assert "self-test of" in err
        assert "data lines are bad" in err
        assert not (bench / "profile").exists()
        stand_in.engine.set_environment(1_350_000, 20.0)
        (bench / "eden.toml").write_text('[supply]\nkind = "fixed"\ndram = "DDR4"\n')
        with pytest.raises(BoardError, match="for DDR4, the gateware of a board for DDR3"):
            open_board(name)
        (bench / "eden.toml").unlink()
        with pytest.raises(RailError, match=r"no eden\.toml"):
            open_board(name)


@pytest.mark.slow
def test_a_scan_of_a_dimm_carries_its_spd(run, bench: Path) -> None:  # noqa: F811
    skews = [Skew(read_first=k, read_taps=8, clock_rise=5 + k) for k in range(8)]
    stand_in = RealBoardStandIn(KINTEX, skews, bench, DDR3L)
    with EtherboneServer(stand_in) as server:
        name = f"etherbone:{server.host}:{server.port}"
        status, out, err = run("board", "info", "--board", name)
        assert status == 0, err
        assert "Micron 8JTF12864AZ-1G4G1, serial number 00000000: DDR3-1333 SO-DIMM, 1024 MiB of x8 chips" in out
        assert "1.5 V or 1.35 V" in out
        assert "50.9 °C, FPGA die (XADC)" in out
        status, _, err = run("scan", "plan.toml", "--out", "profile", "--board", name)
        assert status == 0, err
    profile = Profile.open(bench / "profile")
    assert {point.temperature_sensor for point in profile.points} == {"FPGA die (XADC)"}
    assert all(abs((point.temperature_c or 0) - 50.94) < 0.01 for point in profile.points)
    module = profile.header.module
    assert (module.part_number, module.spd_hex) == ("8JTF12864AZ-1G4G1", DDR3L.hex())


def test_a_module_that_the_gateware_was_not_built_for_is_refused(run, bench: Path) -> None:  # noqa: F811
    other = sealed(DDR3L, b5=0x19)
    stand_in = RealBoardStandIn(KINTEX, [Skew(read_taps=8)] * 8, bench, other)
    with EtherboneServer(stand_in) as server:
        name = f"etherbone:{server.host}:{server.port}"
        status, out, err = run("board", "info", "--board", name)
        assert status == 0, err
        assert "its SPD cannot be used: Micron 8JTF12864AZ-1G4G1 has rows 32768, not 16384" in out
        with pytest.raises(BoardError, match="rows 32768, not 16384"):
            open_board(name)
    assert stand_in.phy.dram.events == []
