"""Certificates: exact where exactness is known, never wrong more often than stated, and clear about what cannot be."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from eden import certificate_study as study
from eden.approximate import ApproximateNetwork
from eden.certificate import (
    BOUND_STEP,
    LOWEST_BOUND,
    Certificate,
    Population,
    certify,
    certify_map,
    drop_bound,
    lump_size,
    paired_losses,
    scaled_ladder,
    shows_drop_below,
    units_needed,
)
from eden.certificate_study import Outcome, SyntheticPopulation
from eden.datasets import Split
from eden.memory import ApproximateMemory, BitErrorMemory, ProfileMemory, ReliableMemory
from eden.placement import Placement
from eden.precision import Precision
from eden.tolerance import Sampling
from profiles.cells import WeakCells
from profiles.errors import NetworkError

CLASSES = 16
TARGET = 0.05


@pytest.fixture(scope="module")
def copying_network() -> ApproximateNetwork:
    """Returns its input."""
    layer = nn.Linear(CLASSES, CLASSES, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(CLASSES))
    network = ApproximateNetwork(layer, Precision.INT8)
    network.calibrate([torch.eye(CLASSES)])
    return network.eval()


@pytest.fixture(scope="module")
def images() -> Split:
    return Split(torch.eye(CLASSES).repeat(8, 1), torch.arange(CLASSES).repeat(8))


@pytest.fixture(scope="module")
def right(images: Split) -> torch.Tensor:
    return torch.ones(len(images), dtype=torch.bool)


# ---- the bound -------------------------------------------------------------------------------------------------------


@given(
    units=st.integers(1, 3000),
    lost=st.integers(0, 60),
    target=st.floats(1e-3, 0.9),
    confidence=st.floats(0.5, 0.999),
    seed=st.integers(0, 2**32 - 1),
    order=st.sampled_from(["mixed", "losses first"]),
)
@settings(deadline=None, max_examples=300)
def test_with_losses_of_0_and_1_it_is_clopper_and_pearson(
    units: int, lost: int, target: float, confidence: float, seed: int, order: str
) -> None:
    losses = np.zeros(units)
    losses[: min(lost, units)] = 1
    if order == "mixed":
        np.random.default_rng(seed).shuffle(losses)
    tail = stats.binom.cdf(losses.sum(), units, target)
    if abs(tail / (1 - confidence) - 1) > 1e-6:
        assert bool(shows_drop_below(losses, target, 1.0, confidence)) == (tail <= 1 - confidence)


@pytest.mark.parametrize(("lost", "units"), [(0, 1000), (4, 1000), (37, 1000), (3, 10_000)])
def test_the_bound_is_clopper_and_pearsons_to_its_step(lost: int, units: int) -> None:
    losses = np.zeros(units)
    losses[:lost] = 1
    exact = stats.beta.ppf(0.95, lost + 1, units - lost)
    assert exact <= drop_bound(losses, 1.0) <= exact / BOUND_STEP * (1 + 1e-9)


DISTRIBUTIONS: dict[str, tuple[float, ...]] = {
    "loss or nothing": (0, 1),
    "gains too": (-1, 0, 1),
    "small lumps": (0, 0.25, 0.5),
    "small, and a rare collapse": (-0.25, 0.1, 1),
    "all alike": (0.3, 0.3),
}


@pytest.mark.parametrize("values", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())
@pytest.mark.parametrize("lump", [0.35, 0.5, 1.0])
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9])
def test_no_distribution_is_shown_below_its_own_mean_more_often_than_stated(
    values: tuple[float, ...], lump: float, confidence: float
) -> None:
    """Every sample of seven units, with its probability: exact, for several distributions on each set of values."""
    target, units = 0.3, 7
    paths = np.array(list(itertools.product(range(len(values)), repeat=units)))
    shown = shows_drop_below(np.array(values)[paths], target, lump, confidence)
    for weights in _weights_with_mean(values, target):
        violated = np.prod(weights[paths], axis=1)[shown].sum()
        assert violated <= (1 - confidence) * (1 + 1e-9), weights


def _weights_with_mean(values: tuple[float, ...], mean: float) -> list[np.ndarray]:
    """Distributions on ``values`` of that mean: mixtures of those on two of them."""
    pairs = []
    for low, high in itertools.combinations(range(len(values)), 2):
        if values[low] <= mean <= values[high]:
            share = (mean - values[low]) / (values[high] - values[low]) if values[high] > values[low] else 0.5
            weights = np.zeros(len(values))
            weights[low], weights[high] = 1 - share, share
            pairs.append(weights)
    return pairs + [(first + second) / 2 for first, second in itertools.combinations(pairs, 2)]


def test_unfair_odds_would_be_noticed() -> None:
    """The same enumeration finds the guarantee broken where losses count half."""
    paths = np.array(list(itertools.product((0, 1), repeat=7)))
    shown = shows_drop_below(paths * 0.5, 0.3, 1.0, 0.8)
    assert np.prod(np.where(paths, 0.3, 0.7), axis=1)[shown].sum() > 0.2


@given(
    losses=st.lists(st.floats(-1, 1), min_size=1, max_size=400),
    target=st.floats(1e-4, 0.9999),
    lump=st.floats(0.01, 1),
)
@settings(deadline=None, max_examples=300)
def test_whatever_the_losses_it_answers(losses: list[float], target: float, lump: float) -> None:
    found = np.array(losses)
    shown = bool(shows_drop_below(found, target, lump))
    if found.min() >= target:
        assert not shown
    if found.size < units_needed(target) and found.min() >= 0:
        assert not shown
    assert LOWEST_BOUND <= drop_bound(found, lump) <= 1


def test_rows_are_judged_apart() -> None:
    rows = np.zeros((2, 3, 400))
    rows[1, 2, :40] = 1
    assert shows_drop_below(rows, 0.02, 1.0).tolist() == [[True] * 3, [True, True, False]]


def test_fewer_units_than_needed_show_nothing_and_as_many_do() -> None:
    needed = units_needed(0.01)
    assert needed == 299
    assert not shows_drop_below(np.zeros(needed - 1), 0.01, 1.0)
    assert shows_drop_below(np.zeros(needed), 0.01, 1.0)


@pytest.mark.parametrize(
    ("losses", "target", "lump", "words"),
    [
        ([0.0], 0.0, 1.0, "target drop 0.0"),
        ([0.0], 1.0, 1.0, "target drop 1.0"),
        ([0.0], float("nan"), 1.0, "target drop nan"),
        ([0.0], 0.1, 0.0, "lump 0.0"),
        ([1.5], 0.1, 1.0, "within -1..1"),
        ([float("nan")], 0.1, 1.0, "within -1..1"),
        ([], 0.1, 1.0, "at least one"),
    ],
)
def test_impossible_bounds_are_refused(losses: list[float], target: float, lump: float, words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        shows_drop_below(np.array(losses), target, lump)


# ---- planted truth ---------------------------------------------------------------------------------------------------


def synthetic() -> SyntheticPopulation:
    rate = SyntheticPopulation(np.ones(1)).rate_of(TARGET)
    return SyntheticPopulation(rate * 2 ** (np.arange(-8, 3) / 4))


def repeated(images: int, sampling: Sampling, repeats: int, bounds: dict[str, study.Shows]) -> dict[str, Outcome]:
    population = synthetic()
    return study.repeat(population, float(population.drops[8]), images, sampling, repeats, bounds)


@pytest.mark.parametrize(("draws", "batch"), [(1, 1), (3, 1), (2, 10)])
def test_the_planted_loss_is_what_samples_have(draws: int, batch: int) -> None:
    population = synthetic()
    assert population.drops[8] == pytest.approx(TARGET)
    samples = list(population.sample(np.random.default_rng(1), 40, 5000, Sampling(draws, batch)))
    for losses, drop in zip(samples, population.drops, strict=True):
        by_repeat = losses.mean(axis=1)
        assert abs(by_repeat.mean() - drop) < 4 * by_repeat.std(ddof=1) / np.sqrt(40)


@pytest.mark.parametrize(("images", "draws", "batch"), [(400, 1, 1), (400, 4, 1), (2000, 1, 5)])
def test_certificates_are_wrong_no_more_often_than_stated(images: int, draws: int, batch: int) -> None:
    outcome = repeated(images, Sampling(draws, batch, 3), 400, {"": study.by_certificate})[""]
    assert outcome.violated.sum() <= stats.binom.ppf(0.9999, 400, 0.05)
    assert outcome.median[0] >= 0.5


def test_images_that_share_errors_are_not_taken_for_independent() -> None:
    found = repeated(4000, Sampling(1, 20, 5), 300, {"units": study.by_certificate, "images": study.by_images_alone})
    assert found["units"].violated.sum() <= stats.binom.ppf(0.9999, 300, 0.05)
    assert found["images"].violations[1] > 0.05


@pytest.mark.prove
@pytest.mark.parametrize(
    ("images", "draws", "batch"), [(400, 1, 1), (400, 2, 1), (400, 4, 1), (1000, 16, 1), (4000, 1, 10), (2000, 4, 5)]
)
def test_thousands_of_certificates_are_wrong_no_more_often_than_stated(images: int, draws: int, batch: int) -> None:
    outcome = repeated(images, Sampling(draws, batch, 7), 5000, {"": study.by_certificate})[""]
    assert outcome.violations[2] <= 0.05
    assert outcome.median[1] >= 0.5


# ---- networks --------------------------------------------------------------------------------------------------------


def uniform(network: ApproximateNetwork, *rates: float) -> list[dict[str, float]]:
    return [{tensor.name: rate for tensor in network.tensors()} for rate in rates]


def test_the_ladder_is_climbed_to_the_first_rung_that_fails(
    copying_network: ApproximateNetwork, images: Split, right: torch.Tensor
) -> None:
    before, calls = copying_network.memory, []
    ladder = uniform(copying_network, 1e-5, 1e-4, 1e-3, 0.1, 0.2)
    arguments: Any = (copying_network, ladder, BitErrorMemory, images, right, TARGET, Sampling(2, 1, 1))
    found = certify(*arguments, progress=lambda done, total: calls.append((done, total)))
    assert [rung.holds for rung in found.rungs] == [True, True, True, False]
    assert found.certified is not None
    assert found.certified.rates == ladder[2]
    assert found.certified.ber == pytest.approx(1e-3)
    assert all(rung.holds == (rung.drop_high <= TARGET) and rung.drop <= rung.drop_high for rung in found.rungs)
    assert copying_network.memory is before
    assert calls[0] == (1, 5 * 128 * 2)
    assert calls[-1][0] == calls[-1][1]
    assert "at most 5 %" in found.claim
    assert "maps of the model" in found.claim
    assert certify(*arguments) == found
    assert Certificate.model_validate_json(found.model_dump_json()) == found


def test_nothing_is_certified_of_a_network_that_fails_at_once(
    copying_network: ApproximateNetwork, images: Split, right: torch.Tensor
) -> None:
    found = certify(copying_network, uniform(copying_network, 0.3), BitErrorMemory, images, right, TARGET)
    assert found.certified is None
    assert "nothing is shown" in found.claim


def test_each_image_and_draw_meets_a_memory_of_its_own(
    copying_network: ApproximateNetwork, images: Split, right: torch.Tensor
) -> None:
    seeds = []

    def memory_of(seed: int) -> ApproximateMemory:
        seeds.append(seed)
        return ReliableMemory()

    losses = paired_losses(copying_network, memory_of, images.first(30), right[:30], Sampling(3, 1, 1))
    assert losses.tolist() == [0.0] * 30
    assert len(set(seeds)) == 90
    by_batch = paired_losses(copying_network, memory_of, images.first(30), right[:30], Sampling(1, 8, 1))
    assert len(by_batch) == 4


def test_losses_count_from_the_baseline(copying_network: ApproximateNetwork, images: Split) -> None:
    wrong = Split(images.images, (images.labels + (torch.arange(len(images)) % 4 == 0)) % CLASSES)
    baseline = torch.arange(len(images)) % 2 == 0
    losses = paired_losses(copying_network, lambda _: ReliableMemory(), wrong, baseline, Sampling(1, 1))
    assert losses[:4].tolist() == [1.0, -1.0, 0.0, -1.0]


def test_on_one_map_each_image_has_the_cells_of_its_place(
    copying_network: ApproximateNetwork,
    images: Split,
    right: torch.Tensor,
    place_in_a_row: Callable[[dict[str, int]], dict[str, Placement]],
) -> None:
    held = 4
    placements = place_in_a_row({t.name: t.bits(held) for t in copying_network.tensors()})
    ifm = next(name for name in placements if name.endswith("ifm"))
    third = placements[ifm].first_cell + 3 * CLASSES * 8 + np.arange(CLASSES * 8)  # the last image's, all inverted
    memory = ProfileMemory(WeakCells(third, np.ones(third.size), np.ones(third.size)), placements, 1)
    once = Sampling(1, 1)
    losses = paired_losses(copying_network, lambda _: memory, images, right, once, held=held)
    assert losses.reshape(-1, held).mean(axis=0).tolist() == [0, 0, 0, 1]
    found = certify_map(copying_network, memory, 0.01, images, right, 0.4, once, held=held)
    assert found.population is Population.THIS_MAP
    assert found.rungs[0].drop == pytest.approx(0.25)
    assert found.certified is not None


def test_ladders_scale_the_joint_configuration() -> None:
    rungs = scaled_ladder({"a": 1e-3, "b": 0.2}, (0.5, 1, 2), 0.25)
    assert rungs == ({"a": 5e-4, "b": 0.1}, {"a": 1e-3, "b": 0.2}, {"a": 2e-3, "b": 0.25})


def test_lumps_shrink_with_evaluations() -> None:
    samplings = [Sampling(1, 1), Sampling(2, 1), Sampling(1, 4), Sampling(50, 1)]
    assert [lump_size(sampling) for sampling in samplings] == pytest.approx([1, 0.5**0.5, 0.5, 0.5])


def test_impossible_certificates_are_refused(
    copying_network: ApproximateNetwork, images: Split, right: torch.Tensor
) -> None:
    ladder = uniform(copying_network, 1e-4)

    def attempt(**changed: Any) -> None:
        given: dict[str, Any] = {"ladder": ladder, "data": images, "baseline_right": right, "target_drop": TARGET}
        certify(copying_network, memory_at=BitErrorMemory, **(given | changed))

    for changed, words in (
        ({"ladder": []}, "no rung"),
        ({"ladder": [{"other": 0.1}]}, "network has 2"),
        ({"ladder": uniform(copying_network, 1.5)}, "each of them one"),
        ({"ladder": uniform(copying_network, 1e-3, 1e-4)}, "does not ascend"),
        ({"baseline_right": right[:5]}, "5 results"),
        ({"target_drop": 0.001}, "128 units cannot show .* 2995 are needed"),
        ({"target_drop": 0.0}, "target drop 0.0"),
        ({"confidence": 1.0}, "confidence 1.0"),
        ({"sampling": Sampling(0, 1)}, "0 draws"),
        ({"sampling": Sampling(1, 50)}, "3 units cannot show"),
    ):
        with pytest.raises(NetworkError, match=words):
            attempt(**changed)
    with pytest.raises(NetworkError, match="hold whole batches"):
        certify_map(copying_network, ReliableMemory(), 0.0, images, right, TARGET, Sampling(1, 2), held=3)
