"""Benchmark: how much of what JEDEC allows the gateware reaches, in clocks of the simulated KC705, so exact.

What a burst costs is counted in clocks that pass on the board, not in program time, which stands still while the engine
waits: two runs that differ in nothing but the number of bursts, and their difference. Refresh is withheld. Errors are
cells that an earlier write at too low a voltage left wrong; the log has room for them all.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from gateware import isa
from gateware.boards import BOARDS
from gateware.errorlog import BLOCK_WORDS
from gateware.isa import Instruction
from gateware.registers import CSR_BASE, START, State
from gateware.sim.build import build as build_library
from host import programs
from host.board import Board
from host.boards import software_board
from host.chip_presets import PRESETS, REFERENCE_TEMPERATURE_C, Preset
from host.programs import EngineBuild, Traversal
from host.simulation import SimulatedBoard
from host.timings import DDR3_1600K, DDR4_1600K, Timings
from profiles.pattern import Pattern
from tests.host.engine_bench import EngineBench

VENDOR, SEED = "B", 1
FLAWLESS = replace(PRESETS[VENDOR], bound_ps=0)  # reads right however short tRCD is
BANKS, BURSTS, ROWS = tuple(range(8)), 128, 32
PATTERN, COMPLEMENT = Pattern.parse("0x33"), Pattern.parse("0xCC")
DAMAGING_VDD_UV, DAMAGING_TRCD = 1_028_350, 5  # a write there leaves about 1e-3 of the cells of `VENDOR` wrong
BER_LOW, BER_HIGH = 5e-4, 2e-3
RESOLUTION = 0.003  # clocks a burst that the difference of two runs resolves
CLOSED, CLOSED_WHOLE_CLOCKS, OPEN = 1.05, 2 * 1.05, 0.97
CLOCKS_PER_S, ACCESSES_PER_S, INSTRUCTIONS, LOG_BYTES = 400e3, 100e3, 64, 4.5


def figures() -> Iterator[dict[str, Any]]:
    """Builds the simulated KC705 first if it is not built."""
    logging.disable(logging.WARNING)  # LiteX tells at length what it puts together
    build_library("kc705")
    yield from _closed_rows()
    yield from _open_rows()
    yield from _self_test()
    yield from _program_sizes()
    yield from _whole_modules()
    yield from _simulator()


def _figure(
    name: str, value: float, unit: str, bound: float | None, goal: float | None, at_most: bool = False
) -> dict[str, Any]:
    ratio = None if bound is None else value / bound
    reached = value if ratio is None else ratio
    met = None if goal is None else (reached <= goal if at_most else reached >= goal)
    head = {"bench": "gateware", "name": name, "value": value, "unit": unit, "bound": bound, "ratio": ratio}
    return {**head, "goal": goal, "met": met}


def _board(preset: Preset) -> Board:
    return _host_of(SimulatedBoard("kc705", preset, SEED, DDR3_1600K))


def _host_of(bus: SimulatedBoard) -> Board:
    return software_board("sim", bus, bus.build.geometry, VENDOR, SEED)


def _run(program: list[Instruction], rows: int, linear: bool, damaged: bool) -> tuple[int, Board]:
    """Clocks that ``program`` takes on a fresh board that holds `PATTERN`, all but some cells if ``damaged``."""
    board = _board(PRESETS[VENDOR] if damaged else FLAWLESS)
    walk = Traversal(BANKS, 0, rows, 0, BURSTS, whole_rows=linear)
    board.run(programs.fill(board.build, walk, COMPLEMENT, None))
    if damaged:
        board.bus.set_environment(DAMAGING_VDD_UV, REFERENCE_TEMPERATURE_C)
    board.run(programs.fill(board.build, walk, PATTERN, DAMAGING_TRCD if damaged else None))
    board.bus.set_environment(1_350_000, REFERENCE_TEMPERATURE_C)
    bench = EngineBench(board.bus, board.bus.build)
    bench.load(program)
    begun = board.bus.clocks
    bench.put("control", START)
    while (state := bench.get("state")) == State.RUNNING:
        pass
    if state != State.DONE:
        raise AssertionError(f"the program ended in {State(state).name}; its log must fit")
    return board.bus.clocks - begun, _host_of(board.bus)  # another host, which did not start the last program


def _clocks_a_burst(trcd: int | None, write: bool = False, damaged: bool = False) -> tuple[float, Board]:
    """System clocks a burst at ``trcd`` DRAM clocks (None: open rows); and a board that has just done it."""
    clocks = []
    for rows in (ROWS, 2 * ROWS):
        walk = Traversal(BANKS, 0, rows, 0, BURSTS, whole_rows=trcd is None)
        build = _board(FLAWLESS).build
        make = programs.fill if write else programs.test
        taken, board = _run(make(build, walk, PATTERN, trcd, refresh=False), rows, trcd is None, damaged)
        clocks.append(taken)
    if damaged:
        result = board.result()
        rate = int(result.errors.sum()) / (result.reads * board.geometry.burst_bits)
        if not BER_LOW <= rate <= BER_HIGH:
            raise AssertionError(f"the damaged cells give a BER of {rate:.2g}; choose another point of the preset")
    return (clocks[1] - clocks[0]) / (ROWS * len(BANKS) * BURSTS), board


def _closed_rows() -> Iterator[dict[str, Any]]:
    """ACT–RD–PRE for every burst, over all banks."""
    board = _board(FLAWLESS)
    t, n = board.timings, board.build.nphases
    burst = board.geometry.burst_length // 2
    bound = max(t.trrd, -(-t.tfaw // 4), -(-(t.tras + t.trp) // len(BANKS)), burst)
    clocks = -(-bound // n)  # RD stays on its phase
    for trcd in range(1, 9):
        value, _ = _clocks_a_burst(trcd)
        goal = CLOSED if trcd % n else CLOSED_WHOLE_CLOCKS
        yield _figure(f"act_rd_pre_trcd_{trcd}", value, "clocks/burst", clocks, goal, at_most=True)
    clean, _ = _clocks_a_burst(7)
    value, board = _clocks_a_burst(7, damaged=True)
    yield _figure("act_rd_pre_ber_1e-3", value, "clocks/burst", clocks, CLOSED, at_most=True)
    yield _figure("act_rd_pre_clocks_lost_to_errors", value - clean, "clocks/burst", None, RESOLUTION, at_most=True)
    bits = int(board.result().errors.sum())
    size = board.register("log_produced") * BLOCK_WORDS * 4 / bits
    yield _figure("log_bytes_per_failing_bit_ber_1e-3", size, "bytes", None, LOG_BYTES, at_most=True)


def _open_rows() -> Iterator[dict[str, Any]]:
    """Open rows at bus speed: the share of the data bus that is used."""
    board = _board(FLAWLESS)
    bound = board.geometry.burst_length // 2 / board.build.nphases
    for name, write, damaged in (
        ("linear_read", False, False),
        ("linear_read_ber_1e-3", False, True),
        ("linear_fill", True, False),
    ):
        value, _ = _clocks_a_burst(None, write, damaged)
        yield _figure(name, 1 / value, "bursts/clock", 1 / bound, OPEN)


def _self_test() -> Iterator[dict[str, Any]]:
    """LiteDRAM's own self-test in the same system on chip, over as many bursts; the engine must beat it."""
    build_library("kc705_bist")
    bus = SimulatedBoard("kc705_bist", FLAWLESS, SEED, DDR3_1600K)
    bus.set_environment(1_350_000, REFERENCE_TEMPERATURE_C)
    engine = _board(FLAWLESS)
    bound = engine.geometry.burst_length // 2 / engine.build.nphases
    ours = {"bist_generator": 1 / _clocks_a_burst(None, write=True)[0], "bist_checker": 1 / _clocks_a_burst(None)[0]}
    for core, engine_rate in ours.items():
        ticks = [_self_test_ticks(bus, core, bursts) for bursts in (ROWS * BURSTS, 9 * ROWS * BURSTS)]
        rate = 8 * ROWS * BURSTS / (ticks[1] - ticks[0])
        yield _figure(f"litedram_{core}", rate, "bursts/clock", 1 / bound, None)
        name = {"bist_generator": "linear_fill", "bist_checker": "linear_read"}[core]
        yield _figure(f"{name}_over_litedram", engine_rate, "bursts/clock", rate, 1.0)


