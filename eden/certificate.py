"""Certificates of tolerance: how much accuracy errors cost at most, over images and errors not seen, with confidence.

**What is claimed.** The loss of a *unit* of data is the share of its images that the baseline network gets right in
reliable memory, less the share that the tested network gets right with errors: -1..1. The pairing lets what the images
are cancel. A certificate says that the mean loss over the population is below the target. The population is that of
the images, of which the split is a sample, and of errors: reads of one fixed map of weak cells
(`Population.THIS_MAP`), or a map of the error model for each unit (`Population.ANY_MAP`: a mean over modules, with
single modules on both sides of it; for 95 % of modules, 59 at the least would have to hold each by itself).

**Units.** Images that share a draw of errors are not independent: a batch is one unit, however many images it holds. So
the default is one image a unit, with draws of its own. Bounding a loss by 1 % takes 299 units at the very least
(0.99^299 < 0.05), whatever the method; 20 batches of 50 cannot do it.

**The bound** holds for any sample size and assumes nothing of how losses are distributed within -1..1 (heterogeneous
images, rare collapses, unequal units). Say that the mean loss is at least the target, and begin with a capital of
1 - confidence. Before each unit some of it is bet, at fair odds, on a small loss: a loss z turns the capital u into
u + slope (target - z), with 0 <= slope <= u / (1 - target). That is a supermartingale which never falls below 0, so it
reaches 1 with probability 1 - confidence at most (Ville's inequality), however the slope follows from the past. If it
does, the target is shown. Betting on means of bounded variables: Waudby-Smith and Ramdas, JRSSB 86 (2024) 1-27.

Their bets suit samples without end. Here the sample's size is known, and the slope is the one that makes the exact
binomial test out of the bets: the capital is the probability, were the mean loss the target and losses 0 or 1, that
Clopper and Pearson's bound will meet the target, given what was seen. With one draw an image and no gains it is that
very bound. With several draws losses come in smaller lumps, and the slope is that of the binomial test in lumps.
``eden study certificates`` measures what that gains over other bounds. Units are taken in the order of the images.

**Many rates.** The ladder is fixed beforehand and climbed until the first rung fails. That costs nothing: to certify
any false rung the first false one must pass, which happens with probability 1 - confidence at most (tests in a fixed
sequence: Maurer, Hothorn and Lehmacher, 1995). A rung is a joint configuration, a rate for each tensor; all of it is
certified. Ladder and network must not depend on the images they are certified with.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from eden.approximate import ApproximateNetwork
from eden.datasets import Split
from eden.inference import CONFIDENCE, correct_images
from eden.memory import ApproximateMemory
from eden.seeds import derive_seed
from eden.tolerance import MemoryAt, Sampling, joint_memory, mean_ber
from profiles.errors import NetworkError
from profiles.progress import Progress, silent

Floats = npt.NDArray[np.float64]

CERTIFICATE_SAMPLING = Sampling(draws=8, batch=1)
SMALLEST_LUMP = 0.5  # what differs between images stays, however many draws
BOUND_STEP = 0.99  # ratio of the targets that a bound is chosen from
LOWEST_BOUND = 1e-4
ROUNDING = 1e-9  # a capital so near 1 has reached it; what it begins with is less by as much
EPSILON = 1e-17  # of a sum, changes it no more
LOST = 1e-200  # a capital this low does not come back, and binomial masses would underflow


class Population(StrEnum):
    """Whose errors a certificate is about."""

    THIS_MAP = "this DIMM's map"
    ANY_MAP = "maps of the model, one drawn for each unit"


class Rung(BaseModel):
    """One configuration on the ladder.

    Attributes:
        ber: mean bit error rate over the network's bits.
        rates: bit error rate of each tensor; empty where the memory's own map decides them.
        drop: mean loss of accuracy against the baseline, as a fraction; below 0 where accuracy rose.
        drop_high: its upper confidence bound.
        holds: whether the loss was shown to be below the target.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ber: float = Field(ge=0, le=1)
    rates: dict[str, float]
    drop: float = Field(ge=-1, le=1)
    drop_high: float = Field(ge=-1, le=1)
    holds: bool


