"""The chip model keeps its word: who fails, where, when it repeats, and what the cells hold afterwards."""

import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from math import sqrt

import numpy as np
import pytest

from gateware.isa import (
    COUNT_BITLINES,
    COUNT_DQ,
    COUNT_LOG,
    COUNT_ROWS,
    Command,
    Digit,
    Instruction,
    Opcode,
    Pointer,
    Slot,
    issue,
)
from host import chip as dram
from host import mock, programs
from host.board import Board
from host.chip_presets import PRESETS, Knot, Preset, build_chip, set_conditions, weak_rate, with_more_memory
from host.programs import Traversal
from profiles.geometry import CellArray, Geometry
from profiles.pattern import Pattern
from tests.host.rig import CELLS, GEOMETRY, REGION, board_of, fill, read, write_and_read

# Every weak cell always flips, rows, banks, lanes and bitlines are alike, nothing persists: the process alone.
PLAIN = Preset(
    vendor="plain",
    bound_ps=9000,
    knots=(Knot(8000, "1e-6", "1", "1"), Knot(6000, "1e-3", "1", "1"), Knot(2000, "0.2", "1", "1")),
    slowdown=((1350, 1000), (900, 2000)),
    temperature_per_c="0",
    coupling="0",
    weak_row_share=0.0,
    weak_row_factor=1.0,
    weak_bitline_share=0.0,
    bank_sigma=0.0,
    row_sigma=0.0,
    lane_sigma=0.0,
    persistence=0.0,
)


@pytest.fixture
def plain() -> Board:
    return board_of(PLAIN)


def test_harsher_conditions_only_add_cells(plain: Board) -> None:
    region = replace(REGION, row_count=32)
    fill(plain, "0x00", region=region)
    before = np.empty(0, np.int64)
    for trcd, vdd in ((4, 1350), (4, 1250), (3, 1350), (3, 1200), (2, 1350), (1, 1350)):
        plain.rail.set(vdd)
        cells = read(plain, "0x00", trcd, region)
        assert cells.size > before.size
        assert np.isin(before, cells).all()
        before = cells


@pytest.mark.parametrize("trcd", [3, 2, 1])
def test_ber_is_that_of_the_rate(plain: Board, trcd: int) -> None:
    rate = float(weak_rate(PLAIN, Decimal(trcd * 2000), 20.0))
    expected = CELLS * (1 - np.exp(-rate))
    found = write_and_read(plain, "0x00", trcd).size
    assert abs(found - expected) < 4.5 * sqrt(expected) + 1e-4 * expected  # Poisson, and the tables' rounding


def test_the_tail_is_bounded(plain: Board) -> None:
    assert write_and_read(plain, "0x00", 5).size == 0


def test_places_are_uniform_when_nothing_is_planted(plain: Board) -> None:
    cells = write_and_read(plain, "0x00", 2)
    g = GEOMETRY
    for places, count in (
        (g.bank(cells), g.banks),
        (g.row(cells), g.rows),
        (g.column(cells), g.columns),
        (g.dq(cells), g.data_width),
        (cells % g.burst_bits, g.burst_bits),
    ):
        histogram = np.bincount(places, minlength=count)
        mean = cells.size / count
        chi_square = float(((histogram - mean) ** 2 / mean).sum())
        assert abs(chi_square - (count - 1)) < 5 * sqrt(2 * (count - 1))


def test_lanes_follow_their_factors() -> None:
    board = board_of(replace(PLAIN, lane_sigma=0.5))
    cells = write_and_read(board, "0x00", 2)
    chip = board.bus._chip  # type: ignore[attr-defined]
    share = np.bincount(chip.lane, minlength=64) / chip.lane.size
    histogram = np.bincount(GEOMETRY.dq(cells), minlength=64)
    assert share.max() / share.min() > 3
    deviation = (histogram - share * cells.size) / np.sqrt(share * cells.size)
    assert np.abs(deviation).max() < 4.5