def _self_test_ticks(bus: SimulatedBoard, core: str, bursts: int) -> int:
    """Clocks that LiteDRAM's generator or checker takes for ``bursts`` bursts from the start of the module.

    Its counter runs while it works, its refreshes included, of which there are few: one in 975 clocks.
    """
    length = bursts * bus.build.geometry.burst_bits // 8
    for register, value in (("reset", 1), ("base", 0), ("end", 2 * length), ("length", length), ("start", 1)):
        bus.write(bus.registers[f"{core}_{register}"], np.array([value], np.uint32))
    while not bus.read(bus.registers[f"{core}_done"], 1)[0]:
        bus.run(1000)
    if core == "bist_checker" and bus.read(bus.registers[f"{core}_errors"], 1)[0]:
        raise AssertionError("LiteDRAM's self-test found errors; its speed says nothing then")
    return int(bus.read(bus.registers[f"{core}_ticks"], 1)[0])


def _whole_modules() -> Iterator[dict[str, Any]]:
    """What one pass over every burst of each real board's module takes at its clock, refreshes included."""
    for board in BOARDS.values():
        parameters = board.soc(board.sys_clk_freq).parameters
        jedec = {"DDR3": DDR3_1600K, "DDR4": DDR4_1600K}[board.module.memtype]
        timings = Timings.of(jedec, parameters.tck_ps, parameters.cas_write_latency)
        build = EngineBuild(
            *(parameters.nphases, parameters.read_phase, parameters.write_phase, parameters.log_blocks),
            *(parameters.geometry, timings),
        )
        g = parameters.geometry
        for name, trcd in (("act_rd_pre", 1), ("linear", None)):
            walk = Traversal(tuple(range(g.banks)), 0, g.rows, 0, g.bursts_per_row, whole_rows=trcd is None)
            clocks = isa.clocks(programs.test(build, walk, PATTERN, trcd))
            seconds = clocks * parameters.nphases * parameters.tck_ps * 1e-12 / (1 - timings.trfc / timings.trefi)
            yield _figure(f"whole_module_{board.name}_{name}", seconds, "s", None, None)


