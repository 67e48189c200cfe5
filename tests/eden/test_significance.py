"""Bits that matter lie on cells that hold, a reader gets back what was stored, and the metadata are what is counted."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eden.approximate import ApproximateNetwork, TensorSpec
from eden.bounding import Bounding, correct
from eden.mapping import Partition, RowRates
from eden.memory import ProfileMemory, ReliableMemory
from eden.placement import Placement
from eden.precision import Precision
from eden.significance import (
    CHOICE_BITS,
    CHOICES,
    SPLITS,
    STATES,
    UNIT_BITS,
    Layout,
    SignificanceMemory,
    codebook,
    costly_first,
    decode,
    encode,
    flip_costs,
    from_words,
    plan_significance,
    stored_tensors,
    to_words,
)
from eden.tensor_format import STORED_TYPE, TensorFormat
from profiles.cells import WeakCells
from profiles.errors import CapacityError, NetworkError
from profiles.schema import OperatingPoint

WHOLE, FLOATS = TensorFormat(Precision.INT8, 1.0, -127, 127), TensorFormat(Precision.FP32, 1.0, -5.0, 5.0)
INTEGERS = [precision for precision in Precision if precision.is_integer]


def weak_cells(cells: np.ndarray, flip_zero: float = 1.0, flip_one: float = 1.0) -> WeakCells:
    return WeakCells(np.asarray(cells, np.int64), np.full(len(cells), flip_zero), np.full(len(cells), flip_one))


def some_weak_cells(bits: int, share: float, seed: int) -> WeakCells:
    draw = np.random.default_rng(seed)
    cell = np.flatnonzero(draw.random(bits) < share)
    return WeakCells(cell, draw.random(cell.size), draw.random(cell.size))


def weights(precision: Precision, count: int, seed: int = 0) -> np.ndarray:
    """Stored bytes of normally distributed values."""
    values = torch.from_numpy(np.random.default_rng(seed).standard_normal(count).astype(np.float32))
    return TensorFormat.for_range(precision, float(values.min()), float(values.max())).encode(values).numpy()


def layout_of(data: np.ndarray, precision: Precision, costly_bits: int) -> Layout:
    """Of a tensor whose range is that of ``data``."""
    numbers = codes(data, precision).astype(np.float64) if precision.is_integer else finite(data, precision)
    return Layout(TensorFormat(precision, 1.0, float(numbers.min()), float(numbers.max())), costly_bits)


def finite(data: np.ndarray, precision: Precision) -> np.ndarray:
    """The finite values of stored floating point, and a zero."""
    numbers = torch.from_numpy(data.copy()).view(STORED_TYPE[precision]).double().numpy()
    return np.append(numbers[np.isfinite(numbers)], 0.0)


def codes(data: np.ndarray, precision: Precision) -> np.ndarray:
    return (
        TensorFormat(precision, 1.0, 0, 0)
        .stored_elements(torch.from_numpy(data), data.size * 8 // precision.bits)
        .numpy()
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_stored_is_read_back_bit_for_bit(data: st.DataObject) -> None:
    """Any bytes, not only those of networks: NaN, infinities and the most negative code as well."""
    precision = data.draw(st.sampled_from(list(Precision)))
    elements = data.draw(st.integers(1, 700))
    stored = np.frombuffer(
        np.random.default_rng(data.draw(st.integers(0, 99))).bytes(precision.stored_bytes(elements)), np.uint8
    ).copy()
    if data.draw(st.booleans()):  # no negative number
        if precision is Precision.INT4:
            stored &= 0x77
        else:
            stored.reshape(-1, precision.bits // 8)[:, -1] &= 0x7F
    layout = layout_of(stored, precision, data.draw(st.integers(1, precision.bits)))
    weak = some_weak_cells(
        layout.stored_bits(stored.size), data.draw(st.sampled_from([0, 0.02, 0.3])), data.draw(st.integers(0, 99))
    )
    memory = SignificanceMemory(ReliableMemory(), {"a": layout}, lambda tensor, bits: weak)
    memory.store("a", torch.from_numpy(stored.copy()))
    assert np.array_equal(memory.load("a").numpy(), stored)


def test_tensors_of_several_segments_are_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eden.significance._SEGMENT", 512)
    data = weights(Precision.INT8, 5000)
    whole, weak = layout_of(data, Precision.INT8, 5), some_weak_cells(50_000, 0.02, 1)
    encoded = encode(data, whole, weak)
    assert np.array_equal(decode(encoded.data, encoded, whole), data)


@pytest.mark.parametrize("precision", INTEGERS)
def test_every_code_has_a_word_of_its_own(precision: Precision) -> None:
    every = np.arange(1 << precision.bits, dtype=np.uint16 if precision is Precision.INT16 else np.uint8)
    data = every if precision is not Precision.INT4 else every[0::2] | every[1::2] << 4
    signed, unsigned = (TensorFormat(precision, 1.0, low, precision.largest_code) for low in (-1, 0))
    words = to_words(data.view(np.uint8), signed)
    assert np.array_equal(np.sort(words), every)
    assert np.array_equal(from_words(words, signed), every)
    positive = data.view(np.uint8)[: data.nbytes // 2]
    copied = to_words(positive, unsigned)
    assert np.array_equal(from_words(copied, unsigned), every[: every.size // 2])


def test_a_flipped_sign_of_a_small_code_costs_little_and_a_copied_bit_nothing() -> None:
    """By hand: 3 to -3 is a change of 6 of 127; the second copy of a 0 does no harm, that of a 1 reads 0: 64 less."""
    data = np.array([3, 127], np.uint8)
    both, positive = (TensorFormat(Precision.INT8, 1.0, low, 127) for low in (-127, 0))
    signed = flip_costs(to_words(data, both), both, range(8))
    assert signed[0, 7] == pytest.approx((6 / 127) ** 2)
    copied = flip_costs(to_words(data, positive), positive, range(8))
    assert copied[0, 7] == copied[0, 6] == 0
    assert copied[1, 7] == copied[1, 6] == pytest.approx((64 / 127) ** 2)


@pytest.mark.parametrize(
    ("precision", "spared", "next_bit"),
    [(Precision.INT8, range(5, 8), (16 / 31) ** 2), (Precision.FP32, range(20, 32), (2**-4 / 2**-3) ** 2)],
)
def test_known_bits_and_copies_of_a_sign_cost_nothing(precision: Precision, spared: range, next_bit: float) -> None:
    """By hand: of int8 within 31 bits 5 to 7 are copies; of FP32 in one binade 20 to 22 are, 23 to 31 are known."""
    form = TensorFormat.for_range(precision, -1.0, 1.0, guarded_signs=True)
    words = to_words(form.encode(torch.tensor([-0.8, -0.1, 0.0, 0.1, 0.8])).numpy(), form)
    assert not flip_costs(words, form, spared).any()
    assert flip_costs(words, form, range(spared.start - 1, spared.start)).max() == pytest.approx(next_bit, rel=1e-5)


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("precision", list(Precision))
def test_a_flip_costs_what_a_bounded_network_would_see(precision: Precision, guarded: bool) -> None:
    values = torch.from_numpy(np.random.default_rng(1).standard_normal(64).astype(np.float32))
    form = TensorFormat.for_range(precision, float(values.min()), float(values.max()), guarded)
    data = form.encode(values).numpy()
    words = to_words(data, form)
    costs = flip_costs(words, form, range(precision.bits))
    clean = form.stored_elements(torch.from_numpy(data), 64).double()
    unit = max(abs(form.low - form.offset), abs(form.high - form.offset))
    for bit in range(precision.bits):
        read = from_words(words ^ words.dtype.type(1 << bit), form)
        raw = read[0::2] | read[1::2] << 4 if precision is Precision.INT4 else read.view(np.uint8)
        stored = correct(form.stored_elements(torch.from_numpy(raw.copy()), 64), form, Bounding.ZERO)
        change = (stored.double() - clean) / unit
        assert costs[:, bit] == pytest.approx((change**2).numpy(), rel=1e-4, abs=1e-12)


def test_a_weak_cell_a_unit_meets_only_bits_of_least_weight() -> None:
    """The planted truth: whatever cell is weak, some way puts a low-order bit there."""
    data = weights(Precision.INT8, 64 * 40)
    layout = layout_of(data, Precision.INT8, 8)
    planted = np.arange(40) * UNIT_BITS + np.random.default_rng(2).integers(0, UNIT_BITS, 40)
    encoded = encode(data, layout, weak_cells(planted))
    stored = np.unpackbits(encoded.data, bitorder="little")
    stored[planted] ^= 1
    clean = codes(data, Precision.INT8).astype(int)
    read = codes(decode(np.packbits(stored, bitorder="little"), encoded, layout), Precision.INT8).astype(int)
    read[(read < clean.min()) | (read > clean.max())] = 0
    assert np.abs(read - clean).max() <= 2
    plain = np.unpackbits(data, bitorder="little")
    plain[planted] ^= 1
    wrong = np.packbits(plain, bitorder="little")
    assert np.abs(codes(wrong, Precision.INT8).astype(int) - clean).max() > 16


@pytest.mark.parametrize("flips", [(1.0, 0.0), (0.0, 1.0)])
def test_cells_that_lose_one_value_only_are_given_the_other(flips: tuple[float, float]) -> None:
    data = weights(Precision.FP32, 16 * 40)
    layout = layout_of(data, Precision.FP32, 32)
    planted = np.sort(np.random.default_rng(3).choice(40 * UNIT_BITS, 80, replace=False))
    encoded = encode(data, layout, weak_cells(planted, *flips))
    assert encoded.cost == 0
    stored = np.unpackbits(encoded.data, bitorder="little")
    loses = np.where(stored[planted] == 1, flips[1], flips[0])
    wrong = planted[loses == 1]
    stored[wrong] ^= 1
    read = decode(np.packbits(stored, bitorder="little"), encoded, layout).view(np.float32)
    assert np.allclose(read, data.view(np.float32), rtol=1e-6)
    assert wrong.size < planted.size / 4


def test_the_choices_are_the_cheapest_of_all() -> None:
    """Against all 32 x 32 paths through two units, each written out and priced bit by bit."""
    data = weights(Precision.INT8, 128)
    layout = layout_of(data, Precision.INT8, 8)
    weak = some_weak_cells(2 * UNIT_BITS, 0.1, 4)
    words = to_words(data, layout.tensor_format)
    costs = flip_costs(words, layout.tensor_format, range(8)).reshape(2, UNIT_BITS)
    bits = np.unpackbits(words, bitorder="little").reshape(2, UNIT_BITS)
    book = codebook()

    def price(unit: int, way: int) -> float:
        here = weak.within(unit * UNIT_BITS, UNIT_BITS)
        source = book.source[way][here.cell]
        stored = bits[unit][source] ^ book.inverted[way]
        return float((np.where(stored, here.flip_one, here.flip_zero) * costs[unit][source]).sum())

    first = np.array([price(0, choice * STATES) for choice in range(CHOICES)])
    second = np.array([[price(1, c * STATES + state) for c in range(CHOICES)] for state in range(STATES)])
    cheapest = min(first[choice] + second[choice % STATES].min() for choice in range(CHOICES))
    encoded = encode(data, layout, weak)
    assert encoded.cost == pytest.approx(cheapest, rel=1e-4)
    assert encoded.cost < 0.5 * (price(0, 0) + price(1, 0))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.01, 0.05]), st.sampled_from(list(Precision)))
def test_more_weak_cells_never_cost_less(seed: int, share: float, precision: Precision) -> None:
    data = weights(precision, 1024, seed)
    layout = layout_of(data, precision, precision.bits)
    weak = some_weak_cells(layout.stored_bits(data.size), share, seed)
    kept = np.random.default_rng(seed).random(weak.cell.size) < 0.7
    fewer = WeakCells(weak.cell[kept], weak.flip_zero[kept], weak.flip_one[kept])
    assert encode(data, layout, fewer).cost <= encode(data, layout, weak).cost * (1 + 1e-4) + 1e-12


def test_the_expected_cost_is_what_reads_show(place_in_a_row: Callable[[dict[str, int]], dict[str, Placement]]) -> None:
    data = weights(Precision.INT8, 20_000)
    layout = layout_of(data, Precision.INT8, 8)
    bits = layout.stored_bits(data.size)
    weak = some_weak_cells(bits, 0.03, 5)
    inner = ProfileMemory(weak, place_in_a_row({"a": bits}), seed=1)
    memory = SignificanceMemory(inner, {"a": layout}, lambda tensor, bits: weak)
    memory.store("a", torch.from_numpy(data.copy()))
    clean = codes(data, Precision.INT8).astype(float)
    squares = []
    for _ in range(60):
        read = codes(memory.load("a").numpy(), Precision.INT8).astype(float)
        read[(read < clean.min()) | (read > clean.max())] = 0
        squares.append((((read - clean) / np.abs(clean).max()) ** 2).sum())
    # Two flips in one value do not add up, and make up a few per cent.
    assert np.mean(squares) == pytest.approx(memory.encoded["a"].cost, rel=0.12)


def test_metadata_are_counted_and_all_that_a_reader_needs() -> None:
    data = weights(Precision.INT8, 10_000)
    layout = layout_of(data, Precision.INT8, 5)
    encoded = encode(data, layout, some_weak_cells(90_000, 0.02, 6))
    units = -(-50_000 // UNIT_BITS) + -(-30_000 // UNIT_BITS)
    assert encoded.data.size * 8 == units * UNIT_BITS == layout.stored_bits(data.size)
    assert encoded.metadata_bits == units * CHOICE_BITS
    assert encoded.choices.size == -(-units * CHOICE_BITS // 8)
    nothing = np.empty(0, np.uint8)
    stripped = replace(encoded, data=nothing, cost=np.nan, energy=np.nan)
    assert np.array_equal(decode(encoded.data, stripped, layout), data)
    memory = SignificanceMemory(ReliableMemory(), {"a": layout}, lambda tensor, bits: some_weak_cells(bits, 0.02, 6))
    memory.store("a", torch.from_numpy(data.copy()))
    assert memory.metadata_bits == encoded.metadata_bits
    assert memory.stored_bits == 80_000
    assert memory.metadata_bits / memory.stored_bits < 0.01


def test_data_that_change_are_encoded_anew_and_others_stored_again() -> None:
    class Counting(ReliableMemory):
        stores = 0

        def store(self, tensor: str, data: torch.Tensor) -> None:
            self.stores += 1
            super().store(tensor, data)

    first, second = (torch.from_numpy(weights(Precision.INT8, 10_000, seed)) for seed in (1, 2))
    layout, inner, asked = layout_of(first.numpy(), Precision.INT8, 8), Counting(), []

    def weak_cells_of(tensor: str, bits: int) -> WeakCells:
        asked.append(tensor)
        return some_weak_cells(bits, 0.02, 6)

    memory = SignificanceMemory(inner, {"a": layout}, weak_cells_of)
    for stores, data in enumerate((first, first.clone(), second, first[:5000], first), start=1):
        memory.store("a", data)
        assert torch.equal(memory.load("a"), data)
        assert inner.stores == stores
    assert len(asked) == 4


def test_without_weak_cells_units_stay_as_they_are(no_weak_cells: WeakCells) -> None:
    data = weights(Precision.FP32, 100)
    layout = layout_of(data, Precision.FP32, 32)
    encoded = encode(data, layout, no_weak_cells)
    assert np.array_equal(encoded.data[: data.size], data)
    assert not encoded.choices.any()


def partition_of(rates: list[float], point: OperatingPoint, row_cells: int = 4 * UNIT_BITS) -> Partition:
    ber = np.array(rates)
    return Partition(
        name="bank 0",
        bank=0,
        first_cell=0,
        cells=len(rates) * row_cells,
        ber_by_point={point: float(ber.mean())},
        rows=RowRates(row_cells, {("weight", point): ber}),
    )


def test_rows_that_hold_are_filled_first_and_the_worst_stay_empty(point: OperatingPoint) -> None:
    """Two tensors of five units in rows of four: rows 1, 3 and 2, in this order; row 0, the worst, is left over."""
    tensors = [TensorSpec(name, "weight", 5 * 64, Precision.INT8) for name in ("a", "b")]
    formats = dict.fromkeys("ab", WHOLE)
    everywhere = {"weight": weak_cells(np.arange(4 * UNIT_BITS))}
    plan = plan_significance(tensors, {}, formats, everywhere, [partition_of([0.5, 0.0, 0.02, 0.01], point)], point, 1)
    row = 4 * UNIT_BITS
    first, second = plan.mapping.placements["a"], plan.mapping.placements["b"]
    assert [(piece.first_cell, piece.cells) for piece in first.pieces] == [(row, row), (3 * row, UNIT_BITS)]
    assert [(p.first_cell, p.cells) for p in second.pieces] == [(3 * row + UNIT_BITS, row - UNIT_BITS), (2 * row, 1024)]
    assert plan.order_bits == 3 * 2 + 3  # three of four rows, and one of five splits
    assert not plan.weak_cells["a"].within(row, 3 * row).cell.size


@pytest.mark.parametrize(
    ("tensor_format", "order"),
    [
        (TensorFormat(Precision.INT8, 1.0, -127, 127), [7, 6, 5, 4, 3, 2, 1, 0]),  # sign and magnitude
        (TensorFormat(Precision.INT8, 1.0, -31, 31), [4, 3, 2, 1, 0, 7, 6, 5]),  # three copies of the sign
        (TensorFormat(Precision.INT16, 1.0, -8191, 5003), [*range(12, -1, -1), 15, 14, 13]),
        (TensorFormat(Precision.INT8, 1.0, 0, 15), [3, 2, 1, 0, 7, 6, 5, 4]),  # half of the range: upper bits are known
        (TensorFormat.for_range(Precision.FP32, -1.0, 1.0, True), [*range(19, -1, -1), *range(31, 19, -1)]),
    ],
)
def test_bits_are_ordered_by_what_their_flips_cost(tensor_format: TensorFormat, order: list[int]) -> None:
    assert list(costly_first(tensor_format)) == order


def test_of_floating_point_the_sign_and_exponent_matter_most() -> None:
    assert set(costly_first(FLOATS)[:9]) == set(range(23, 32))
    assert list(costly_first(FLOATS)[9:]) == list(range(22, -1, -1))


@pytest.mark.parametrize("knows_ifms", [False, True])
def test_ifms_that_are_left_with_the_weak_rows_decide_the_split(point: OperatingPoint, knows_ifms: bool) -> None:
    """A weight fits in the row that holds, whole; the IFM beside it has only half of its bits to put there."""
    stored = {name: weights(Precision.INT8, 64 * count, count) for name, count in [("a", 8), ("b", 24)]}
    tensors = [
        TensorSpec(name, kind, stored[name].size, Precision.INT8) for name, kind in [("a", "weight"), ("b", "ifm")]
    ]
    row = 16 * UNIT_BITS
    weak = weak_cells(some_weak_cells(row, 0.2, 1).cell + row)
    known = stored if knows_ifms else {"a": stored["a"]}
    plan = plan_significance(
        *(tensors, known, dict.fromkeys("ab", WHOLE), {"weight": weak, "ifm": weak}),
        *([partition_of([0.0, 0.1], point, row)], point),
        images=1,
    )
    assert plan.layouts["b"].costly_bits == (4 if knows_ifms else 8)


def test_where_half_of_the_rows_are_weak_they_get_the_low_order_bits(point: OperatingPoint) -> None:
    data = weights(Precision.INT8, 64 * 16)
    tensor = TensorSpec("a", "weight", data.size, Precision.INT8)
    rates = [0.1, 0.0] * 2
    weak = np.concatenate([some_weak_cells(4 * UNIT_BITS, 0.2, r).cell + 8 * r * UNIT_BITS for r in (0, 1)])
    plan = plan_significance(
        [tensor], {"a": data}, {"a": WHOLE}, {"weight": weak_cells(weak)}, [partition_of(rates, point)], point, images=1
    )
    assert plan.layouts["a"].costly_bits == 4
    assert [piece.first_cell // (4 * UNIT_BITS) for piece in plan.mapping.placements["a"].pieces] == [1, 3, 0, 2]


def test_too_few_rows_are_refused(point: OperatingPoint) -> None:
    tensor = TensorSpec("a", "weight", 64 * 20, Precision.INT8)
    with pytest.raises(CapacityError, match="find no room"):
        plan_significance(
            [tensor], {}, {"a": WHOLE}, {"weight": weak_cells([])}, [partition_of([0.1], point)], point, 1
        )


@pytest.mark.parametrize("precision", list(Precision))
def test_a_network_placed_on_cells_that_hold_is_the_clean_one(
    precision: Precision, small_network: nn.Module, small_images: torch.Tensor, point: OperatingPoint
) -> None:
    network = ApproximateNetwork(small_network, precision)
    network.calibrate([small_images])
    clean = network(small_images)
    cells = partition_of([0.01 * row for row in range(400)], point)
    nothing = {kind: weak_cells([]) for kind in ("weight", "ifm")}
    plan = plan_significance(
        network.tensors(), *stored_tensors(network, small_images), nothing, [cells], point, images=8
    )
    assert all(layout.tensor_format == network.formats[name] for name, layout in plan.layouts.items())
    assert {share for share in SPLITS} >= {layout.costly_bits / precision.bits for layout in plan.layouts.values()}
    memory = plan.memory(ProfileMemory(weak_cells([]), plan.mapping.placements, seed=1))
    network.memory = memory
    assert torch.equal(network(small_images), clean)
    with pytest.raises(CapacityError, match="plan it with this batch size"):
        network(torch.cat([small_images] * 20))


class Branching(nn.Module):
    """One layer more for images that are dark."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.extra = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = self.first(values)
        return self.extra(seen) if values.mean() < 0 else seen