def test_weak_rows_are_overdispersed_and_weak_bitlines_are_shared_by_a_subarray() -> None:
    uniform = write_and_read(board_of(PLAIN), "0x00", 2)
    rows = write_and_read(board_of(replace(PLAIN, weak_row_share=0.2, weak_row_factor=3.0)), "0x00", 2)
    bitlines = write_and_read(board_of(replace(PLAIN, weak_bitline_share=0.3)), "0x00", 2)

    def dispersion(cells: CellArray, number: CellArray) -> float:
        counts = np.bincount(number, minlength=1)
        return float(counts.var() / counts.mean())

    assert dispersion(uniform, GEOMETRY.row(uniform) + 128 * GEOMETRY.bank(uniform)) < 1.3
    assert dispersion(rows, GEOMETRY.row(rows) + 128 * GEOMETRY.bank(rows)) > 20
    counts = np.bincount(GEOMETRY.bitline(bitlines), minlength=GEOMETRY.banks * GEOMETRY.bitlines)
    weak = counts > counts.mean() + 6 * sqrt(counts.mean())
    share = counts[weak].sum() / bitlines.size
    assert 0.005 < weak.mean() < 1.5 / 64
    assert 0.2 < share < 0.36
    assert dispersion(uniform, GEOMETRY.bitline(uniform)) < 1.1


def test_flips_depend_on_data_and_neighbours() -> None:
    knots = (Knot(8000, "1e-6", "0.8", "0.2"), Knot(2000, "0.2", "0.8", "0.2"))
    board = board_of(replace(PLAIN, knots=knots))
    zeros, ones = write_and_read(board, "0x00", 2).size, write_and_read(board, "0xFF", 2).size
    assert ones / zeros == pytest.approx(0.25, rel=0.05)
    coupled = board_of(
        replace(PLAIN, knots=(Knot(8000, "1e-6", "0.5", "0.5"), Knot(2000, "0.2", "0.5", "0.5")), coupling="0.6")
    )
    solid, alternating, pairs = (write_and_read(coupled, pattern, 2).size for pattern in ("0x00", "0xAA", "0x33"))
    # of eight lanes the outer two have one neighbour: 0xAA sees 14/16 of the coupling, 0x33 6/16
    assert alternating / solid == pytest.approx(1 + 0.6 * 14 / 16, rel=0.04)
    assert pairs / solid == pytest.approx(1 + 0.6 * 6 / 16, rel=0.04)


def test_only_the_first_read_after_an_activation_sees_a_short_trcd(plain: Board) -> None:
    fill(plain, "0x00")
    row, safe = Pointer(row=Digit(0, 1, 128)), plain.timings.trcd
    columns = Pointer(column=Digit(0, 8, 128), row=Digit(0, 1, 128))
    first = Slot(Command.RD, plain.build.read_phase, 1, step=True, compare=True)
    program = [
        programs.pattern_setting(Pattern.parse("0x00")),
        *row.settings(0),
        *columns.settings(1),
        issue(
            Slot(Command.ACT, first.phase + 2, 0, step=True), loop_begin=128
        ),  # 2 tCK before the RD, 6 before the next
        issue(first),
        issue(first, loop_begin=127, loop_end=True),
        issue(wait=10),
        issue(Slot(Command.PREA, 0, 0)),
        issue(wait=safe, loop_end=True),
        Instruction(Opcode.END),
    ]
    reads = np.concatenate([reads for reads, _ in plain.failing_bits(program)])
    assert reads.size > 100
    assert (reads % 128 == 0).all()


def test_epochs_repeat_draws_and_differ() -> None:
    board = board_of(replace(PRESETS["A"], persistence=0.0))
    results = []
    for epoch in (1, 2, 1):
        board.environment.begin_epoch(epoch)
        fill(board, "0x33")
        first, second = read(board, "0x33", 3), read(board, "0x33", 3)
        results.append((first, second))
        assert not np.array_equal(first, second)
    np.testing.assert_array_equal(results[0][0], results[2][0])
    np.testing.assert_array_equal(results[0][1], results[2][1])
    assert not np.array_equal(results[0][0], results[1][0])
    assert np.intersect1d(results[0][0], results[1][0]).size > 0.3 * results[0][0].size  # the weak cells are the same


def test_draws_do_not_depend_on_how_the_host_slices_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    region = Traversal((0, 2), 3, 4, 0, 128)
    want = write_and_read(board_of(PRESETS["B"]), "checker", 3, region)
    for size in (1, 17):
        monkeypatch.setattr(mock, "_SLICE", size)
        np.testing.assert_array_equal(write_and_read(board_of(PRESETS["B"]), "checker", 3, region), want)
    assert want.size > 1000


