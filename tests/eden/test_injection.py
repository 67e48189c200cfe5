"""The fast sampler is exact: rate, independence, position, direction; and it repeats for the same seed."""

import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eden import injection
from eden.injection import flip_uniform, flip_weak_cells
from eden.precision import Precision
from profiles.cells import WeakCells
from profiles.errors import NetworkError

RATES = [1e-5, 3e-4, 1e-3, 0.02, 0.3, 0.9]  # the last is drawn by what does not flip


def flipped_bits(size: int, rate: float, seed: int) -> np.ndarray:
    buffer = np.zeros(size, np.uint8)
    flip_uniform(buffer, buffer, rate, rate, seed)
    return np.flatnonzero(np.unpackbits(buffer, bitorder="little"))


@pytest.mark.parametrize("rate", RATES)
def test_the_number_of_flips_is_binomial(rate: float) -> None:
    size = max(1000, int(5 / rate / 8))
    counts = np.array([flipped_bits(size, rate, seed).size for seed in range(300)])
    bits = size * 8
    assert stats.binomtest(int(counts.sum()), bits * 300, rate).pvalue > 1e-4
    dispersion = counts.var(ddof=1) * 299 / (bits * rate * (1 - rate))
    assert 1e-4 < stats.chi2.cdf(dispersion, 299) < 1 - 1e-4