class Certificate(BaseModel):
    """What was shown, of whom, and how.

    Attributes:
        population: whose errors.
        confidence: that all rungs that hold do so.
        target_drop: accuracy that may be lost, as a fraction.
        images, draws, batch: the sample: images, draws of errors on each, images that share a draw.
        rungs: as far as they were climbed, ascending.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    population: Population
    confidence: float = Field(gt=0, lt=1)
    target_drop: float = Field(gt=0, lt=1)
    images: int = Field(gt=0)
    draws: int = Field(gt=0)
    batch: int = Field(gt=0)
    rungs: tuple[Rung, ...] = Field(min_length=1)

    @property
    def certified(self) -> Rung | None:
        """The highest rung that holds with all below it; None where the lowest fails."""
        held = [rung for rung in self.rungs if rung.holds]
        return held[-1] if held else None

    @property
    def claim(self) -> str:
        """The claim in words."""
        rung = self.certified or self.rungs[0]
        shown = f"at most {100 * self.target_drop:g} % of images are lost" if self.certified else "nothing is shown"
        return (
            f"BER {rung.ber:.2e}: {shown}, with {100 * self.confidence:g} % confidence; lost {100 * rung.drop:.2f} %, "
            f"bound {100 * rung.drop_high:.2f} %, of {self.images} images with {self.draws} draws each; "
            f"population: images like these, {self.population}"
        )


def certify(
    network: ApproximateNetwork,
    ladder: Sequence[Mapping[str, float]],
    memory_at: MemoryAt,
    data: Split,
    baseline_right: torch.Tensor,
    target_drop: float,
    sampling: Sampling = CERTIFICATE_SAMPLING,
    confidence: float = CONFIDENCE,
    progress: Progress = silent,
) -> Certificate:
    """Climb ``ladder`` as far as the loss of accuracy is shown to be below the target, over maps of the model.

    Args:
        network: a calibrated network; its own memory is put back afterwards.
        ladder: bit error rate of each tensor, by rung, ascending; chosen without ``data``.
        memory_at: makes memories; each seed is another map.
        data: images that neither network nor ladder were chosen with.
        baseline_right: bool[n], which of them the *unboosted* network gets right in reliable memory.
        target_drop: accuracy that may be lost, as a fraction.
        sampling: draws for each batch of images; a batch is one unit.
        confidence: of the certificate as a whole.
        progress: called after each draw of each unit, with those of all rungs as the total.

    Raises:
        NetworkError: an empty or descending ladder, rates of other tensors than the network's, another number of
            images than of results, impossible target or confidence, or too few units to show the target at all.
    """
    bits = {tensor.name: tensor.bits() for tensor in network.tensors()}
    _check_ladder(ladder, bits)
    steps = _check_sample(data, target_drop, sampling, confidence) * sampling.draws
    rungs: list[Rung] = []
    for number, rates in enumerate(ladder):

        def memory_of(seed: int, rates: Mapping[str, float] = rates) -> ApproximateMemory:
            return joint_memory(memory_at, rates, seed)

        def forward(done: int, total: int, before: int = number * steps) -> None:
            progress(before + done, len(ladder) * steps)

        losses = paired_losses(network, memory_of, data, baseline_right, sampling, forward)
        rungs.append(_rung(mean_ber(rates, bits), rates, losses, target_drop, sampling, confidence))
        if not rungs[-1].holds:
            break
    progress(len(ladder) * steps, len(ladder) * steps)
    return _certificate(Population.ANY_MAP, tuple(rungs), data, target_drop, sampling, confidence)


def certify_map(
    network: ApproximateNetwork,
    memory: ApproximateMemory,
    ber: float,
    data: Split,
    baseline_right: torch.Tensor,
    target_drop: float,
    sampling: Sampling = CERTIFICATE_SAMPLING,
    held: int = 1,
    confidence: float = CONFIDENCE,
    progress: Progress = silent,
) -> Certificate:
    """Whether the loss of accuracy is shown to be below the target on the one map of ``memory``, reads drawn anew.

    Args:
        memory: a memory whose map is fixed and whose reads are independent, such as a profile's own cells.
        ber: its mean bit error rate, to be written in the certificate.
        held: images in memory at a time, a multiple of the batch: each has cells of its own there. Reads are still
            drawn anew for each unit.
        (others as in `certify`)

    Raises:
        NetworkError: as in `certify`.
    """
    _check_sample(data, target_drop, sampling, confidence)
    losses = paired_losses(network, lambda _: memory, data, baseline_right, sampling, progress, held)
    rung = _rung(ber, {}, losses, target_drop, sampling, confidence)
    return _certificate(Population.THIS_MAP, (rung,), data, target_drop, sampling, confidence)


def scaled_ladder(
    rates: Mapping[str, float], shares: Sequence[float], highest_ber: float
) -> tuple[dict[str, float], ...]:
    """Rungs with ``rates`` times each of ``shares``, none above ``highest_ber``: one joint configuration, scaled."""
    return tuple({tensor: min(share * ber, highest_ber) for tensor, ber in rates.items()} for share in shares)


def paired_losses(
    network: ApproximateNetwork,
    memory_of: Callable[[int], ApproximateMemory],
    data: Split,
    baseline_right: torch.Tensor,
    sampling: Sampling,
    progress: Progress = silent,
    held: int = 1,
) -> Floats:
    """Loss of each unit, the mean over its images and draws: float64[units], within -1..1.

    Args:
        memory_of: gives the memory of one draw of one unit, by seed; the network's own is put back afterwards.
        held: see `certify_map`; the pass is over all that are held, of which only the unit's results count.
        (others as in `certify`)

    Raises:
        NetworkError: no images, another number of them than of ``baseline_right``, or batches that are not held whole.
    """
    if not len(data) or len(data) != len(baseline_right):
        raise NetworkError(f"{len(data)} images and {len(baseline_right)} results of the baseline; give one for each")
    size, together = sampling.batch, max(held, sampling.batch)
    if together % size:
        raise NetworkError(f"{held} images are held in batches of {size}; hold whole batches")
    starts = range(0, len(data), size)
    losses = np.zeros(len(starts))
    before = network.memory
    try:
        for unit, start in enumerate(starts):
            first = start // together * together
            images, labels = data.images[first : first + together], data.labels[first : first + together]
            clean = baseline_right[start : start + size].double()
            for draw in range(sampling.draws):
                memory = memory_of(derive_seed(sampling.seed, unit, draw))
                if memory is not network.memory:
                    network.memory = memory
                right = correct_images(network, images, labels, together)[start - first : start - first + size]
                losses[unit] += float((clean - right.double()).mean())
                progress(unit * sampling.draws + draw + 1, len(starts) * sampling.draws)
    finally:
        network.memory = before
    return losses / sampling.draws


# ---- the bound -------------------------------------------------------------------------------------------------------


def lump_size(sampling: Sampling) -> float:
    """In what lumps the losses of units are expected to come: 1 with one evaluation a unit, less with their mean.

    It decides how much is shown, not whether what is shown is true; so it must only be fixed beforehand.
    """
    return max(SMALLEST_LUMP, 1 / math.sqrt(sampling.draws * sampling.batch))


def shows_drop_below(
    losses: Floats, target_drop: float, lump: float, confidence: float = CONFIDENCE
) -> npt.NDArray[np.bool_]:
    """Whether the mean of the population is shown to be below ``target_drop``, for each row of ``losses``.

    Args:
        losses: float64[..., units], independent, within -1..1, of one mean.
        lump: see `lump_size`.

    Returns:
        bool[...]. For 0 and 1 with ``lump`` 1: whether Clopper and Pearson's one-sided upper bound is ``target_drop``
        or less (unless, in mid-sample, that had a chance below 1e-9 of still turning out otherwise, and did).

    Raises:
        NetworkError: losses out of range or not finite, none at all, or impossible target, lump or confidence.
    """
    _check_target(target_drop, confidence)
    if not 0 < lump <= 1:
        raise NetworkError(f"lump {lump} is not within 0..1; give the size of a typical loss of one unit")
    if not losses.size or not np.all(np.abs(losses) <= 1):
        raise NetworkError("losses must be at least one, all within -1..1; give accuracy lost by unit, as fractions")
    rows = np.ascontiguousarray(losses, np.float64).reshape(-1, losses.shape[-1])
    size = max(lump, min(1.0, 2 * target_drop))
    capital = (1 - confidence) * (1 - ROUNDING)
    shown = _reach_one(rows, target_drop, size, capital, *_tail(rows.shape[1], target_drop / size, capital))
    return shown.reshape(losses.shape[:-1])


def drop_bound(losses: Floats, lump: float, confidence: float = CONFIDENCE) -> float:
    """Upper confidence bound of the mean of the population that ``losses``, float64[units], were drawn from.

    The lowest of a fixed ladder of targets (in steps of 1 %, from 1 down to 1e-4) that is shown with all above it.

    Raises:
        NetworkError: see `shows_drop_below`.
    """
    bound, target = 1.0, BOUND_STEP
    while target >= LOWEST_BOUND and shows_drop_below(losses, target, lump, confidence):
        bound, target = target, target * BOUND_STEP
    return bound


def units_needed(target_drop: float, confidence: float = CONFIDENCE) -> int:
    """The fewest units with which ``target_drop`` can be shown, were no accuracy lost in any."""
    _check_target(target_drop, confidence)
    return math.ceil(math.log(1 - confidence) / math.log1p(-target_drop))


def _tail(units: int, rate: float, capital: float) -> tuple[int, float, float]:
    """The least count whose binomial distribution function exceeds ``capital``; that function and the mass there."""
    count = int(stats.binom.ppf(capital, units, rate))
    return count, float(stats.binom.cdf(count, units, rate)), float(stats.binom.pmf(count, units, rate))


@njit(cache=True, nogil=True)
def _reach_one(
    losses: Floats, target: float, lump: float, capital: float, count: int, below: float, mass: float
) -> npt.NDArray[np.bool_]:
    shown = np.zeros(len(losses), np.bool_)
    for row in range(len(losses)):
        shown[row] = _reaches_one(losses[row], target, lump, capital, count, below, mass)
    return shown


@njit(cache=True, nogil=True)
def _reaches_one(
    losses: Floats, target: float, lump: float, capital: float, count: int, below: float, mass: float
) -> bool:
    """Whether the capital reaches 1.

    ``count``, ``below`` and ``mass`` follow the binomial distribution of the lumps to come: ``below`` is the
    probability of ``count`` lumps or fewer, ``mass`` that of exactly ``count``; the capital lies between ``below`` and
    ``below`` - ``mass``.
    """
    rate = target / lump
    odds = rate / (1 - rate)
    left = len(losses)
    for loss in losses:
        while capital >= below and count < left:
            count += 1
            mass *= (left - count + 1) / count * odds
            below += mass
        while count > 0 and capital < below - mass:
            mass *= count / ((left - count + 1) * odds)
            count -= 1
            below = _sum_down(count, left, mass, odds)
        share = min(1.0, max(0.0, (capital - (below - mass)) / mass))
        mass_before = mass * count / (left * rate)  # of one lump fewer in one unit fewer
        mass_here = mass * (left - count) / (left * (1 - rate))  # of as many lumps in one unit fewer
        slope = min(((1 - share) * mass_before + share * mass_here) / lump, capital / (1 - target))
        capital += slope * (target - loss)
        if capital >= 1 - ROUNDING:
            return True
        if capital <= LOST:
            return False
        if count == left:
            count, mass, below = count - 1, mass_before, 1.0
        else:
            mass, below = mass_here, below + rate * mass_here
        left -= 1
    return False


@njit(cache=True, nogil=True)
def _sum_down(count: int, left: int, mass: float, odds: float) -> float:
    """Probability of ``count`` lumps or fewer in ``left`` units, summed from ``mass``, as differences would cancel."""
    below = mass
    while count > 0 and mass > EPSILON * below:
        mass *= count / ((left - count + 1) * odds)
        below += mass
        count -= 1
    return below


# ---- parts -----------------------------------------------------------------------------------------------------------


def _rung(
    ber: float,
    rates: Mapping[str, float],
    losses: Floats,
    target_drop: float,
    sampling: Sampling,
    confidence: float,
) -> Rung:
    lump = lump_size(sampling)
    holds = bool(shows_drop_below(losses, target_drop, lump, confidence))
    bound = drop_bound(losses, lump, confidence)
    return Rung(ber=ber, rates=dict(rates), drop=float(losses.mean()), drop_high=bound, holds=holds)


def _certificate(
    population: Population,
    rungs: tuple[Rung, ...],
    data: Split,
    target_drop: float,
    sampling: Sampling,
    confidence: float,
) -> Certificate:
    return Certificate(
        population=population,
        confidence=confidence,
        target_drop=target_drop,
        images=len(data),
        draws=sampling.draws,
        batch=sampling.batch,
        rungs=rungs,
    )


def _check_sample(data: Split, target_drop: float, sampling: Sampling, confidence: float) -> int:
    """How many units the sample has."""
    if sampling.draws < 1 or sampling.batch < 1:
        raise NetworkError(f"{sampling.draws} draws of {sampling.batch} images; give at least one of each")
    units, needed = -(-len(data) // sampling.batch), units_needed(target_drop, confidence)
    if units < needed:
        raise NetworkError(
            f"{units} units cannot show a loss below {100 * target_drop:g} % with {100 * confidence:g} % "
            f"confidence, {needed} are needed; give more images, smaller batches or a larger target"
        )
    return units


def _check_target(target_drop: float, confidence: float) -> None:
    if not 0 < target_drop < 1 or not 0 < confidence < 1:
        raise NetworkError(
            f"target drop {target_drop} and confidence {confidence} must lie between 0 and 1; "
            "give fractions, such as 0.01 and 0.95"
        )


def _check_ladder(ladder: Sequence[Mapping[str, float]], bits: Mapping[str, int]) -> None:
    if not ladder:
        raise NetworkError("the ladder has no rung; give at least one bit error rate for each tensor")
    for rates in ladder:
        if rates.keys() != bits.keys() or not all(0 <= ber <= 1 for ber in rates.values()):
            raise NetworkError(
                f"a rung gives rates for {len(rates)} tensors, the network has {len(bits)}; give each of them one, 0..1"
            )
    means = [mean_ber(rates, bits) for rates in ladder]
    if any(low > high for low, high in itertools.pairwise(means)):
        raise NetworkError("the ladder does not ascend; sort its rungs by bit error rate")