def test_another_seed_is_another_module() -> None:
    a, b = (write_and_read(board_of(PLAIN, seed), "0x00", 2) for seed in (1, 2))
    assert np.intersect1d(a, b).size < 3 * a.size * b.size / CELLS + 20


def test_failures_persist_until_rewritten() -> None:
    board = board_of(replace(PLAIN, persistence=0.25))
    fill(board, "0x00")
    failed = read(board, "0x00", 2)
    stuck = read(board, "0x00", 7)  # a clean read
    assert np.isin(stuck, failed).all()
    assert stuck.size / failed.size == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(read(board, "0x00", 7), stuck)
    fill(board, "0x00")
    assert read(board, "0x00", 7).size == 0


def test_failed_writes_keep_the_old_bits() -> None:
    board = board_of(PLAIN)
    fill(board, "0xFF")
    fill(board, "0x0F", trcd=2)
    kept = read(board, "0x0F", 7)
    assert kept.size > 1000
    assert (GEOMETRY.dq(kept) % 8 >= 4).all()  # where 0xFF and 0x0F agree, nothing shows
    fill(board, "0x0F", trcd=2)
    again = read(board, "0x0F", 7)
    assert np.isin(again, kept).all()
    assert again.size / kept.size == pytest.approx(0.5, abs=0.05)  # a weak cell's WRITE fails half of the time


def test_tensors_come_back_as_written_at_nominal_and_flipped_below() -> None:
    board = board_of(PLAIN)
    rng = np.random.default_rng(3)
    words = rng.integers(0, 1 << 32, (700, 16)).astype(np.uint32)
    first = int(GEOMETRY.cell(1, 5, 8 * 100, 0))
    board.write_bursts([(first, len(words))], words, board.timings.trcd)
    np.testing.assert_array_equal(board.read_bursts([(first, 700)], board.timings.trcd), words)
    flips = int(np.bitwise_count(board.read_bursts([(first, 700)], 2) ^ words).sum())
    rate = float(weak_rate(PLAIN, Decimal(4000), 20.0))
    assert flips == pytest.approx(700 * 512 * (1 - np.exp(-rate)), rel=0.1)


def test_power_up_content_is_noise_by_seed_and_stays() -> None:
    board = board_of(PLAIN, seed=77)
    first = board.read_bursts([(0, 512)], 7)
    np.testing.assert_array_equal(board.read_bursts([(0, 512)], 7), first)
    assert np.bitwise_count(first).mean() == pytest.approx(16, abs=0.3)
    assert not np.array_equal(board_of(PLAIN, seed=78).read_bursts([(0, 512)], 7), first)
    assert read(board, "random:77", 7).size == 0  # documented: pattern RANDOM with the chip's seed


def test_rows_filled_with_one_pattern_hold_no_memory_of_their_own() -> None:
    board = board_of(PLAIN)
    for pattern in ("0x00", "random:5", "walking", "0x00"):
        fill(board, pattern)
        chip = board.bus._chip  # type: ignore[attr-defined]
        assert (chip.row_tag >= 0).all()
        assert chip.parameters[dram.FREE_BLOCKS] == chip.free_blocks.size
        assert chip.parameters[dram.FREE_SLOTS] == chip.free_slots.size


def test_pools_grow_and_give_back() -> None:
    board = board_of(PLAIN)
    rng = np.random.default_rng(0)
    count = 2000  # bursts; the pools begin with 256
    order = rng.permutation(4 * 128 * 128)[:count]
    words = rng.integers(0, 1 << 32, (count, 16)).astype(np.uint32)
    for burst, data in zip(order.tolist(), words, strict=True):
        board.write_bursts([(burst * 512, 1)], data[None], 7)
    chip = board.bus._chip  # type: ignore[attr-defined]
    assert chip.slots.shape[0] == 2048
    assert chip.free_slots.size - chip.parameters[dram.FREE_SLOTS] == count
    sample = rng.permutation(count)[:200]
    for k in sample.tolist():
        np.testing.assert_array_equal(board.read_bursts([(int(order[k]) * 512, 1)], 7)[0], words[k])
    fill(board, "0x00")
    chip = board.bus._chip  # type: ignore[attr-defined]
    assert sorted(chip.free_slots.tolist()) == list(range(chip.slots.shape[0]))
    assert sorted(chip.free_blocks.tolist()) == list(range(chip.burst_tag.shape[0]))


