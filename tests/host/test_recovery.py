"""A profile scanned from the mock board gives back its chips' own parameters, within their intervals.

At a point where some 3 of 1,000 cells are weak, with 0x00 and 0xFF, so that no neighbour differs. The truth is read
from the preset (by `expectation`, apart from the chip model's integers) and, for the data lines' factors, which a seed
puts into an order of its own, from the chip itself.
"""

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import gammaln, logsumexp
from scipy.stats import binomtest

from host.boards import open_board
from host.chip_presets import PRESETS, Preset, build_chip
from host.plan import ScanPlan
from host.scan import scan
from profiles.error_models import CrossedModel
from profiles.fit import fit_population
from profiles.lines import Crossing
from profiles.pattern import Pattern
from profiles.population import Population, collect
from profiles.schema import OperatingPoint, WriteCondition
from tests.host import expectation

ROWS, ROUNDS, SEED = 96, 8, 5
TRCD_PS, WEAK_FRACTION = 10_000, 3e-3

ALL_AT_ONCE = 2.99  # standard errors within which all 18 values of this file lie with 95 % (Bonferroni)


def operating_point(preset: Preset) -> OperatingPoint:
    """Where the weak fraction comes nearest `WEAK_FRACTION`."""
    rates = {vdd: expectation.weak_fraction(preset, vdd, TRCD_PS) for vdd in range(950, 1300, 2)}
    return OperatingPoint(
        vdd_mv=min(rates, key=lambda vdd: abs(np.log(max(rates[vdd], 1e-12) / WEAK_FRACTION))), trcd_ps=TRCD_PS
    )


def row_classes(counts: np.ndarray, banks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share and factor of the weak rows, and spread of the rows' factors, by maximum likelihood; their standard errors.

    Rows of a bank are of two classes, whose mean factor is 1, times a log-normal factor; each bank has its own rate.
    """
    quantiles = np.array(expectation._lognormal(1.0, 64))
    normal = np.log(quantiles) - np.log(quantiles).mean()

    def loss(position: np.ndarray) -> float:
        share, factor, sigma = 1 / (1 + np.exp(-position[0])), np.exp(position[1]), np.exp(position[2])
        strong = (1 - share * factor) / (1 - share)
        if strong <= 0.01:
            return 1e12
        spread = np.exp(sigma * normal)
        spread /= spread.mean()
        levels = np.concatenate([factor * spread, strong * spread])
        weights = np.log(np.repeat([share, 1 - share], spread.size) / spread.size)
        mean = np.exp(position[3 + banks])[:, None] * levels
        terms = weights + counts[:, None] * np.log(mean) - mean - gammaln(counts + 1)[:, None]
        return -float(logsumexp(terms, axis=1).sum())

    by_bank = np.bincount(banks, counts) / np.bincount(banks)
    best = None
    for share, factor in ((0.1, 4.0), (0.5, 1.8), (0.2, 2.5)):
        start = np.concatenate([[np.log(share / (1 - share)), np.log(factor), np.log(0.2)], np.log(by_bank)])
        found = minimize(loss, start, method="BFGS")
        best = found if best is None or found.fun < best.fun else best
    step = 1e-3
    size = best.x.size
    hessian = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            a, b = np.eye(size)[i] * step, np.eye(size)[j] * step
            corners = loss(best.x + a + b) - loss(best.x + a - b) - loss(best.x - a + b) + loss(best.x - a - b)
            hessian[i, j] = corners / (4 * step**2)
    return best.x[:3], np.sqrt(np.diag(np.linalg.inv(hessian)))[:3]


def check_lanes(data: Population, crossing: Crossing, truth: np.ndarray) -> None:
    """95 % intervals of the lines' shares times their number, by bitlines: few weak ones hold a fifth of the errors."""
    width = data.geometry.data_width
    failing = crossing.bitlines.failing_cells.reshape(-1, width).astype(float)
    share = failing.sum(axis=0) / failing.sum() * width
    error = failing.std(axis=0) * np.sqrt(len(failing)) / failing.sum() * width
    inside = np.abs(share - truth) <= 1.96 * error
    assert binomtest(int(inside.sum()), width, 0.95).pvalue > 1e-3
    assert np.corrcoef(share, truth)[0, 1] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("vendor", ["A", "B", "C"])
def test_a_scan_gives_back_the_presets_parameters(vendor: str, tmp_path: Path) -> None:
    preset, board = PRESETS[vendor], open_board(f"mock:{vendor}:{SEED}")
    point = operating_point(preset)
    plan = ScanPlan.model_validate(
        {
            "grid": [{"trcd_ps": point.trcd_ps, "vdd_mv": [point.vdd_mv]}],
            "patterns": ["0x00", "0xFF"],
            "rounds": ROUNDS,
            "banks": list(range(board.geometry.banks)),
            "rows": {"count": ROWS},
        }
    )
    data = collect(scan(board, plan, tmp_path / "dimm"), point, WriteCondition.NOMINAL)
    assert {record.pattern for record in data.records} == {Pattern.parse("0x00"), Pattern.parse("0xFF")}
    report = fit_population(data, point, WriteCondition.NOMINAL)
    assert report.chosen == 4
    model, intervals = report.model, report.best.intervals()
    assert isinstance(model, CrossedModel)

    for name, truth in zip(("flip_zero", "flip_one"), expectation.flips(preset, point.vdd_mv, TRCD_PS), strict=True):
        low, high = report.best.intervals()[name]
        print(f"{vendor} {name}: {low:.4f} .. {high:.4f}, preset {truth:.4f}")
        assert low <= truth <= high

    low, high = (-np.expm1(-limit) for limit in intervals["pooled_hazard"])
    truth = expectation.weak_fraction(preset, point.vdd_mv, TRCD_PS)
    print(f"{vendor} weak fraction: {low:.3g} .. {high:.3g}, preset {truth:.3g}")
    assert low <= truth <= high

    crossing = Crossing.of(data)
    counts = crossing.wordlines.failing_cells.astype(float)
    estimate, error = row_classes(counts, crossing.wordlines.line // data.geometry.rows)
    known = (np.log(preset.weak_row_share / (1 - preset.weak_row_share)), np.log(preset.weak_row_factor))
    for name, value, spread, truth in zip(
        ("weak-row share (logit)", "weak-row factor (log)", "row spread (log)"),
        estimate, error, (*known, np.log(preset.row_sigma)), strict=True,
    ):  # fmt: skip
        print(f"{vendor} {name}: {value:.3f} +- {1.96 * spread:.3f}, preset {truth:.3f}")
        assert abs(value - truth) <= ALL_AT_ONCE * spread

    chip = build_chip(board.geometry, preset, SEED)  # the same seed is the same chip
    width = board.geometry.data_width
    check_lanes(data, crossing, np.bincount(chip.lane, minlength=width) * width / chip.lane.size)
