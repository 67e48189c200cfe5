"""How much error a network tolerates (EDEN, section 2): one rate for all data, or one for each tensor.

Accuracies here are means over draws of errors on given images, with intervals over those draws: batches are the
clusters, because images of a batch share the draw of the weights. Intervals pair each batch with its own clean result,
so that what the images are cancels. They do not cover another sample of images, nor, where a memory's map of weak cells
is fixed, another map.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from scipy import stats

from eden.approximate import ApproximateNetwork
from eden.datasets import Split
from eden.inference import CONFIDENCE, correct_images
from eden.memory import ApproximateMemory, PerTensorMemory, ReliableMemory
from eden.seeds import derive_seed
from profiles.errors import NetworkError
from profiles.progress import Progress, silent

MemoryAt = Callable[[float, int], ApproximateMemory]
"""A memory of the given bit error rate and seed."""

BRACKET_STEP = 4.0
LOWEST_BER = 1e-9
SHARES_KEPT = (1.0, 0.75, 0.5, 0.25, 0.0)


@dataclass(frozen=True)
class Sampling:
    """How accuracies are sampled.

    Attributes:
        draws: passes over the images, each with errors drawn anew.
        batch: images that share one draw of the weights' errors.
        seed: of all draws.
    """

    draws: int = 4
    batch: int = 50
    seed: int = 0


@dataclass(frozen=True)
class CurvePoint:
    """Mean accuracy at one bit error rate, with its 95 % interval over draws of errors."""

    ber: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class CoarseTolerance:
    """What `coarse` found.

    Attributes:
        ber: the highest rate found to meet the target; 0 if none does.
        ceiling: the lowest rate found to miss it; infinite if none did.
        target: accuracy to meet.
        clean: accuracy without errors.
        curve: every rate tried, ascending.
    """

    ber: float
    ceiling: float
    target: float
    clean: float
    curve: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class FineTolerance:
    """What `fine` found: bit error rates that hold together.

    Attributes:
        ber: tolerated rate of each tensor.
        target: accuracy to meet.
        accuracy: of the joint configuration on the whole split; its ``ber`` is the mean over the network's bits.
        share_kept: exponent of each rate's rise over the start that was kept until the joint configuration met the
            target: 1 is all of it, 0 none.
        trials: configurations tried.
    """

    ber: dict[str, float]
    target: float
    accuracy: CurvePoint
    share_kept: float
    trials: int


class AccuracyMeter:
    """Measures one network on one split under different memories; the network's own memory is put back each time."""

    def __init__(self, network: ApproximateNetwork, split: Split, sampling: Sampling) -> None:
        self._network = network
        self._split = split
        self._sampling = sampling
        self._clean = self._batch_accuracies(ReliableMemory())

    @property
    def clean(self) -> float:
        """Accuracy without errors."""
        return self._mean(self._clean)

    def at(self, ber: float, memory_of: Callable[[int], ApproximateMemory]) -> CurvePoint:
        """Accuracy over the memories ``memory_of(seed)``, one for each draw; ``ber`` labels the point."""
        draws = [
            self._batch_accuracies(memory_of(derive_seed(self._sampling.seed, draw)))
            for draw in range(self._sampling.draws)
        ]
        losses = torch.cat([self._clean - draw for draw in draws])
        accuracy = sum(self._mean(draw) for draw in draws) / len(draws)
        reach = _half_width(losses)
        return CurvePoint(ber, accuracy, max(0.0, accuracy - reach), min(1.0, accuracy + reach))

    def _batch_accuracies(self, memory: ApproximateMemory) -> torch.Tensor:
        before = self._network.memory
        self._network.memory = memory
        try:
            right = correct_images(self._network, self._split.images, self._split.labels, self._sampling.batch)
        finally:
            self._network.memory = before
        return torch.stack([part.double().mean() for part in torch.split(right, self._sampling.batch)])

    def _mean(self, batch_accuracies: torch.Tensor) -> float:
        sizes = torch.tensor([len(part) for part in torch.split(self._split.labels, self._sampling.batch)])
        return float((batch_accuracies * sizes).sum() / sizes.sum())


def coarse(
    network: ApproximateNetwork,
    memory_at: MemoryAt,
    data: Split,
    target_drop: float,
    baseline_accuracy: float,
    sampling: Sampling = Sampling(),
    start_ber: float = 1e-3,
    highest_ber: float = 0.25,
    ratio: float = 1.1,
    progress: Progress = silent,
) -> CoarseTolerance:
    """The highest bit error rate, the same for all tensors, whose accuracy meets the target with confidence.

    What must meet the target is the lower end of the 95 % interval of the mean over draws. The rate is bracketed in
    steps of 4 from ``start_ber``, then bisected on a logarithmic scale.

    Args:
        network: a calibrated network.
        memory_at: makes the memory to test with.
        data: images to test on.
        target_drop: accuracy that may be lost, as a fraction (0.01 is one percentage point).
        baseline_accuracy: clean accuracy, as a fraction, that the drop counts from: that of the *unboosted* network.
        sampling: draws of errors.
        start_ber, highest_ber: first and highest rate to try.
        ratio: the bracket's final width, failing rate over tolerated rate.
        progress: called after each rate.

    Raises:
        NetworkError: rates or ratio out of range.
    """
    if not LOWEST_BER <= start_ber <= highest_ber <= 1 or ratio <= 1:
        raise NetworkError(
            f"start {start_ber}, highest {highest_ber}, ratio {ratio} must satisfy "
            f"{LOWEST_BER} <= start <= highest <= 1 and ratio > 1; correct them"
        )
    meter = AccuracyMeter(network, data, sampling)
    target = baseline_accuracy - target_drop
    curve: dict[float, CurvePoint] = {}
    bisections = math.ceil(math.log2(math.log(BRACKET_STEP) / math.log(ratio)))

    def meets(ber: float) -> bool:
        curve[ber] = meter.at(ber, lambda seed: memory_at(ber, derive_seed(seed, f"{ber:.6e}")))
        progress(len(curve), max(len(curve), bisections + 2))
        return curve[ber].low >= target

    low, high = _bracket(meets, start_ber, highest_ber)
    while low > 0 and math.isfinite(high) and high / low > ratio:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if meets(middle) else (low, middle)
    return CoarseTolerance(low, high, target, meter.clean, tuple(curve[ber] for ber in sorted(curve)))


