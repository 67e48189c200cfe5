"""Planted truth for certificates: populations whose losses are known, and samples of images and errors from them.

A population knows its mean loss at every bit error rate of its ladder. A repeat draws images anew, and errors on them,
and asks for the certified rate; how often that rate's true loss is not below the target is the rate of violation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
"""Whether each row of losses [repeats, images] shows that the mean is below a target, as a bound says."""

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

    def sample(self, random: np.random.Generator, repeats: int, images: int, sampling: Sampling) -> Iterator[Floats]:
        """Losses float64[repeats, images] at each rate, of the same images at all, each the mean of its draws."""


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
        """See `Population`: what a normal sum exceeds."""
        return np.array(stats.norm.cdf(np.log(self.rates / self.centre) / self._spread) * self._struck_loss)

    def rate_of(self, drop: float) -> float:
        """The bit error rate whose mean loss is ``drop``."""
        return float(self.centre * np.exp(self._spread * stats.norm.ppf(drop / self._struck_loss)))

    def sample(self, random: np.random.Generator, repeats: int, images: int, sampling: Sampling) -> Iterator[Floats]:
        """See `Population.sample`. ``images`` is a multiple of the batch."""
        shape = (repeats, images // sampling.batch, sampling.batch)
        margin = random.normal(np.log(self.centre), self.margin, shape)
        sign = np.where(random.random(shape) < self.wrong, -1.0 * (random.random(shape) < self.righted), 1.0)
        severities = [
            random.normal(0, self.common, (*shape[:2], 1)) + random.normal(0, self.own, shape) - margin
            for _ in range(sampling.draws)
        ]
        for rate in self.rates:
            struck: Floats = np.mean([severity > -np.log(rate) for severity in severities], axis=0)
            yield np.reshape(sign * struck, (repeats, images))

    @property
    def _spread(self) -> float:
        return float(np.sqrt(self.margin**2 + self.common**2 + self.own**2))

    @property
    def _struck_loss(self) -> float:
        return 1 - self.wrong - self.wrong * self.righted


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

    def sample(self, random: np.random.Generator, repeats: int, images: int, sampling: Sampling) -> Iterator[Floats]:
        """See `Population.sample`. Images, and draws of each, are drawn with replacement: no image shares a draw."""
        _, draws, count = self.right.shape
        chosen = random.integers(0, count, (repeats, images))
        for right in self.right:
            found = np.zeros((repeats, images))
            for _ in range(sampling.draws):
                found += right[random.integers(0, draws, (repeats, images)), chosen]
            yield self.clean[chosen] - found / sampling.draws


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

    ``memory_of(number of the rate, draw)`` gives the memory. That images of a batch share the weights' errors here does
    no harm: samples take a draw for each image by itself.
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
        violated: bool[repeats], whether a rung was certified whose true loss is not below the target.
        ratios: float64[repeats], certified rate over the true one; 0 where nothing was certified.
    """

    violated: npt.NDArray[np.bool_]
    ratios: Floats

    @property
    def violations(self) -> tuple[float, float, float]:
        """Rate of violations, with its exact 95 % interval."""
        count, total = int(self.violated.sum()), len(self.violated)
        return count / total, *clopper_pearson(count, total)

    @property
    def median(self) -> tuple[float, float, float]:
        """Median of the ratios, with its exact 95 % interval from the order of the repeats."""
        ordered, total = np.sort(self.ratios), len(self.ratios)
        low = int(stats.binom.ppf((1 - CONFIDENCE) / 2, total, 0.5)) - 1
        return float(np.median(ordered)), float(ordered[max(low, 0)]), float(ordered[min(total - low - 1, total - 1)])

    @staticmethod
    def joined(parts: "Sequence[Outcome]") -> "Outcome":
        """Those of several populations, as one."""
        return Outcome(np.concatenate([p.violated for p in parts]), np.concatenate([p.ratios for p in parts]))


