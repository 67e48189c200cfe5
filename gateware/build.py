"""Builds a board's gateware: ``python -m gateware.build BOARD``.

For an ECP5 that is a bitstream, made with yosys, nextpnr and Trellis: those on PATH, or else YoWASP's from PyPI. For a
Xilinx FPGA it is Verilog, constraints and Tcl, which Vivado turns into a bitstream where it is installed; yosys
elaborates the design in any case, as a check. What comes out is in build/gateware/BOARD:

    BOARD.bit       the bitstream
    BOARD.v, ...    Verilog, constraints, scripts; build.log has what the tools said
    report.json     clocks (asked for and achieved, MHz) and resources (used and available)
    csr.json        where every register is, as LiteX writes it
    board.json      what the host must know besides: engine, DRAM initialisation, supply
    doc/            the registers' documentation
"""

import argparse
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from litex.soc.integration.export import get_csr_json

from gateware.boards import BOARDS
from gateware.boards.base import Board
from gateware.description import registers_document, stamped_description
from profiles.errors import BoardError, EdenError

OUTPUT = Path("build/gateware")
OPEN_TOOLS = ("yosys", "nextpnr-ecp5", "ecppack")
PLACEMENTS = 5  # attempts to route and meet timing, each with a seed of its own
ROUTING_PATIENCE = 60  # rounds of routing without progress; nextpnr itself would go on for ever
_LOOK_S = 5.0  # how often what a tool says is looked at
ECP5_CELLS = {"luts": "TRELLIS_COMB", "flip_flops": "TRELLIS_FF", "block_rams": "DP16KD"}


def build(board: Board, sys_clk_freq: float) -> dict[str, Any]:
    """Build into `OUTPUT`; returns what report.json holds.

    Raises:
        BoardError: a tool is missing, failed (see build.log) or cannot see the folder; or a clock is missed.
    """
    folder = (OUTPUT / board.name).resolve()
    if folder.is_relative_to(Path(tempfile.gettempdir()).resolve()) and not all(map(shutil.which, OPEN_TOOLS)):
        raise BoardError(f"YoWASP's tools see nothing of {tempfile.gettempdir()}; move this checkout to another folder")
    folder.mkdir(parents=True, exist_ok=True)
    soc = board.soc(sys_clk_freq)
    description = stamped_description(soc, board)
    toolchain = soc.platform.toolchain
    ecp5 = soc.platform.device.startswith("LFE5")
    if ecp5:
        # LiteX has no other way to say these. Nobody here relies on what a block RAM gives for an address that is being
        # written: FIFOs do not read what is not yet there, counters hand on what they have just written, and what the
        # host writes is read later. To define it would cost logic behind every block RAM, which is slow as it is.
        toolchain._synth_opts += "-no-rw-check "
        # nextpnr's own figures, and of its placers and routers those that are not lost in a full design
        toolchain._pnr_opts += "--report nextpnr.json --placer static --router router2 "
    soc.build(build_dir=str(folder), build_name=board.name, run=False, **({"abc9": True} if ecp5 else {}))
    (folder / "csr.json").write_text(get_csr_json(soc.csr.regions, soc.constants, soc.bus.regions))
    (folder / "board.json").write_text(description)
    (folder / "doc").mkdir(exist_ok=True)
    (folder / "doc" / "registers.md").write_text(registers_document(soc))

    tools = Tools(folder)
    if ecp5:
        figures = make_bitstream(tools, folder, board.name)
    else:
        figures = xilinx_figures(tools.elaborate(board.name, soc.platform.device))
        if shutil.which("vivado"):
            tools.run("bash", f"build_{board.name}.sh")
    report = {"board": board.name, "sys_clk_mhz": sys_clk_freq / 1e6, **figures}
    _write_json(folder / "report.json", report)
    check_clocks(report)
    return report


