"""Tensors in a board's DRAM: right to the bit, at the right supply, and nothing left low or silently lost."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eden.mapping import DramMapping
from eden.memory import ReliableMemory
from eden.placement import Piece, Placement
from eden.precision import Precision
from host.board import Board
from host.boards import MockEnvironment, MockSupply, mock_build
from host.chip_presets import PRESETS, REFERENCE_TEMPERATURE_C
from host.mock import MockBoard
from host.rail import Measurement, Rail
from host.tensor_memory import BoardMemory
from host.timings import DDR3_1600K
from profiles.errors import CapacityError, EdenError, NetworkError, RailError
from profiles.geometry import Geometry
from profiles.schema import ModuleIdentity, OperatingPoint

GEOMETRY = Geometry(banks=4, rows=128, columns=512, data_width=64, subarray_rows=64)
BURST = GEOMETRY.burst_bits
NOMINAL = OperatingPoint(vdd_mv=1350, trcd_ps=14000)
SAFE = OperatingPoint(vdd_mv=1300, trcd_ps=12000)
HARSH = OperatingPoint(vdd_mv=1032, trcd_ps=10000)


class RecordingSupply:
    """A mock board's supply that remembers every set point."""

    def __init__(self, mock: MockBoard) -> None:
        self._supply = MockSupply(mock)
        self.set_points: list[int] = []

    def set_millivolts(self, millivolts: int) -> None:
        self.set_points.append(millivolts)
        self._supply.set_millivolts(millivolts)

    def measure(self) -> Measurement:
        return self._supply.measure()

    def set_point_mv(self) -> float:
        return self._supply.set_point_mv()


def open_rig() -> tuple[Board, RecordingSupply]:
    mock = MockBoard(mock_build(GEOMETRY), PRESETS["B"], 3)
    mock.set_environment(1_350_000, REFERENCE_TEMPERATURE_C)
    supply = RecordingSupply(mock)
    module = ModuleIdentity(
        manufacturer="mock",
        part_number="test",
        serial_number="3",
        dram_type="DDR3L",
        nominal_vdd_mv=1350,
        nominal_trcd_ps=14000,
    )
    rail = Rail(supply, "DDR3L", 1350)
    return Board(mock, rail, MockEnvironment(mock), module, DDR3_1600K, 8, "mock:test", 3), supply


@pytest.fixture
def rig() -> tuple[Board, RecordingSupply]:
    return open_rig()


def place(tensor: str, bits: int, point: OperatingPoint, first_cell: int = 0) -> Placement:
    cells = -(-bits // BURST) * BURST
    return Placement(tensor=tensor, partition="bank", first_cell=first_cell, cells=cells, point=point)


def noise(size: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, size, np.uint8))


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("elements", [1, 3, 63, 64, 65, 1023])
def test_every_precision_and_length_comes_back_to_the_bit(
    rig: tuple[Board, RecordingSupply], precision: Precision, elements: int
) -> None:
    board, _ = rig
    data = noise(precision.stored_bytes(elements), elements)
    memory = BoardMemory([board], {"x": place("x", 8 * data.numel(), SAFE, 5 * BURST)}, frozenset({"x"}))
    with board.rail.guarded():
        memory.store("x", data.clone())
        assert torch.equal(memory.load("x"), data)
        assert torch.equal(memory.load("x"), data)
    assert (memory.total_flips, memory.total_bits_read) == (0, 2 * 8 * data.numel())


