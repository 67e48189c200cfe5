"""What is expected of a tensor's flips: unbiased, wide enough, and exact where a chain of writes can be followed."""

import numpy as np
import pytest
import torch

from host import expectation
from host.expectation import CellRates, Expected, FlipExpectation

CELLS, TRIALS = 4000, 16


def planted(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Chances of being read wrong, most of them too low to show in a few reads; [2, cells]."""
    truth = np.where(rng.random((2, CELLS)) < 0.1, rng.uniform(0.1, 0.9, (2, CELLS)), rng.uniform(0, 0.02, (2, CELLS)))
    errors = rng.binomial(TRIALS, truth)
    return truth, errors


def rates_of(errors: np.ndarray) -> CellRates:
    seen = np.flatnonzero(errors.sum(axis=0))
    errors = errors[:, seen].astype(float)
    none = np.zeros(seen.size)
    return CellRates(seen, errors / TRIALS, errors / TRIALS**2, none, none, 1 / TRIALS)


def test_intervals_hold_and_alarms_are_as_rare_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over scans and runs of planted cells, without any tolerance beyond what counts tell."""
    monkeypatch.setattr(expectation, "MODEL_TOLERANCE", 0.0)
    rng = np.random.default_rng(1)
    outside, early, ratio, runs, reads = 0, 0, [], 400, 5
    for _ in range(runs):
        truth, errors = planted(rng)
        data = rng.integers(0, 256, CELLS // 8, np.uint8)
        follow = FlipExpectation({"x": rates_of(errors)})
        bits = np.unpackbits(data, bitorder="little")
        follow.stored("x", data)
        for _ in range(reads):
            follow.loaded("x", data, int((rng.random(CELLS) < truth[bits, np.arange(CELLS)]).sum()))
        low, high = Expected.plus(Expected(), _unsettled(follow.expected["x"])).interval
        outside += not low <= follow.flips["x"] <= high
        early += follow.least_likely()[1] < 0.05
        ratio.append(follow.flips["x"] / follow.expected["x"].mean)
    assert np.mean(ratio) == pytest.approx(1, abs=4 * np.std(ratio) / np.sqrt(runs))
    assert outside <= 0.05 * runs + 3 * np.sqrt(0.05 * runs)
    assert early <= 0.05 * runs + 3 * np.sqrt(0.05 * runs)
    assert outside > 0, "an interval that always holds says nothing"


def _unsettled(expected: Expected) -> Expected:
    """The same where reads leave nothing in the cells."""
    return Expected(expected.mean, expected.mean, expected.deviation, expected.weight)


def test_a_drift_of_a_third_is_an_alarm() -> None:
    rng = np.random.default_rng(2)
    truth, errors = planted(rng)
    follow, data = FlipExpectation({"x": rates_of(errors)}), np.zeros(CELLS // 8, np.uint8)
    follow.stored("x", data)
    for _ in range(20):
        follow.loaded("x", data, int((rng.random(CELLS) < 1.33 * truth[0]).sum()))
    assert follow.least_likely() == ("x", pytest.approx(0, abs=1e-6))
    follow.begin()
    assert follow.least_likely()[1] == 1.0


def test_failed_writes_are_followed_from_write_to_write() -> None:
    """Against cells that keep what was there with the chance of their write, over a row of contents."""
    rng = np.random.default_rng(3)
    cell, none = np.arange(64), np.zeros((2, 64))
    write = rng.uniform(0.1, 0.9, 64)
    follow = FlipExpectation({"x": CellRates(cell, none, none, write, write / TRIALS, 1 / TRIALS)})
    contents = [rng.integers(0, 256, 8, np.uint8) for _ in range(3)]
    contents += [contents[-1], contents[0][:5]]  # the same again, and a shorter one
    runs = 20_000
    held, wrong = np.zeros((runs, 64), np.uint8), []
    for data in contents:
        bits = np.unpackbits(data, bitorder="little")
        fails = rng.random((runs, bits.size)) < write[: bits.size]
        held[:, : bits.size] = np.where(fails, held[:, : bits.size], bits)
        wrong.append((held[:, : bits.size] != bits).sum(axis=1))
        before = follow.expected["x"].mean
        follow.stored("x", data)
        follow.loaded("x", data, 0)
        told = follow.expected["x"].mean - before
        assert told == pytest.approx(wrong[-1].mean(), abs=5 * wrong[-1].std() / np.sqrt(runs))
    assert follow.expected["x"].mean == pytest.approx(np.sum(wrong, axis=0).mean(), rel=0.01)


def test_clean_cells_allow_the_few_flips_that_a_scan_can_have_missed() -> None:
    none = np.zeros((2, 0))
    follow = FlipExpectation({"x": CellRates(np.zeros(0, np.int64), none, none, none[0], none[0], 1 / TRIALS)})
    data = torch.zeros(8, dtype=torch.uint8).numpy()
    follow.stored("x", data)
    for _ in range(TRIALS):
        follow.loaded("x", data, 0)
    assert follow.expected["x"].interval[0] == 0
    assert follow.expected["x"].interval[1] in range(1, 6)
    assert follow.expected["x"].chance_of(3) > 1e-3 > follow.expected["x"].chance_of(15)


def test_reads_after_the_first_may_find_what_earlier_ones_left() -> None:
    """The lower end covers a cell that has settled between its values; a rewrite starts anew."""
    rates = CellRates(np.array([0]), np.array([[0.8], [0.4]]), np.zeros((2, 1)), np.zeros(1), np.zeros(1), 1 / TRIALS)
    follow, data = FlipExpectation({"x": rates}), np.zeros(8, np.uint8)
    follow.stored("x", data)
    follow.loaded("x", data, 0)
    follow.loaded("x", data, 0)
    follow.stored("x", data)
    follow.loaded("x", data, 0)
    assert follow.expected["x"].mean == pytest.approx(2.4)
    assert follow.expected["x"].settled == pytest.approx(0.8 + 0.8 / 1.2 + 0.8)