def make_bitstream(tools: "Tools", folder: Path, name: str) -> dict[str, Any]:
    """Run the script that LiteX left in ``folder``; place and route again with other seeds until all clocks are met.

    Returns:
        The figures of the last attempt that could be routed; `check_clocks` tells whether it succeeded.

    Raises:
        BoardError: a tool failed, or no attempt could be routed.
    """
    script = (folder / f"build_{name}.sh").read_text()
    later = "\n".join(line for line in script.splitlines() if not line.startswith("yosys "))
    figures: dict[str, Any] = {}
    for seed in range(1, PLACEMENTS + 1):
        attempt = folder / f"place_{seed}.sh"
        attempt.write_text((script if seed == 1 else later).replace("--seed 1", f"--seed {seed}"))
        if not tools.run("bash", attempt.name, until=_hopeless):
            continue
        figures = ecp5_figures(json.loads((folder / "nextpnr.json").read_text()))
        if not missed_clocks(figures):
            break
    if not figures:
        raise BoardError(
            f"{name}: none of {PLACEMENTS} placements could be routed; give the engine smaller memories (sizes in "
            f"gateware/boards/{name}.py)"
        )
    return figures


def _hopeless(said: str) -> bool:
    """Whether nextpnr found no way for a clock, or has had its fewest overused wires `ROUTING_PATIENCE` rounds ago."""
    if "ERROR: Failed to route arc" in said:
        return True
    overused = [int(wires) for wires in re.findall(r"iter=\d+ wires=\d+ overused=(\d+)", said)]
    return bool(overused) and len(overused) - overused.index(min(overused)) > ROUTING_PATIENCE


class Tools:
    """The FPGA tools, run in a build folder with what they say in its build.log.

    Raises:
        BoardError: an open tool is neither on PATH nor installed from PyPI.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._log = folder, folder / "build.log"
        self._log.unlink(missing_ok=True)
        wrappers = folder.parent / "bin"
        wrappers.mkdir(exist_ok=True)
        for tool in OPEN_TOOLS:
            if not shutil.which(tool):
                _wrap_yowasp(tool, wrappers / tool)
        self._environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{wrappers}"}

    def run(self, *command: str, until: Callable[[str], bool] = lambda said: False) -> bool:
        """Run one tool; False if it was stopped because what it had ``said`` so far met ``until``.

        Raises:
            BoardError: it failed.
        """
        before = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("a") as log:
            process = subprocess.Popen(
                command, cwd=self._folder, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            running = True
            while running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_S)
                running = process.poll() is None
                if until(self._log.read_text(errors="replace")[before:]):
                    return False
        finally:
            if process.poll() is None:  # given up, or Ctrl-C: the script and the tool that it runs
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        if process.returncode:
            raise BoardError(f"'{' '.join(command)}' ended with status {process.returncode}; see {self._log}")
        return True

    def elaborate(self, name: str, device: str) -> dict[str, Any]:
        """Let yosys synthesise ``name``.v for a Xilinx device; returns its statistics."""
        family = "xc7" if device.startswith("xc7") else "xcup"
        script = f"synth_xilinx -family {family} -top {name}; tee -q -o yosys.json stat -json"
        self.run("yosys", "-q", "-p", script, f"{name}.v")
        statistics: dict[str, Any] = json.loads((self._folder / "yosys.json").read_text())
        return statistics


def _wrap_yowasp(tool: str, wrapper: Path) -> None:
    """LiteX calls the tools by name; YoWASP's programs beside this Python have other names."""
    program = Path(sys.executable).parent / f"yowasp-{tool}"
    if not program.exists():
        raise BoardError(f"{tool} is not on PATH and {program} is missing; pip install -r requirements-gateware.txt")
    wrapper.write_text(f'#!/bin/sh\nexec "{program}" "$@"\n')
    wrapper.chmod(0o755)


def ecp5_figures(nextpnr: dict[str, Any]) -> dict[str, Any]:
    """Clocks and resources out of nextpnr's report."""
    clocks = {
        name.removeprefix("$glbnet$"): {"asked_mhz": clock["constraint"], "achieved_mhz": round(clock["achieved"], 2)}
        for name, clock in nextpnr["fmax"].items()
    }
    cells = {name: nextpnr["utilization"][cell] for name, cell in ECP5_CELLS.items()}
    resources = {name: {"used": cell["used"], "available": cell["available"]} for name, cell in cells.items()}
    return {"clocks": clocks, "resources": resources}


