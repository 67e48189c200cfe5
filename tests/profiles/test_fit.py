"""Fits give back the planted truth, and refuse what the data do not determine."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from profiles.cells import CellCounts, WeakCells
from profiles.error_models import BitlineModel, DataDependentModel, ErrorModel, UniformModel, WordlineModel
from profiles.errors import FitError
from profiles.fit import FitReport, fit
from profiles.geometry import Geometry
from profiles.laws import distinct_rows
from profiles.pattern import Pattern
from profiles.population import collect
from profiles.schema import Region, WriteCondition
from profiles.storage import Profile

NOMINAL = WriteCondition.NOMINAL
GEOMETRY = Geometry(banks=2, rows=256, columns=64, data_width=16, subarray_rows=128)
SHARED = {"geometry": GEOMETRY, "banks": (0, 1)}


def line_parameters(count: int, mean: float) -> dict[str, object]:
    rng = np.random.default_rng(11)
    return {
        "line": np.arange(count),
        "weak_fraction": np.clip(rng.gamma(0.7, mean / 0.7, count), 0, 1),
        "flip_probability": rng.uniform(0.2, 0.6, count),
        "pooled_weak_fraction": mean,
        "pooled_flip_probability": 0.4,
    }


TRUTH: list[ErrorModel] = [
    UniformModel(**SHARED, weak_fraction=0.02, flip_probability=0.3),
    BitlineModel(**SHARED, **line_parameters(2 * GEOMETRY.bitlines, 0.05)),
    WordlineModel(**SHARED, **line_parameters(2 * GEOMETRY.rows, 0.02)),
    DataDependentModel(**SHARED, weak_fraction=0.02, flip_zero=0.2, flip_one=0.5),
]


def fitted(planted: ModuleType, path: Path, model: ErrorModel, seed: int = 1, **options: object) -> FitReport:
    weak = model.sample_weak_cells(0, model.geometry.cells, seed)
    profile = planted.profile(path, model.geometry, weak, seed=seed, **options)
    return fit(profile, planted.POINT, NOMINAL)


@given(st.integers(0, 99), st.integers(0, 60), st.integers(1, 4), st.booleans())
def test_distinct_rows_are_those_of_numpy(seed: int, count: int, columns: int, floating: bool) -> None:
    rows = np.random.default_rng(seed).integers(-2, 3, (count, columns)) * (0.1 if floating else 1)
    distinct, which, alike = distinct_rows(rows)
    expected = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    for found, wanted in zip((distinct, which, alike), expected, strict=True):
        assert np.array_equal(found, wanted.reshape(found.shape))


@pytest.mark.parametrize("truth", TRUTH, ids=lambda model: f"model{model.number}")
def test_the_planted_model_is_chosen_and_fits(planted: ModuleType, tmp_path: Path, truth: ErrorModel) -> None:
    report = fitted(planted, tmp_path / "dimm", truth)
    assert report.chosen == truth.number
    assert report.anywhere is report.fits[3 if truth.number == 3 else 0].model
    assert not report.near_tie
    assert report.model.ber() == pytest.approx(truth.ber(), rel=0.05)
    across = report.best.bitlines if truth.number == 2 else report.best.wordlines
    assert across.p_value > 1e-4
    assert report.best.expected_cells.sum() == pytest.approx(report.failing_cells, rel=0.02)


@pytest.mark.parametrize("truth", [TRUTH[0], TRUTH[3]], ids=["model0", "model3"])
def test_estimates_lie_within_their_standard_errors(planted: ModuleType, tmp_path: Path, truth: ErrorModel) -> None:
    """Over 20 draws, the standardised deviations of each parameter look like a standard normal's."""
    small = Geometry(banks=1, rows=64, columns=64, data_width=16, subarray_rows=64)
    model = type(truth)(**{**vars(truth), "geometry": small, "banks": (0,)})
    scores: dict[str, list[float]] = {}
    for seed in range(20):
        best = fitted(planted, tmp_path / str(seed), model, seed, rounds=4).fits[model.number]
        for name, error in best.standard_errors.items():
            scores.setdefault(name, []).append((getattr(best.model, name) - getattr(model, name)) / error)
    assert len(scores) == 2 + (model.number == 3)
    for values in scores.values():
        assert np.abs(values).max() < 4
        assert 0.5 < np.std(values) < 1.6


@pytest.mark.parametrize("number", [1, 2])
def test_lines_give_back_their_own_parameters(planted: ModuleType, tmp_path: Path, number: int) -> None:
    truth = TRUTH[number]
    best = fitted(planted, tmp_path / "dimm", truth).fits[number]
    model = best.model
    assert isinstance(model, type(truth))
    assert np.array_equal(model.line, truth.line)
    for name in ("weak_fraction", "flip_probability"):
        score = (getattr(model, name) - getattr(truth, name)) / best.standard_errors[name]
        assert abs(score.mean()) < 0.15
        assert score.std() == pytest.approx(1, abs=0.15)
        low, high = best.intervals()[name]
        covered = (low <= getattr(truth, name)) & (getattr(truth, name) <= high)
        assert covered.mean() == pytest.approx(0.95, abs=0.03)


