"""Planted truth for certificates: populations whose losses are known, and samples of images and errors from them.

A population knows its mean loss at every bit error rate of its ladder. A repeat draws images anew, and errors on them,
and asks for the certified rate; how often that rate's true loss is not below the target is the rate of violation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import stats

from eden.approximate import ApproximateNetwork
from eden.certificate import lump_size, shows_drop_below
from eden.datasets import Split
from eden.inference import CONFIDENCE, clopper_pearson, correct_images
from eden.memory import ApproximateMemory
from eden.tolerance import Sampling
from profiles.progress import Progress, silent

Floats = npt.NDArray[np.float64]
Shows = Callable[[Floats, float, Sampling], npt.NDArray[np.bool_]]
"""Whether each row of losses [repeats, units] shows that the mean is below a target, as a bound says."""

REPEATS_AT_ONCE = 100


class Population(Protocol):
    """Losses with known means.

    Attributes:
        rates: bit error rates of the ladder, ascending.
        drops: true mean loss at each.
    """

    @property
    def rates(self) -> Floats: ...

    @property
    def drops(self) -> Floats: ...

    def sample(self, random: np.random.Generator, repeats: int, images: int, sampling: Sampling) -> list[Floats]:
        """Losses float64[repeats, units] at each rate, of the same ``images`` images at all of them."""


@dataclass(frozen=True)
class SyntheticPopulation:
    """Images with margins of their own; errors that strike a whole batch, or one image.

    An image the clean network gets right fails where log BER + common + own > margin: the common part of a draw is
    shared by its batch (it lies in the weights), the own part is not (it lies in the IFMs), and the margin is the
    image's; all three are normal. Some images are wrong without errors, and such errors set some of them right.

    Attributes:
        rates: bit error rates of the ladder.
        centre: BER at which half of the images fail.
        margin, common, own: standard deviations, in factors of e.
        wrong: share of images wrong without errors.
        righted: share of these that errors set right where they would make a right one fail.
    """

    rates: Floats
    centre: float = 0.03
    margin: float = 1.0
    common: float = 0.4
    own: float = 0.6
    wrong: float = 0.02
    righted: float = 0.1

    @property
    def drops(self) -> Floats:
        """See `Population`: a normal sum exceeds a bound."""
        spread = np.sqrt(self.margin**2 + self.common**2 + self.own**2)
        struck: Floats = stats.norm.cdf(np.log(self.rates / self.centre) / spread)
        return struck * (1 - self.wrong - self.wrong * self.righted)

    def rate_of(self, drop: float) -> float:
        """The bit error rate whose mean loss is ``drop``."""
        spread = np.sqrt(self.margin**2 + self.common**2 + self.own**2)
        struck = drop / (1 - self.wrong - self.wrong * self.righted)
        return float(self.centre * np.exp(spread * stats.norm.ppf(struck)))

    def sample(self, random: np.random.Generator, repeats: int, images: int, sampling: Sampling) -> list[Floats]:
        """See `Population.sample`. ``images`` is a multiple of the batch."""
        units = (repeats, images // sampling.batch)
        shape = (*units, sampling.batch)
        margin = random.normal(np.log(self.centre), self.margin, shape)
        sign = np.where(random.random(shape) < self.wrong, -1.0 * (random.random(shape) < self.righted), 1.0)
        losses = [np.zeros(units) for _ in self.rates]
        for _ in range(sampling.draws):
            severity = random.normal(0, self.common, (*units, 1)) + random.normal(0, self.own, shape) - margin
            for loss, rate in zip(losses, self.rates, strict=True):
                loss += (sign * (np.log(rate) + severity > 0)).mean(axis=-1) / sampling.draws
        return losses


@dataclass(frozen=True)
class PooledPopulation:
    """A network's own results: what it got right of many images in many draws is the whole population.

    Attributes:
        rates: bit error rates.
        right: bool[rates, draws, images], with errors.
        clean: bool[images], without.
    """

    rates: Floats
    right: npt.NDArray[np.bool_]
    clean: npt.NDArray[np.bool_]

    @property
    def drops(self) -> Floats:
        """See `Population`: means over all images and draws."""
        return np.array(self.clean.mean() - self.right.mean(axis=(1, 2)), np.float64)

    def sample(self, random: np.random.Generator, repeats: int, images: int, sampling: Sampling) -> list[Floats]:
        """See `Population.sample`. Images and draws are drawn with replacement; a batch is one image here."""
        _, draws, count = self.right.shape
        chosen = random.integers(0, count, (repeats, images))
        losses = []
        for right in self.right:
            found = np.zeros((repeats, images))
            for _ in range(sampling.draws):
                found += right[random.integers(0, draws, (repeats, images)), chosen]
            losses.append(self.clean[chosen] - found / sampling.draws)
        return losses


def pool(
    network: ApproximateNetwork,
    memory_of: Callable[[int, int], ApproximateMemory],
    data: Split,
    rates: Sequence[float],
    draws: int,
    batch: int,
    progress: Progress = silent,
) -> PooledPopulation:
    """Results of ``network`` on ``data`` in ``draws`` draws at each rate.

    ``memory_of(rate's number, draw)`` makes the memory. Images of a batch share the draw of the weights; samples take
    images and draws apart from each other, so that only the population's own size is limited by that.
    """
    before = network.memory
    clean = correct_images(network, data.images, data.labels, batch).numpy()
    right = np.zeros((len(rates), draws, len(data)), np.bool_)
    try:
        for number in range(len(rates)):
            for draw in range(draws):
                network.memory = memory_of(number, draw)
                right[number, draw] = correct_images(network, data.images, data.labels, batch).numpy()
                progress(number * draws + draw + 1, len(rates) * draws)
    finally:
        network.memory = before
    return PooledPopulation(np.array(rates), right, clean)


@dataclass(frozen=True)
class Outcome:
    """What repeats of a certificate came to.

    Attributes:
        repeats: how many.
        violations: in how many a rung was certified whose true loss is not below the target.
        ratios: certified rate over the true one, by repeat, 0 where nothing was certified.
        passes: share of repeats in which each rung was certified.
    """

    repeats: int
    violations: int
    ratios: Floats
    passes: Floats

    @property
    def violated(self) -> tuple[float, float, float]:
        """Rate of violation, with its 95 % interval."""
        return self.violations / self.repeats, *clopper_pearson(self.violations, self.repeats)

    def joined(self, other: "Outcome") -> "Outcome":
        """Both together."""
        repeats = self.repeats + other.repeats
        passes = (self.passes * self.repeats + other.passes * other.repeats) / repeats
        ratios = np.concatenate([self.ratios, other.ratios])
        return Outcome(repeats, self.violations + other.violations, ratios, passes)


def repeat(
    population: Population,
    target_drop: float,
    images: int,
    sampling: Sampling,
    repeats: int,
    shows: Shows,
    progress: Progress = silent,
) -> Outcome:
    """Certify again and again, images and errors drawn anew each time.

    The true rate is the highest of the ladder with a loss below ``target_drop``, or, on the ladder or above it, the
    first rung whose loss is not: to put the target at one rung's own loss is the hardest case.
    """
    random = np.random.default_rng(sampling.seed)
    false = population.drops >= target_drop
    true_rate = population.rates[int(np.argmax(false))] if false.any() else population.rates[-1]
    violations, ratios, passes = 0, [], np.zeros(len(population.rates))
    for done in range(0, repeats, REPEATS_AT_ONCE):
        count = min(REPEATS_AT_ONCE, repeats - done)
        held = np.ones(count, np.bool_)
        certified, violated = np.zeros(count), np.zeros(count, np.bool_)
        for number, losses in enumerate(population.sample(random, count, images, sampling)):
            held[held] = shows(losses[held], target_drop, sampling) if held.any() else False
            certified[held] = population.rates[number]
            violated |= held & false[number]
            passes[number] += held.sum()
        violations += int(violated.sum())
        ratios.append(certified / true_rate)
        progress(done + count, repeats)
    return Outcome(repeats, violations, np.concatenate(ratios), passes / repeats)


# ---- bounds to compare -----------------------------------------------------------------------------------------------


def by_certificate(losses: Floats, target_drop: float, sampling: Sampling) -> npt.NDArray[np.bool_]:
    """What certificates use."""
    return shows_drop_below(losses, target_drop, lump_size(sampling))


def by_whole_lumps(losses: Floats, target_drop: float, sampling: Sampling) -> npt.NDArray[np.bool_]:
    """The same with the bets of the plain binomial test, however many draws there are."""
    return shows_drop_below(losses, target_drop, 1.0)


def by_hedged_betting(losses: Floats, target_drop: float, sampling: Sampling) -> npt.NDArray[np.bool_]:
    """Predictable plug-in bets (Waudby-Smith and Ramdas, 2024, section 4.1), one-sided, at most half of the capital."""
    units = losses.shape[-1]
    gains = (1 - losses) / 2
    counts = np.arange(1, units + 1)
    means = (0.5 + np.cumsum(gains, axis=-1)) / (counts + 1)
    variances = (0.25 + np.cumsum((gains - means) ** 2, axis=-1)) / (counts + 1)
    before = np.concatenate([np.full((*losses.shape[:-1], 1), 0.25), variances[..., :-1]], axis=-1)
    mean = (1 - target_drop) / 2
    bets = np.minimum(np.sqrt(2 * np.log(1 / (1 - CONFIDENCE)) / (before * units)), 0.5 / mean)
    capital = np.cumsum(np.log1p(bets * (gains - mean)), axis=-1).max(axis=-1)
    return np.array(capital >= -np.log(1 - CONFIDENCE))


def by_empirical_bernstein(losses: Floats, target_drop: float, sampling: Sampling) -> npt.NDArray[np.bool_]:
    """Maurer and Pontil (COLT 2009), theorem 4, for losses in a range of 2."""
    units, log = losses.shape[-1], np.log(2 / (1 - CONFIDENCE))
    reach = np.sqrt(2 * losses.var(axis=-1, ddof=1) * log / units) + 2 * 7 * log / (3 * (units - 1))
    return np.array(losses.mean(axis=-1) + reach <= target_drop)


def by_student(losses: Floats, target_drop: float, sampling: Sampling) -> npt.NDArray[np.bool_]:
    """Student's t: right only in the limit of many units."""
    units = losses.shape[-1]
    reach = stats.t.ppf(CONFIDENCE, units - 1) * losses.std(axis=-1, ddof=1) / np.sqrt(units)
    return np.array(losses.mean(axis=-1) + reach <= target_drop)