def xilinx_figures(yosys: dict[str, Any]) -> dict[str, Any]:
    """Resources out of yosys' statistics, block RAM in units of 36 Kb; Vivado may need more or less."""
    cells = yosys["design"]["num_cells_by_type"]

    def count(prefix: str) -> int:
        return sum(number for cell, number in cells.items() if cell.startswith(prefix))

    block_rams = count("RAMB36") + count("RAMB18") / 2
    used = {"luts": count("LUT"), "flip_flops": count("FD"), "block_rams": block_rams}
    return {"clocks": {}, "resources": {name: {"used": number} for name, number in used.items()}}


def missed_clocks(figures: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The clocks that are slower than they were asked to be, by name."""
    return {name: clock for name, clock in figures["clocks"].items() if clock["achieved_mhz"] < clock["asked_mhz"]}


def check_clocks(report: dict[str, Any]) -> None:
    """Every clock must be as fast as it was asked to be.

    Raises:
        BoardError: one is not.
    """
    for name, clock in missed_clocks(report).items():
        raise BoardError(
            f"{report['board']}: {name} reaches {clock['achieved_mhz']:.1f} MHz of {clock['asked_mhz']:.1f} MHz; "
            f"build with a lower SYS_CLK_MHZ than {report['sys_clk_mhz']:g}"
        )


def load(board: Board) -> None:
    """Load the bitstream with openFPGALoader.

    Raises:
        BoardError: there is no bitstream, openFPGALoader does not know the board, or it failed.
    """
    bitstream = OUTPUT / board.name / f"{board.name}.bit"
    if not bitstream.exists():
        raise BoardError(f"{bitstream} is missing; make gateware BOARD={board.name}")
    if not board.loader:
        raise BoardError(f"openFPGALoader does not know {board.name}; load {bitstream} with Vivado")
    program = shutil.which("openFPGALoader") or str(Path(sys.executable).parent / "openfpgaloader-cli")
    if subprocess.run([program, *board.loader, str(bitstream)], check=False).returncode:
        raise BoardError(f"openFPGALoader could not load {bitstream}; see above (it needs libftdi1 and USB access)")


def boards_document() -> str:
    """The boards as a Markdown table; tRCD at each board's own clock."""
    lines = [
        "| board | what it is | system clock | tCK | tRCD it can make | host link | DRAM supply |",
        "|" + "---|" * 7,
    ]
    for board in BOARDS.values():
        trcd = ", ".join(f"{trcd_ps / 1000:g}" for trcd_ps in board.trcd_ps(board.sys_clk_freq))
        lines.append(
            f"| {board.name} | {board.title} | {board.sys_clk_freq / 1e6:g} MHz "
            f"| {board.tck_ps(board.sys_clk_freq) / 1000:g} ns | {trcd} ns "
            f"| {board.bridges} | {board.rail.nominal_mv} mV, {board.rail.control} |"
        )
    return "\n".join(lines)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def summary(report: dict[str, Any]) -> str:
    """A report in one line."""
    clocks = [f"{n} {c['achieved_mhz']:g} of {c['asked_mhz']:g} MHz" for n, c in report["clocks"].items()]
    resources = [f"{n} {' of '.join(map(str, r.values()))}" for n, r in report["resources"].items()]
    return f"{report['board']}: " + "; ".join(clocks + resources)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gateware.build", description="Build a board's gateware.")
    parser.add_argument("board", nargs="?", choices=BOARDS)
    parser.add_argument("--list", action="store_true", help="the boards as a Markdown table")
    parser.add_argument("--load", action="store_true", help="load the bitstream that was built before")
    parser.add_argument("--sys-clk-mhz", type=float, help="system clock; each has tRCD points of its own")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if arguments.list:
        print(boards_document())
        return
    if not arguments.board:
        parser.error("name a board, or --list")
    board = BOARDS[arguments.board]
    try:
        if arguments.load:
            load(board)
        else:
            print(summary(build(board, (arguments.sys_clk_mhz or board.sys_clk_freq / 1e6) * 1e6)))
    except EdenError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