def test_regions_and_rounds_that_differ_are_fitted_together(planted: ModuleType, tmp_path: Path) -> None:
    """Some rows are read 4 times, some 20: the general solution, beside the closed form, finds the same truth."""
    truth = TRUTH[0]
    weak = truth.sample_weak_cells(0, GEOMETRY.cells, 4)
    profile = Profile.create(tmp_path / "dimm", planted.header(GEOMETRY, 2))
    rng = np.random.default_rng(4)
    for index, (rows, rounds) in enumerate(((256, 4), (128, 16))):
        region = Region(banks=(0, 1), row_start=0, row_count=rows)
        pattern = Pattern.parse("0xAA")
        cells = planted.counts(GEOMETRY, weak, pattern, region, rounds, rng)
        profile.append(planted.record(GEOMETRY, cells, index, pattern=pattern, region=region, rounds=rounds), cells)
    report = fit(profile, planted.POINT, NOMINAL)
    assert report.chosen == 0
    best = report.best
    for name, error in best.standard_errors.items():
        assert abs(getattr(best.model, name) - getattr(truth, name)) < 4 * error
    assert best.expected_cells.sum() == pytest.approx(report.failing_cells, rel=0.02)


@pytest.mark.parametrize("number", [0, 3])
def test_log_likelihood_is_that_of_the_cells_one_by_one(planted: ModuleType, tmp_path: Path, number: int) -> None:
    """Summed over every tested cell from the definition, and maximised by a general-purpose optimiser."""
    geometry = Geometry(banks=1, rows=16, columns=16, data_width=8, subarray_rows=16)
    truth = UniformModel(geometry=geometry, banks=(0,), weak_fraction=0.1, flip_probability=0.4)
    profile = planted.profile(
        tmp_path / "dimm", geometry, truth.sample_weak_cells(0, geometry.cells, 1), ("0x0F", "0xFF"), rounds=3
    )
    data = collect(profile, planted.POINT, NOMINAL)
    ones = 3 * (1 + (np.arange(geometry.cells) % 8 < 4))
    trials = np.stack([6 - ones, ones])
    errors = np.zeros((2, geometry.cells), np.int64)
    errors[:, data.cell] = data.errors_zero, data.errors_one

    def cost(position: np.ndarray) -> float:
        weak, *flips = position if number == 3 else (position[0], position[1], position[1])
        flip = np.array(flips)[:, None]
        reads = (flip**errors * (1 - flip) ** (trials - errors)).prod(axis=0)
        return -np.log(weak * reads + (1 - weak) * (errors.sum(axis=0) == 0)).sum()

    best = fit(profile, planted.POINT, NOMINAL).fits[number]
    estimate = np.array([getattr(best.model, name) for name in best.standard_errors])
    assert best.log_likelihood == pytest.approx(-cost(estimate), rel=1e-9)
    bounds = [(1e-6, 1 - 1e-6)] * estimate.size
    assert minimize(cost, estimate * 1.1, bounds=bounds).fun >= -best.log_likelihood - 1e-6


def test_what_the_rounds_do_not_determine_is_refused(planted: ModuleType, tmp_path: Path) -> None:
    weak = TRUTH[0].sample_weak_cells(0, GEOMETRY.cells, 1)
    with pytest.raises(FitError, match="read once"):
        fit(planted.profile(tmp_path / "once", GEOMETRY, weak, ("0xFF",), rounds=1), planted.POINT, NOMINAL)
    none = WeakCells(weak.cell[:0], weak.flip_zero[:0], weak.flip_one[:0])
    with pytest.raises(FitError, match="no cell failed"):
        fit(planted.profile(tmp_path / "none", GEOMETRY, none), planted.POINT, NOMINAL)
    cells = CellCounts(weak.cell[:5], np.ones(5, np.uint16), np.ones(5, np.uint8))
    profile = Profile.create(tmp_path / "never twice", planted.header(GEOMETRY, 1))
    profile.append(planted.record(GEOMETRY, cells, pattern=Pattern.parse("0xFF")), cells)
    with pytest.raises(FitError, match="failed twice"):
        fit(profile, planted.POINT, NOMINAL)


def test_model_3_needs_both_stored_values(planted: ModuleType, tmp_path: Path) -> None:
    weak = TRUTH[0].sample_weak_cells(0, GEOMETRY.cells, 1)
    report = fit(planted.profile(tmp_path / "dimm", GEOMETRY, weak, ("0xFF",)), planted.POINT, NOMINAL)
    assert sorted(report.fits) == [0, 1, 2]
    assert sorted(report.unavailable) == [3, 4]
    assert "while it stored 0" in report.unavailable[3]


def test_cells_that_always_fail_and_only_in_one_direction(planted: ModuleType, tmp_path: Path) -> None:
    cell = np.arange(0, GEOMETRY.cells, 997)
    weak = WeakCells(cell, np.zeros(cell.size), np.ones(cell.size))
    report = fit(planted.profile(tmp_path / "dimm", GEOMETRY, weak), planted.POINT, NOMINAL)
    assert report.chosen == 3
    assert report.model.flip_zero == 0
    assert report.model.flip_one == pytest.approx(1, abs=1e-6)
    assert report.model.weak_fraction == pytest.approx(cell.size / GEOMETRY.cells, rel=1e-6)
    assert np.isfinite(report.best.log_likelihood)


def test_indistinguishable_data_choose_the_cheapest_model(planted: ModuleType, tmp_path: Path) -> None:
    """F_V0 and F_V1 that differ by less than the data can tell: Model 0."""
    truth = DataDependentModel(**SHARED, weak_fraction=0.0005, flip_zero=0.42, flip_one=0.45)
    report = fitted(planted, tmp_path / "dimm", truth)
    assert report.chosen == 0
    assert 3 in report.tied
    assert not report.certain