def test_a_layer_that_the_planning_batch_does_not_reach_is_planned_without_its_input(point: OperatingPoint) -> None:
    network = ApproximateNetwork(Branching(), Precision.INT8)
    bright = torch.rand(8, 4)
    network.calibrate([bright, -bright])
    stored, formats = stored_tensors(network, bright)
    names = {tensor.name for tensor in network.tensors()}
    assert set(stored) == names - {"extra.ifm"}
    nothing = {kind: weak_cells([]) for kind in ("weight", "ifm")}
    cells = partition_of([0.01 * row for row in range(400)], point)
    plan = plan_significance(network.tensors(), stored, formats, nothing, [cells], point, images=8)
    assert set(plan.mapping.placements) == names


def test_in_one_binade_what_a_reader_puts_right_is_not_kept_from_weak_cells() -> None:
    """One cell in fifty is weak, ten in a unit: a choice that spares exponents has none left for what matters."""
    values = torch.from_numpy(np.random.default_rng(4).standard_normal(4000).astype(np.float32))
    form = TensorFormat.for_range(Precision.FP32, float(values.min()), float(values.max()), guarded_signs=True)
    data, weak = form.encode(values).numpy(), some_weak_cells(128_000, 0.02, 3)
    knowing, plain = Layout(form, 32), layout_of(data, Precision.FP32, 32)

    def lost(layout: Layout) -> float:
        encoded = encode(data, layout, weak)
        cells = np.unpackbits(encoded.data, bitorder="little")
        wrong = cells.copy()
        draw = np.random.default_rng(5).random(weak.cell.size)
        wrong[weak.cell] ^= draw < np.where(cells[weak.cell] == 1, weak.flip_one, weak.flip_zero)
        read = decode(np.packbits(wrong, bitorder="little"), encoded, layout)
        stored = form.stored_elements(torch.from_numpy(read), 4000)
        seen = form.values(correct(stored, form, Bounding.ZERO), values.shape)
        return float(((seen - values) ** 2).sum())

    assert lost(knowing) < 0.5 * lost(plain)


def test_errors_say_what_to_do() -> None:
    memory = SignificanceMemory(ReliableMemory(), {"a": Layout(FLOATS, 32)}, lambda t, bits: weak_cells([]))
    with pytest.raises(NetworkError, match="map the network again"):
        memory.store("b", torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(NetworkError, match="no whole fp32"):
        memory.store("a", torch.zeros(6, dtype=torch.uint8))
    with pytest.raises(NetworkError, match="store it first"):
        memory.load("a")
    with pytest.raises(NetworkError, match="give 1 to 8"):
        Layout(WHOLE, 9)
    encoded = encode(weights(Precision.INT8, 64), Layout(WHOLE, 8), weak_cells([]))
    with pytest.raises(NetworkError, match="different tensor"):
        decode(np.zeros(128, np.uint8), encoded, Layout(WHOLE, 8))
