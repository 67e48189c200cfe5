"""What was tested how often, with which stored bit: the closed forms against counting every cell."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.cells import CellCounts, WeakCells
from profiles.errors import FitError, ProfileError
from profiles.geometry import Geometry
from profiles.pattern import Pattern, PatternKind, stored_bits
from profiles.population import collect, measured_weak_cells, stored_ones, unseen_rates
from profiles.schema import AccessMode, OperatingPoint, Region, WriteCondition
from profiles.storage import Profile

NOMINAL = WriteCondition.NOMINAL
PATTERNS = [
    "0x00",
    "0xFF",
    "0xAA",
    "0x36",
    "0x0F/invert",
    "checker",
    "row_stripe",
    "column_stripe",
    "walking",
    "random:7",
]


def patterns() -> st.SearchStrategy[Pattern]:
    kinds = [kind for kind in PatternKind if kind not in (PatternKind.SOLID, PatternKind.BUFFER)]
    solid = st.builds(
        Pattern, kind=st.just(PatternKind.SOLID), parameter=st.integers(0, 255), invert_odd_rows=st.booleans()
    )
    other = st.builds(Pattern, kind=st.sampled_from(kinds), invert_odd_rows=st.booleans())
    random = st.builds(Pattern, kind=st.just(PatternKind.RANDOM), parameter=st.integers(0, (1 << 32) - 1))
    return st.one_of(solid, other, random)


@given(pattern=patterns())
def test_pattern_text_comes_back(pattern: Pattern) -> None:
    assert Pattern.parse(str(pattern)) == pattern


@given(
    banks=st.integers(1, 4),
    rows=st.sampled_from([1, 4, 32]),
    columns=st.sampled_from([8, 64]),
    width=st.sampled_from([8, 64]),
    data=st.data(),
)
def test_cell_numbering_is_a_bijection(banks: int, rows: int, columns: int, width: int, data: st.DataObject) -> None:
    geometry = Geometry(banks=banks, rows=rows, columns=columns, data_width=width)
    cells = np.array(data.draw(st.lists(st.integers(0, geometry.cells - 1), max_size=20)), np.int64)
    parts = (geometry.bank(cells), geometry.row(cells), geometry.column(cells), geometry.dq(cells))
    assert np.array_equal(geometry.cell(*parts), cells)
    assert np.array_equal(geometry.wordline(cells), parts[0] * rows + parts[1])


@settings(max_examples=60, deadline=None)
@given(
    pattern=patterns(),
    rows=st.sampled_from([4, 64]),
    columns=st.sampled_from([4, 8, 32]),
    width=st.sampled_from([8, 16, 32]),
    data=st.data(),
)
def test_stored_ones_are_counted_exactly(
    planted: ModuleType, pattern: Pattern, rows: int, columns: int, width: int, data: st.DataObject
) -> None:
    geometry = Geometry(banks=2, rows=rows, columns=columns, data_width=width, burst_length=4)
    start = data.draw(st.integers(0, rows - 1))
    count = data.draw(st.integers(1, rows - start))
    cells = planted.region_cells(geometry, Region(banks=(1,), row_start=start, row_count=count), 1)
    assert stored_ones(pattern, geometry, 1, start, count) == stored_bits(pattern, geometry, cells).sum()


def test_classes_equal_a_count_over_all_cells(planted: ModuleType, tmp_path: Path) -> None:
    """Records over regions that overlap in part, with different rounds, periodic patterns and random ones."""
    geometry = planted.small_geometry()
    rng = np.random.default_rng(1)
    weak = planted.random_weak(geometry, 800)
    tests = [(text, Region(banks=(0, 1), row_start=5 * i % 40, row_count=20), 2 + i) for i, text in enumerate(PATTERNS)]
    for chosen in (tests[:-1], tests):
        profile = Profile.create(tmp_path / f"{len(chosen)}", planted.header(geometry, len(chosen)))
        trials = np.zeros((2, geometry.cells), np.int64)
        errors = np.zeros((2, geometry.cells), np.int64)
        for index, (text, region, rounds) in enumerate(chosen):
            pattern = Pattern.parse(text)
            cells = planted.counts(geometry, weak, pattern, region, rounds, rng)
            profile.append(planted.record(geometry, cells, index, pattern=pattern, region=region, rounds=rounds), cells)
            tested = np.concatenate([planted.region_cells(geometry, region, bank) for bank in region.banks])
            trials[stored_bits(pattern, geometry, tested), tested] += rounds
            errors[cells.stored, cells.cell] += cells.errors
        data = collect(profile, planted.POINT, NOMINAL)
        failing = np.flatnonzero(errors.sum(axis=0))
        assert np.array_equal(data.cell, failing)
        assert np.array_equal(data.trials_zero, trials[0, failing])
        assert np.array_equal(data.trials_one, trials[1, failing])
        assert np.array_equal(data.errors_zero, errors[0, failing])
        assert np.array_equal(data.errors_one, errors[1, failing])
        tested = trials.sum(axis=0) > 0
        assert data.tested_cells == tested.sum()
        expected, counts = np.unique(trials[:, tested].T, axis=0, return_counts=True)
        pairs, cells_of = data.stored_classes()
        assert np.array_equal(pairs, expected)
        assert np.array_equal(cells_of, counts)


def test_measured_probabilities_pool_patterns_by_stored_bit(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    weak = WeakCells(np.array([10, 70000]), np.array([0.25, 0.0]), np.array([0.75, 1.0]))
    profile = planted.profile(tmp_path / "dimm", geometry, weak, ("0xFF", "0x00"), rounds=4000)
    found = measured_weak_cells(profile, planted.POINT, NOMINAL)
    assert np.array_equal(found.cell, weak.cell)
    assert found.flip_zero == pytest.approx(weak.flip_zero, abs=0.03)
    assert found.flip_one == pytest.approx(weak.flip_one, abs=0.03)


@pytest.mark.parametrize("rounds", [4, 40])
def test_what_was_seen_once_says_how_often_fail_cells_that_were_not_seen_to(
    planted: ModuleType, tmp_path: Path, rounds: int
) -> None:
    """Planted: 4,000 cells that fail in 3 % of the reads at a stored 0, as many in 1 % at a stored 1."""
    geometry, rng = planted.small_geometry(), np.random.default_rng(3)
    cells = np.sort(rng.choice(geometry.cells, 8000, replace=False))
    zeros = np.isin(np.arange(8000), rng.choice(8000, 4000, replace=False))
    weak = WeakCells(cells, np.where(zeros, 0.03, 0.0), np.where(zeros, 0.0, 0.01))
    profile = planted.profile(tmp_path / "dimm", geometry, weak, ("0xFF", "0x00"), rounds=rounds)
    data = collect(profile, planted.POINT, NOMINAL)
    for stored, (errors, flip) in enumerate(((data.errors_zero, weak.flip_zero), (data.errors_one, weak.flip_one))):
        unseen = flip[~np.isin(cells, data.cell[errors > 0])].sum() / data.tested_cells
        once = int((errors == 1).sum())
        assert once > 50
        assert unseen_rates(data)[stored] == pytest.approx(unseen, rel=4 / np.sqrt(once))


def test_where_one_value_was_stored_what_it_left_unseen_serves_for_the_other(
    planted: ModuleType, tmp_path: Path
) -> None:
    geometry = planted.small_geometry()
    weak = planted.random_weak(geometry, 8000)
    weak = WeakCells(weak.cell, np.full(8000, 0.05), np.full(8000, 0.05))
    for pattern in ("0xFF", "0xAA"):
        data = collect(
            planted.profile(tmp_path / pattern, geometry, weak, (pattern,), rounds=8), planted.POINT, NOMINAL
        )
        expected = 0.05 * (8000 - data.cell.size) / data.tested_cells
        assert unseen_rates(data) == pytest.approx((expected, expected), rel=0.12)


def test_one_stored_value_serves_for_the_other(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    weak = WeakCells(np.array([10]), np.array([0.1]), np.array([1.0]))
    profile = planted.profile(tmp_path / "dimm", geometry, weak, ("0xFF",), rounds=10)
    found = measured_weak_cells(profile, planted.POINT, NOMINAL)
    assert (found.flip_zero[0], found.flip_one[0]) == (1.0, 1.0)


def test_banks_restrict_and_what_was_not_tested_is_refused(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    profile = planted.profile(tmp_path / "dimm", geometry, planted.random_weak(geometry, 300))
    whole = collect(profile, planted.POINT, NOMINAL)
    second = collect(profile, planted.POINT, NOMINAL, banks=[1])
    assert np.array_equal(second.cell, whole.cell[geometry.bank(whole.cell) == 1])
    assert second.tested_cells == geometry.bank_bits
    with pytest.raises(FitError, match="bank 7 was not tested"):
        collect(profile, planted.POINT, NOMINAL, banks=[7])
    with pytest.raises(FitError, match="has no point at 1200 mV"):
        collect(profile, OperatingPoint(vdd_mv=1200, trcd_ps=7500), NOMINAL)
    with pytest.raises(FitError, match="operating_point writes"):
        collect(profile, planted.POINT, WriteCondition.OPERATING_POINT)


def test_mixed_access_modes_and_contradicting_bits(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    cells = CellCounts(np.array([3]), np.array([2], np.uint16), np.array([1], np.uint8))
    record = planted.record(geometry, cells, pattern=Pattern.parse("0xFF"))
    mixed = Profile.create(tmp_path / "mixed", planted.header(geometry, 2))
    mixed.append(record, cells)
    mixed.append(record.model_copy(update={"index": 1, "access_mode": AccessMode.LINEAR}), cells)
    with pytest.raises(FitError, match="access modes"):
        collect(mixed, planted.POINT, NOMINAL)
    other = Profile.create(tmp_path / "other", planted.header(geometry, 1))
    with pytest.raises(ProfileError, match="store other bits than its pattern"):
        other.append(record.model_copy(update={"pattern": Pattern.parse("0x55")}), cells)


def test_a_buffer_of_data_gives_cells_but_no_classes(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    cells = CellCounts(np.array([3, 9]), np.array([2, 1], np.uint16), np.array([1, 0], np.uint8))
    record = planted.record(geometry, cells).model_copy(update={"pattern": Pattern(kind=PatternKind.BUFFER)})
    profile = Profile.create(tmp_path / "dimm", planted.header(geometry, 1))
    profile.append(record, cells)
    assert measured_weak_cells(profile, planted.POINT, NOMINAL).flip_one.tolist() == [0.5, 0.25]
    with pytest.raises(FitError, match="data buffer"):
        collect(profile, planted.POINT, NOMINAL).stored_classes()