def repeat(
    population: Population,
    target_drop: float,
    images: int,
    sampling: Sampling,
    repeats: int,
    bounds: Mapping[str, Shows],
    progress: Progress = silent,
) -> dict[str, Outcome]:
    """Certify again and again, images and errors drawn anew each time, the same for each of ``bounds``.

    The true rate is the first of the ladder whose loss is not below ``target_drop``: to put the target at one rung's
    own loss is the hardest case, and makes that rung's rate the true tolerance.
    """
    random = np.random.default_rng(sampling.seed)
    false = population.drops >= target_drop
    true_rate = population.rates[int(np.argmax(false))]
    parts: dict[str, list[Outcome]] = {name: [] for name in bounds}
    for done in range(0, repeats, REPEATS_AT_ONCE):
        count = min(REPEATS_AT_ONCE, repeats - done)
        held = {name: np.ones(count, np.bool_) for name in bounds}
        certified = {name: np.zeros(count) for name in bounds}
        violated = {name: np.zeros(count, np.bool_) for name in bounds}
        for number, losses in enumerate(population.sample(random, count, images, sampling)):
            for name, shows in bounds.items():
                climbing = held[name]
                if climbing.any():
                    climbing[climbing] = shows(losses[climbing], target_drop, sampling)
                certified[name][climbing] = population.rates[number]
                violated[name] |= climbing & false[number]
        for name in bounds:
            parts[name].append(Outcome(violated[name], certified[name] / true_rate))
        progress(done + count, repeats)
    return {name: Outcome.joined(found) for name, found in parts.items()}


# ---- bounds to compare -----------------------------------------------------------------------------------------------


def _by_unit(losses: Floats, sampling: Sampling) -> Floats:
    units: Floats = losses.reshape(len(losses), -1, sampling.batch).mean(axis=-1)
    return units


def by_certificate(losses: Floats, target_drop: float, sampling: Sampling) -> npt.NDArray[np.bool_]:
    """What certificates use."""
    return shows_drop_below(_by_unit(losses, sampling), target_drop, lump_size(sampling))


def by_images_alone(losses: Floats, target_drop: float, sampling: Sampling) -> npt.NDArray[np.bool_]:
    """The same with each image taken for a unit, even where a batch of them shares its errors: no guarantee."""
    return shows_drop_below(losses, target_drop, 1.0)


def by_whole_lumps(losses: Floats, target_drop: float, sampling: Sampling) -> npt.NDArray[np.bool_]:
    """The same with the bets of the plain binomial test, however many draws there are."""
    return shows_drop_below(_by_unit(losses, sampling), target_drop, 1.0)


def by_predictable_bets(losses: Floats, target_drop: float, sampling: Sampling) -> npt.NDArray[np.bool_]:
    """Predictable plug-in bets (Waudby-Smith and Ramdas, 2024, section 4), one-sided, at most half of the capital."""
    gains = (1 - _by_unit(losses, sampling)) / 2
    units = gains.shape[-1]
    counts = np.arange(1, units + 1)
    means = (0.5 + np.cumsum(gains, axis=-1)) / (counts + 1)
    variances = (0.25 + np.cumsum((gains - means) ** 2, axis=-1)) / (counts + 1)
    before = np.concatenate([np.full((len(gains), 1), 0.25), variances[:, :-1]], axis=-1)
    mean = (1 - target_drop) / 2
    bets = np.minimum(np.sqrt(2 * np.log(1 / (1 - CONFIDENCE)) / (before * units)), 0.5 / mean)
    capital = np.cumsum(np.log1p(bets * (gains - mean)), axis=-1).max(axis=-1)
    return np.array(capital >= -np.log(1 - CONFIDENCE))


def by_empirical_bernstein(losses: Floats, target_drop: float, sampling: Sampling) -> npt.NDArray[np.bool_]:
    """Maurer and Pontil (COLT 2009), theorem 4, for losses in a range of 2."""
    found = _by_unit(losses, sampling)
    units, log = found.shape[-1], np.log(2 / (1 - CONFIDENCE))
    reach = np.sqrt(2 * found.var(axis=-1, ddof=1) * log / units) + 2 * 7 * log / (3 * (units - 1))
    return np.array(found.mean(axis=-1) + reach <= target_drop)


def by_student(losses: Floats, target_drop: float, sampling: Sampling) -> npt.NDArray[np.bool_]:
    """Student's t: right only in the limit of many units."""
    found = _by_unit(losses, sampling)
    units = found.shape[-1]
    reach = stats.t.ppf(CONFIDENCE, units - 1) * found.std(axis=-1, ddof=1) / np.sqrt(units)
    return np.array(found.mean(axis=-1) + reach <= target_drop)