@pytest.mark.parametrize("rate", RATES)
def test_gaps_between_flips_are_geometric(rate: float) -> None:
    bits = int(2e4 / rate) if rate < 0.5 else 40_000
    gaps = np.diff(flipped_bits(min(bits // 8, 1 << 25), rate, 11))
    edges = np.unique(stats.geom.ppf(np.linspace(0, 1, 21)[:-1], rate)).clip(min=0)
    observed = np.histogram(gaps, [*edges, np.inf])[0]
    expected = np.diff([*stats.geom.cdf(edges - 1, rate), 1.0]) * gaps.size
    keep = expected > 5
    assert stats.chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()).pvalue > 1e-4
    neighbours = np.corrcoef(gaps[:-1], gaps[1:])[0, 1]
    assert abs(neighbours) < 4.5 / np.sqrt(gaps.size)


def test_every_position_flips_equally_often() -> None:
    flips = np.zeros(256)
    for seed in range(4000):
        buffer = np.zeros(32, np.uint8)
        flip_uniform(buffer, buffer, 0.02, 0.02, seed)
        flips += np.unpackbits(buffer, bitorder="little")
    assert stats.chisquare(flips).pvalue > 1e-4


def test_neighbouring_seeds_give_independent_flips() -> None:
    together = sum(
        np.intersect1d(flipped_bits(4096, 0.01, s), flipped_bits(4096, 0.01, s + 1)).size for s in range(200)
    )
    assert stats.binomtest(together, 200 * 4096 * 8, 1e-4).pvalue > 1e-4


@pytest.mark.parametrize(("rate_zero", "rate_one"), [(0.02, 0.005), (0.0, 0.01), (0.03, 0.0)])
def test_the_stored_bit_decides_the_rate(rate_zero: float, rate_one: float) -> None:
    stored = np.random.default_rng(3).integers(0, 256, 200_000, dtype=np.uint8)
    buffer = stored.copy()
    flips = flip_uniform(buffer, buffer, rate_zero, rate_one, 5)
    ones = int(np.unpackbits(stored).sum())
    up = int(np.unpackbits(buffer & ~stored).sum())
    down = int(np.unpackbits(stored & ~buffer).sum())
    assert (up, down) == (flips.zero_to_one, flips.one_to_zero)
    assert stats.binomtest(up, stored.size * 8 - ones, rate_zero).pvalue > 1e-4
    assert stats.binomtest(down, ones, rate_one).pvalue > 1e-4


@pytest.mark.parametrize("rate", [1e-6, 1e-4, 0.01, 0.5, 0.97])
def test_the_number_a_block_draws_is_binomial_to_64_bits(rate: float) -> None:
    thresholds = injection._binomial_thresholds(rate)
    bits = injection.BLOCK_BITS
    expected = stats.binom.cdf(np.arange(thresholds.size), bits, min(rate, 1 - rate))
    assert np.abs(thresholds / 2.0**64 - expected).max() < 1e-10  # what scipy itself is good for
    assert (np.diff(thresholds.astype(object)) >= 0).all()
    assert stats.binom.sf(thresholds.size, bits, min(rate, 1 - rate)) < 2.0**-60  # what is cut off


@pytest.mark.parametrize("precision", list(Precision))
def test_every_bit_of_an_element_flips_at_its_rate_in_both_directions(precision: Precision) -> None:
    elements, up_rate, down_rate = 300_000, 0.011, 0.003
    stored = np.random.default_rng(1).integers(0, 256, precision.stored_bytes(elements), dtype=np.uint8)
    read = np.zeros_like(stored)
    flip_uniform(stored, read, up_rate, down_rate, 8)
    before, after = (np.unpackbits(b, bitorder="little").reshape(-1, precision.bits) for b in (stored, read))
    for bit in range(precision.bits):
        zeros = before[:, bit] == 0
        assert stats.binomtest(int(after[zeros, bit].sum()), int(zeros.sum()), up_rate).pvalue > 1e-5
        assert (
            stats.binomtest(int((~zeros).sum() - after[~zeros, bit].sum()), int((~zeros).sum()), down_rate).pvalue
            > 1e-5
        )


@pytest.mark.parametrize("rate", [0.01, 0.2])
def test_neighbours_flip_independently_within_and_across_blocks(rate: float) -> None:
    flips = np.zeros(40 * injection.BLOCK_BITS, bool)
    flips[flipped_bits(flips.size // 8, rate, 21)] = True
    for distance in (1, 2, 7, 8, 63, 64, 65, injection.BLOCK_BITS, 3 * injection.BLOCK_BITS):
        both = int((flips[distance:] & flips[:-distance]).sum())
        assert stats.binomtest(both, flips.size - distance, rate**2).pvalue > 1e-5, distance
    edges = flips.reshape(40, -1)[:, :100]  # a block's first bits are like any others
    assert stats.binomtest(int(edges.sum()), edges.size, rate).pvalue > 1e-5


@pytest.mark.parametrize(("rate_zero", "rate_one"), [(0.01, 0.01), (0.001, 0.02)])
def test_threads_and_buffers_change_nothing(rate_zero: float, rate_one: float) -> None:
    stored = np.random.default_rng(5).integers(0, 256, 5_000_003, dtype=np.uint8)
    found = {}
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        read = np.zeros_like(stored)
        flips = flip_uniform(stored, read, rate_zero, rate_one, 99)
        found[threads] = (read.tobytes(), flips)
    torch.set_num_threads(1)
    assert found[1] == found[2] == found[3]
    in_place = stored.copy()
    assert flip_uniform(in_place, in_place, rate_zero, rate_one, 99) == found[1][1]
    assert in_place.tobytes() == found[1][0]


FORKS = """
import os, numpy as np, torch
from eden.injection import flip_uniform
torch.set_num_threads(2)
stored = np.zeros(4_000_000, np.uint8)
before = flip_uniform(stored, stored.copy(), 1e-3, 1e-3, 1)
child = os.fork()
same = flip_uniform(stored, stored.copy(), 1e-3, 1e-3, 1) == before
if child == 0:
    os._exit(0 if same else 1)
assert same
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_process_that_was_forked_has_helpers_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORKS], check=True, timeout=60, cwd=Path(__file__).parents[2])


def test_buffers_of_any_size_share_the_helpers() -> None:
    injection._helpers.cache_clear()
    torch.set_num_threads(6)
    for megabytes in (2, 3, 5, 9):
        buffer = np.zeros(megabytes << 20, np.uint8)
        flip_uniform(buffer, buffer, 1e-4, 1e-4, 1)
    torch.set_num_threads(1)
    assert sum(thread.name.startswith("eden flips") for thread in threading.enumerate()) <= 5


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 5000), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**63 - 1))
def test_a_buffer_of_any_size_flips_as_the_start_of_a_longer_one(size: int, zero: float, one: float, seed: int) -> None:
    stored = np.random.default_rng(6).integers(0, 256, 6000, dtype=np.uint8)
    longer, shorter = np.zeros_like(stored), np.zeros(size, np.uint8)
    flip_uniform(stored, longer, zero, one, seed)
    flips = flip_uniform(stored[:size], shorter, zero, one, seed)
    assert np.array_equal(longer[:size], shorter)
    assert flips.zero_to_one == np.bitwise_count(shorter & ~stored[:size]).sum()
    assert flips.one_to_zero == np.bitwise_count(~shorter & stored[:size]).sum()


def test_the_same_bits_on_every_machine() -> None:
    """What one machine drew; integers decide, so that every other must draw the same."""
    buffer = np.arange(10_000, dtype=np.uint32).view(np.uint8).copy()
    flip_uniform(buffer, buffer, 0.003, 0.6, 1234)
    assert hashlib.sha256(buffer.tobytes()).hexdigest()[:16] == "f72ecc4ebe77be4d"


def test_certain_and_impossible_flips() -> None:
    buffer = np.zeros(100, np.uint8)
    assert flip_uniform(buffer, buffer, 1.0, 1.0, 0).zero_to_one == 800
    assert (buffer == 255).all()
    assert flip_uniform(buffer, buffer, 1.0, 0.0, 0).total == 0
    assert flip_uniform(np.zeros(0, np.uint8), np.zeros(0, np.uint8), 0.5, 0.5, 0).total == 0
    assert flip_uniform(buffer, buffer, 1e-18, 1e-18, 0).total == 0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**63 - 1), st.floats(1e-6, 1.0))
def test_the_same_seed_flips_the_same_bits(seed: int, rate: float) -> None:
    assert np.array_equal(flipped_bits(500, rate, seed), flipped_bits(500, rate, seed))


def test_weak_cells_flip_by_their_own_probability_and_no_others_do() -> None:
    stored = np.array([0b0000_0010, 0xFF, 0x00], np.uint8)
    weak = WeakCells(np.array([0, 1, 9, 20]), np.array([0.3, 1.0, 1.0, 1.0]), np.array([0.0, 0.6, 0.0, 0.0]))
    seen = np.zeros(24)
    for seed in range(3000):
        buffer = stored.copy()
        flip_weak_cells(buffer, weak, seed)
        seen += np.unpackbits(buffer ^ stored, bitorder="little")
    assert seen[20] == 3000
    assert seen[9] == 0
    assert stats.binomtest(int(seen[0]), 3000, 0.3).pvalue > 1e-4
    assert stats.binomtest(int(seen[1]), 3000, 0.6).pvalue > 1e-4
    assert seen.sum() == seen[[0, 1, 20]].sum()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(NetworkError, match=r"1\.5 is not within 0\.\.1"):
        flip_uniform(np.zeros(1, np.uint8), np.zeros(1, np.uint8), 1.5, 0.0, 0)
    with pytest.raises(NetworkError, match="outside a tensor of 8 bits"):
        flip_weak_cells(np.zeros(1, np.uint8), WeakCells(np.array([8]), np.ones(1), np.ones(1)), 0)
    with pytest.raises(NetworkError, match="two flat buffers of one size"):
        flip_uniform(np.zeros(4, np.uint8), np.zeros(8, np.uint8), 0.5, 0.5, 0)
    with pytest.raises(NetworkError, match="without gaps"):
        flip_uniform(np.zeros(8, np.uint8)[::2], np.zeros(4, np.uint8), 0.5, 0.5, 0)