def _bracket(meets: Callable[[float], bool], start: float, highest: float) -> tuple[float, float]:
    """A rate that meets the target (0 if none does) and one that misses it (infinite if none does)."""
    ber = start
    if meets(ber):
        while ber < highest:
            low, ber = ber, min(ber * BRACKET_STEP, highest)
            if not meets(ber):
                return low, ber
        return ber, math.inf
    while ber / BRACKET_STEP >= LOWEST_BER:
        high, ber = ber, ber / BRACKET_STEP
        if meets(ber):
            return ber, high
    return 0.0, ber


def fine(
    network: ApproximateNetwork,
    memory_at: MemoryAt,
    data: Split,
    target_drop: float,
    baseline_accuracy: float,
    coarse_ber: float,
    sampling: Sampling = Sampling(draws=2),
    start_share: float = 0.5,
    sample_images: int = 500,
    step: float = 2.0,
    highest_ber: float = 0.25,
    progress: Progress = silent,
) -> FineTolerance:
    """A tolerated bit error rate for each tensor, all holding together.

    As EDEN does: all tensors start at one rate; one after another is raised by ``step`` while the accuracy on the first
    ``sample_images`` holds, and leaves the round once it fails or reaches ``highest_ber``. Trials share their draws, so
    that only the raised tensor's errors differ. The selection still favours lucky draws; so the joint configuration is
    then measured on all of ``data`` with twice the draws, fresh ones, and drawn back towards the start until it meets
    the target. At ``coarse_ber`` itself no loss is left to spend, hence ``start_share``.

    Args:
        start_share: the start, as a share of ``coarse_ber``; 1 is the paper's.
        sample_images: size of the sample on which tensors are raised.
        step: factor by which a tensor's rate is raised.
        (others as in `coarse`)

    Raises:
        NetworkError: ``coarse_ber`` is not within 0..1, or does not meet the target itself.
    """
    if not 0 < coarse_ber <= 1:
        raise NetworkError(f"coarse BER {coarse_ber} gives nothing to start from; boost the network or allow more loss")
    target = baseline_accuracy - target_drop
    bits = {tensor.name: tensor.bits() for tensor in network.tensors()}
    sample = AccuracyMeter(network, data.first(sample_images), sampling)
    start = coarse_ber * start_share
    rates = dict.fromkeys(bits, start)
    holds = min(target, _joint(sample, memory_at, rates, bits).accuracy)
    active = list(rates)
    trials = 1
    while active:
        for tensor in list(active):
            raised = {**rates, tensor: min(rates[tensor] * step, highest_ber)}
            trials += 1
            if raised[tensor] > rates[tensor] and _joint(sample, memory_at, raised, bits).accuracy >= holds:
                rates = raised
            else:
                active.remove(tensor)
            progress(len(rates) - len(active), len(rates))
    fresh = Sampling(2 * sampling.draws, sampling.batch, derive_seed(sampling.seed, "validation"))
    whole = AccuracyMeter(network, data, fresh)
    for share in SHARES_KEPT:
        kept = {tensor: start * (ber / start) ** share for tensor, ber in rates.items()}
        trials += 1
        point = _joint(whole, memory_at, kept, bits)
        if point.accuracy >= target or (share == 0 and point.high >= target):
            return FineTolerance(kept, target, point, share, trials)
    raise NetworkError(
        f"accuracy {point.accuracy:.4f} misses {target:.4f} at a BER of {start:.2e} for all tensors; "
        "find the coarse tolerance with the same memory and images first"
    )


def joint_memory(memory_at: MemoryAt, rates: Mapping[str, float], seed: int) -> ApproximateMemory:
    """A memory with each tensor at its own rate: one module, in which no tensor's errors depend on another's rate."""
    by_rate = {ber: memory_at(ber, seed) for ber in sorted(set(rates.values()))}
    return PerTensorMemory({tensor: by_rate[ber] for tensor, ber in rates.items()})


def mean_ber(rates: Mapping[str, float], bits: Mapping[str, int]) -> float:
    """Mean bit error rate over the bits of all tensors, each at its own rate."""
    return sum(ber * bits[tensor] for tensor, ber in rates.items()) / sum(bits.values())


def _joint(
    meter: AccuracyMeter, memory_at: MemoryAt, rates: Mapping[str, float], bits: Mapping[str, int]
) -> CurvePoint:
    """Accuracy with each tensor at its own rate."""
    return meter.at(mean_ber(rates, bits), lambda seed: joint_memory(memory_at, rates, seed))


def _half_width(values: torch.Tensor) -> float:
    """Half the 95 % confidence interval of the mean of independent ``values``; 0 where there is but one."""
    count = values.numel()
    if count < 2:
        return 0.0
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * float(values.std()) / math.sqrt(count)