def test_with_more_memory_doubles_only_what_is_short() -> None:
    chip = build_chip(GEOMETRY, PLAIN, 1)
    chip.parameters[dram.FREE_SLOTS] = 0
    grown = with_more_memory(chip)
    assert grown.slots.shape[0] == 2 * chip.slots.shape[0]
    assert grown.burst_tag is chip.burst_tag
    assert grown.free_slots[:256].tolist() == list(range(256, 512))


def test_counters_describe_what_the_log_lists() -> None:
    board = board_of(PRESETS["A"])
    region = Traversal((0, 1, 2, 3), 0, 32, 0, 128)
    fill(board, "0x33")
    program = programs.test(
        board.build, region, Pattern.parse("0x33"), 2, counters=COUNT_LOG | COUNT_ROWS | COUNT_BITLINES | COUNT_DQ
    )
    cells = np.concatenate(list(board.failing_cells(program, region)))
    g = GEOMETRY

    def counters(name: str, places: int) -> np.ndarray:
        return board.memory(name, 0, 2 * places).reshape(places, 2).sum(axis=1)

    np.testing.assert_array_equal(counters("row_errors", g.rows), np.bincount(g.row(cells), minlength=g.rows))
    np.testing.assert_array_equal(
        counters("bitline_errors", g.row_bits), np.bincount(cells % g.row_bits, minlength=g.row_bits)
    )
    np.testing.assert_array_equal(counters("dq_errors", 64), np.bincount(g.dq(cells), minlength=64))
    np.testing.assert_array_equal(board.result().errors.sum(axis=1), np.bincount(g.bank(cells), minlength=4))


def test_temperature_scales_the_rate() -> None:
    preset = replace(PLAIN, temperature_per_c="0.01")
    board = board_of(preset)
    fill(board, "0x00")
    cold = read(board, "0x00", 2)
    board.bus.set_environment(1_350_000, 50.0)  # type: ignore[attr-defined]
    warm = read(board, "0x00", 2)
    assert np.isin(cold, warm).all()
    assert warm.size / cold.size == pytest.approx(1.3, rel=0.03)


def test_a_supply_below_the_model_is_refused() -> None:
    board = board_of(PLAIN)
    board.bus.set_environment(850_000, 20.0)  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="down to 900 mV"):
        fill(board, "0x00")


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_any_bus_width_works(width: int) -> None:
    geometry = Geometry(banks=2, rows=64, columns=256, data_width=width, chip_width=8)
    region = Traversal((0, 1), 0, 64, 0, 32)
    board = board_of(PLAIN, geometry=geometry)
    cells = write_and_read(board, "random:3", 1, region)
    rate = float(weak_rate(PLAIN, Decimal(2000), 20.0))
    expected = geometry.cells * (1 - np.exp(-rate))
    assert abs(cells.size - expected) < 5 * sqrt(expected)


def test_saturated_conditions_stay_finite() -> None:
    board = board_of(replace(PLAIN, knots=(Knot(8000, "1e-6", "1", "1"), Knot(2000, "0.98", "1", "1"))))
    region = Traversal((0,), 0, 2, 0, 128)
    cells = write_and_read(board, "0x00", 1, region)
    assert cells.size == pytest.approx(0.98 * 2 * GEOMETRY.row_bits, rel=0.01)


def test_a_large_module_costs_little_memory() -> None:
    script = (
        "import resource; from host.boards import open_mock; from profiles.geometry import Geometry\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "b = open_mock('A', 1, Geometry(banks=16, rows=65536, columns=1024, data_width=64))\n"
        "b.read_bursts([(b.geometry.cells // 2, 100)], 7)\n"
        "print(b.geometry.cells // 8, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    size, grown = map(int, run.stdout.split())
    assert size == 8 << 30
    assert grown < 100


def test_condition_tables_are_monotonic() -> None:
    for vendor, preset in PRESETS.items():
        chip = build_chip(GEOMETRY, preset, 1)
        harshest = None
        for vdd in (1_350_000, 1_250_000, 1_150_000, 1_050_000, 950_000):
            set_conditions(chip, preset, vdd, 20.0, 1250)
            rates = chip.rate[dram.READ, 1:]
            assert (np.diff(rates) <= 0).all(), vendor
            if harshest is not None:
                assert (rates >= harshest).all(), vendor
            harshest = rates.copy()
            assert (chip.rate[dram.WRITE] <= chip.rate[dram.READ]).all()