def _program_sizes() -> Iterator[dict[str, Any]]:
    """Instructions of a program for the whole module."""
    board = _board(FLAWLESS)
    g = board.geometry
    for name, trcd in (*((f"trcd_{clocks}", clocks) for clocks in range(1, 9)), ("linear", None)):
        walk = Traversal(BANKS, 0, g.rows, 0, g.bursts_per_row, whole_rows=trcd is None)
        size = len(programs.test(board.build, walk, PATTERN, trcd))
        yield _figure(f"program_{name}", size, "instructions", None, INSTRUCTIONS, at_most=True)


def _simulator() -> Iterator[dict[str, Any]]:
    """Speed of the simulation itself, by CPU time of this process."""
    board = _board(PRESETS[VENDOR])
    walk = Traversal(BANKS, 0, ROWS, 0, BURSTS)
    program = programs.test(board.build, walk, PATTERN, 5)
    board.run(programs.fill(board.build, walk, PATTERN, 5))
    for name, work in (
        ("idle", lambda: board.bus.run(200_000)),
        ("scanning", lambda: list(board.failing_bits(program))),
    ):
        clocks, begun = board.bus.clocks, time.process_time()
        work()
        speed = (board.bus.clocks - clocks) / (time.process_time() - begun)
        yield _figure(f"simulator_{name}", speed, "clocks/CPU-s", None, CLOCKS_PER_S)
    accesses, begun = 50_000, time.process_time()
    for _ in range(accesses // 50):
        board.bus.read(CSR_BASE, 50)
    yield _figure("simulator_csr", accesses / (time.process_time() - begun), "accesses/CPU-s", None, ACCESSES_PER_S)