def test_large_tensors_cross_rows_and_fill_the_buffers_more_than_once(rig: tuple[Board, RecordingSupply]) -> None:
    board, _ = rig
    size = board.buffer_bursts * BURST // 8 + 12345
    first = GEOMETRY.bank_bits + 3 * GEOMETRY.row_bits - 7 * BURST  # in mid-row
    data = noise(size)
    placements = {
        "below": place("below", BURST, NOMINAL, first - BURST),
        "large": place("large", 8 * size, NOMINAL, first),
        "above": place("above", BURST, NOMINAL, first + -(-8 * size // BURST) * BURST),
    }
    memory = BoardMemory([board], placements, frozenset())
    with board.rail.guarded():
        for name in ("below", "above"):
            memory.store(name, noise(BURST // 8, 2))
        memory.store("large", data)
        assert torch.equal(memory.load("large"), data)
        for name in ("below", "above"):
            assert torch.equal(memory.load(name), noise(BURST // 8, 2))


def test_flips_are_what_a_comparison_on_the_host_says(rig: tuple[Board, RecordingSupply]) -> None:
    board, _ = rig
    data = noise(100_001)
    memory = BoardMemory([board], {"x": place("x", 8 * data.numel(), HARSH)}, frozenset())
    wrong = 0
    with board.rail.guarded():
        memory.store("x", data)
        for _ in range(3):
            wrong += int(np.bitwise_count(memory.load("x").numpy() ^ data.numpy()).sum())
    assert wrong > 1000
    assert memory.flips == {"x": wrong}
    assert memory.bits_read == {"x": 3 * 8 * data.numel()}


def test_reads_leave_what_the_host_keeps_alone(rig: tuple[Board, RecordingSupply]) -> None:
    board, _ = rig
    data = noise(5000)
    memory = BoardMemory([board], {"x": place("x", 8 * data.numel(), HARSH)}, frozenset())
    with board.rail.guarded():
        memory.store("x", data)
        memory.load("x").fill_(0)
        again = memory.load("x")
    assert torch.equal(data, noise(5000))
    assert int(np.bitwise_count(again.numpy() ^ data.numpy()).sum()) < 8 * data.numel() * 0.05


def test_weights_are_written_at_nominal_and_ifms_at_the_point(rig: tuple[Board, RecordingSupply]) -> None:
    board, supply = rig
    commands: list[tuple[str, int, int]] = []
    write, read = board.write_bursts, board.read_bursts
    board.write_bursts = lambda *a: (commands.append(("write", supply.set_points[-1], a[2])), write(*a))[1]  # type: ignore[method-assign]
    board.read_bursts = lambda *a: (commands.append(("read", supply.set_points[-1], a[1])), read(*a))[1]  # type: ignore[method-assign]
    placements = {"w": place("w", 8 * 64, HARSH), "a.ifm": place("a.ifm", 8 * 64, HARSH, GEOMETRY.bank_bits)}
    memory = BoardMemory([board], placements, frozenset({"a.ifm"}))
    with board.rail.guarded():
        for name in ("w", "a.ifm", "w"):
            memory.store(name, noise(64))
            memory.load(name)
    nominal, point = board.timings.trcd, board.timings.trcd_clocks(HARSH.trcd_ps)
    assert commands == [
        ("write", 1350, nominal),
        ("read", 1032, point),
        ("write", 1032, point),
        ("read", 1032, point),
        ("write", 1350, nominal),
        ("read", 1032, point),
    ]
    steps = np.abs(np.diff(supply.set_points[:-1]))
    assert steps.max() <= 25
    assert supply.set_points[-1] == 1350


def test_weights_written_at_nominal_hold_what_was_written(rig: tuple[Board, RecordingSupply]) -> None:
    """Reads at the harsh point err, but the cells still hold the data (but for reads that write their error back)."""
    board, _ = rig
    data = noise(20_000)
    harsh, mild = place("x", 8 * data.numel(), HARSH), place("x", 8 * data.numel(), NOMINAL)
    with board.rail.guarded():
        BoardMemory([board], {"x": mild}, frozenset()).store("x", data)
        reader = BoardMemory([board], {"x": mild}, frozenset())
        reader._stored["x"] = data
        assert torch.equal(reader.load("x"), data)
        writer = BoardMemory([board], {"x": harsh}, frozenset({"x"}))
        writer.store("x", ~data)
    with board.rail.guarded():
        reader = BoardMemory([board], {"x": mild}, frozenset())
        reader._stored["x"] = ~data
        reader.load("x")
    assert reader.total_flips > 0, "a write at the harsh point must fail in some cells"


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (lambda m: m.store("x", noise(BURST // 8 + 1)), CapacityError, ("x", str(BURST), str(BURST + 8))),
        (lambda m: m.store("y", noise(4)), NetworkError, ("y", "no place")),
        (lambda m: m.load("y"), NetworkError, ("y",)),
        (lambda m: m.load("x"), NetworkError, ("x", "before it was stored")),
    ],
)
def test_what_cannot_be_is_refused(
    rig: tuple[Board, RecordingSupply],
    act: Callable[[BoardMemory], object],
    error: type[EdenError],
    words: tuple[str, ...],
) -> None:
    board, supply = rig
    memory = BoardMemory([board], {"x": place("x", BURST, HARSH)}, frozenset({"x"}))
    with board.rail.guarded(), pytest.raises(error) as caught:
        act(memory)
    assert all(word in str(caught.value) for word in words)
    assert set(supply.set_points) <= {1350}


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_rail_is_nominal_afterwards_whatever_happens(
    rig: tuple[Board, RecordingSupply], failure: type[BaseException]
) -> None:
    board, supply = rig
    memory = BoardMemory([board], {"x": place("x", 512, HARSH)}, frozenset({"x"}))
    with pytest.raises(failure), board.rail.guarded():  # noqa: PT012 (what is tested is the way out)
        memory.store("x", noise(64))
        assert supply.set_points[-1] == 1032
        raise failure
    assert supply.set_points[-1] == 1350


def test_a_forbidden_supply_is_never_set(rig: tuple[Board, RecordingSupply]) -> None:
    board, supply = rig
    low = OperatingPoint(vdd_mv=500, trcd_ps=10000)
    memory = BoardMemory([board], {"x": place("x", 512, low)}, frozenset())
    with board.rail.guarded(), pytest.raises(RailError, match="500 mV"):  # noqa: PT012
        memory.store("x", noise(64))
        memory.load("x")
    assert min(supply.set_points) == 1350


def test_a_memory_used_again_under_another_guard_reads_at_its_point(rig: tuple[Board, RecordingSupply]) -> None:
    board, supply = rig
    memory = BoardMemory([board], {"x": place("x", 8 * 20_000, HARSH)}, frozenset())
    with board.rail.guarded():
        memory.store("x", noise(20_000))
        memory.load("x")
    before = memory.total_flips
    assert before > 0
    with board.rail.guarded():
        memory.load("x")
        assert supply.set_points[-1] == 1032
    assert memory.total_flips > before


@pytest.mark.parametrize(
    "placements",
    [
        pytest.param({"x": place("x", BURST, NOMINAL, GEOMETRY.cells)}, id="after the end"),
        pytest.param({"x": place("x", BURST, NOMINAL, 64)}, id="in mid-burst"),
        pytest.param(
            {"x": place("x", 4 * BURST, NOMINAL), "y": place("y", BURST, NOMINAL, BURST)},
            id="one over the other",
        ),
    ],
)
def test_places_that_cannot_hold_their_tensors_are_refused(
    rig: tuple[Board, RecordingSupply], placements: dict[str, Placement]
) -> None:
    """In mid-burst, a tensor would lie on other cells than the profile's."""
    board, _ = rig
    with board.rail.guarded(), pytest.raises(EdenError):  # noqa: PT012
        mapping = DramMapping(images=1, alignment_bits=BURST, vdd_mv=1350, placements=placements)
        memory = BoardMemory([board], mapping.placements, frozenset())
        for name in placements:
            memory.store(name, noise(BURST // 8))


def test_it_is_the_reliable_memory_at_nominal(rig: tuple[Board, RecordingSupply]) -> None:
    """The same stores and loads in the same order give the same bytes."""
    board, _ = rig
    sizes = {"a": 1, "b": 63, "c": 4096, "d": 7}
    placements, first = {}, 0
    for name, size in sizes.items():
        placements[name] = place(name, 8 * size, NOMINAL, first)
        first += placements[name].cells
    there, here = BoardMemory([board], placements, frozenset({"b"})), ReliableMemory()
    with board.rail.guarded():
        for turn in range(3):
            for name, size in sizes.items():
                for memory in (there, here):
                    memory.store(name, noise(size, turn))
            for name in sizes:
                assert torch.equal(there.load(name), here.load(name))
    assert there.total_bits_read == here.total_bits_read
    assert there.total_flips == 0


def test_a_tensor_in_several_pieces_comes_back_whole(rig: tuple[Board, RecordingSupply]) -> None:
    opened, _ = rig
    burst = GEOMETRY.burst_bits
    more = (
        Piece(partition="other", first_cell=GEOMETRY.bank_bits, cells=2 * burst, point=NOMINAL),
        Piece(partition="bank", first_cell=0, cells=3 * burst, point=NOMINAL),
    )
    split = Placement(tensor="a", partition="bank", first_cell=8 * burst, cells=burst, point=NOMINAL, more=more)
    memory = BoardMemory([opened], {"a": split, "b": place("b", burst, NOMINAL, 9 * burst)}, frozenset({"a"}))
    for size in (burst // 8 - 3, burst // 8 + 1, 6 * burst // 8 - 5, 6 * burst // 8):
        data = torch.from_numpy(np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8))
        with opened.rail.guarded():
            memory.clear()
            memory.store("a", data)
            assert torch.equal(memory.load("a"), data)
    with pytest.raises(CapacityError, match=f"its place holds {6 * burst}"):
        memory.store("a", torch.zeros(6 * burst // 8 + 1, dtype=torch.uint8))
    with pytest.raises(CapacityError, match="mapped over"):
        BoardMemory([opened], {"a": split, "b": place("b", burst, NOMINAL, burst)}, frozenset())


def test_tensors_read_together_are_those_read_one_by_one() -> None:
    """In one program, over banks and pieces in any order, with the draws of single reads; and fewer programs."""
    banks = (3, 0, 1, 0)
    placements = {
        f"w{k}": place(f"w{k}", 8 * 3000, HARSH, bank * GEOMETRY.bank_bits + k * GEOMETRY.row_bits)
        for k, bank in enumerate(banks)
    }
    results, programs = [], []
    for together in (False, True):
        board, _ = open_rig()
        memory = BoardMemory([board], placements, frozenset())
        with board.rail.guarded():
            memory.clear()
            for name in placements:
                memory.store(name, noise(3000, 7))
            board.environment.begin_epoch(4)
            before = board.usage.programs
            results.append(memory.load_all(list(placements)) if together else [memory.load(n) for n in placements])
            programs.append(board.usage.programs - before)
        assert memory.total_flips == sum(memory.flips.values()) > 100
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert programs == [4, 1]


def test_a_weight_that_is_reused_keeps_its_draw_and_is_read_anew_afterwards() -> None:
    board, _ = open_rig()
    placements = {"w": place("w", 8 * 20_000, HARSH), "a.ifm": place("a.ifm", 8 * 64, HARSH, GEOMETRY.bank_bits)}
    memory = BoardMemory([board], placements, frozenset({"a.ifm"}), weight_reuse=3)
    data = noise(20_000)
    with board.rail.guarded():
        memory.store("w", data)
        memory.store("a.ifm", noise(64))
        loads = []
        for _ in range(6):
            loads.append(memory.load("w"))
            memory.load("a.ifm")
            loads[-1].clone().fill_(0)
        assert memory.bits_read == {"w": 2 * 8 * 20_000, "a.ifm": 6 * 8 * 64}
        assert all(torch.equal(load, loads[0]) for load in loads[:3])
        assert all(torch.equal(load, loads[3]) for load in loads[3:])
        assert not torch.equal(loads[0], loads[3])
        memory.load("w").fill_(0)
        assert memory.load("w").any(), "what a caller does to its buffer must not reach the next one"
        memory.store("w", ~data)
        assert int(np.bitwise_count((memory.load("w") ^ ~data).numpy()).sum()) < 8 * 20_000 * 0.1
    with pytest.raises(NetworkError, match="0 batches"):
        BoardMemory([board], placements, frozenset(), weight_reuse=0)


def test_what_programs_take_of_the_board_is_counted() -> None:
    """In one bank, a burst per activation takes tRAS and tRP at least; the same program takes the same again."""
    board, _ = open_rig()
    memory = BoardMemory([board], {"x": place("x", 8 * 64 * 1000, SAFE)}, frozenset())
    with board.rail.guarded():
        memory.store("x", noise(64 * 1000))
        before = board.usage.clocks
        memory.load("x")
        once = board.usage.clocks - before
        memory.load("x")
        assert board.usage.clocks - before == 2 * once
    clocks = once * board.build.nphases
    assert 1000 * (board.timings.tras + board.timings.trp) <= clocks < 2000 * (board.timings.tras + board.timings.trp)
