"""Boosting a network's error tolerance by curricular retraining (EDEN, section 1).

Forward passes read weights and IFMs through approximate memory; gradients and master weights are reliable. The error
rate rises from 0 in small steps. What the short schedule needs beyond the paper (clean accuracy fell without):

- the unboosted network teaches (most of the loss is its softened outputs), as accuracy is counted from it;
- ranges are *tightened*: weights are kept within some standard deviations and IFMs within a quantile. The largest value
  sets the scale of every error. Ranges are taken anew each epoch, as weights move;
- signs are *guarded*: codes of tensors with both signs take up two bits less, so that signs are stored three times,
  and FP32 and FP16 are stored likewise, in one binade (`eden.tensor_format`). In two's complement a flipped sign
  moves a small weight by half of all codes, plausibly. LeNet at int8 (seed 1, fresh maps, 30,000 images) loses 0.38
  instead of 0.69 points at a BER of 2e-3, 1.07 instead of 1.76 at 5e-3, and 0.25 instead of 0.32 without errors. IFMs
  behind a ReLU have no sign to lose; nothing guards the highest bit of a value;
- weights are *averaged* over an epoch's steps, as each step under errors goes astray a little;
- the validation split decides which epoch is kept: the last of those that keep the clean accuracy, unless one before
  tolerates twice as much. Estimates of epochs that are as good differ nearly so much, and the last one's learning rate
  is lowest: by the highest estimate, LeNet at int8 (seed 3, on its module's map) was kept after the eighth of ten
  epochs, at 3.4e-3 and 89.2 % clean, instead of the last, at 3.1e-3 and 90.0 %; on test images it then tolerated less
  than the unboosted network. Probes go on until one misses: stopped at 8 times the baseline's rate, all good epochs
  looked alike.

A *control* goes through all of this without the errors, so that what retraining, teacher and ranges are worth alone is
known. Bounding is on in both.

What ablations showed, when the highest estimate was kept, with one seed each (LeNet on Fashion-MNIST, validation
images, errors drawn anew, 95 %, unless it says otherwise):

- int8, on Fashion-MNIST's test split: ending the curriculum at 12 times the baseline's rate costs more accuracy without
  errors than it is worth (seed 2, on its module's map: 0.7 points, and 2.8 times the baseline's tolerance; at 6 times
  0.2 points, and 5.5 times).
- int8 with guarded signs and averaged weights, the last epoch kept, 30,000 images: a curriculum up to 15 times the
  baseline's rate instead of 6 gains nothing at a loss of 1 % (LeNet, seed 1: 0.37 instead of 0.25 points without
  errors, 0.42 instead of 0.38 more at 2e-3, 0.96 instead of 1.07 at 5e-3).
- int8: ending the curriculum at 8 times the baseline's rate instead of 6 does not help. One seed on MNIST gives 6.7
  times the baseline's tolerance with either, another (of the default run) 5.7 times with 6, and with 8 what its control
  has, 3.1 times.
- FP32 as it is: retraining makes the loss half as steep, no more. At a BER of 3e-3 it is 1.8 % (within 0.5) against
  3.6 % (within 0.7). Any of six exponent bits sets a value to zero or nearly so, directly or by bounding, however large
  the value was. On the test split (seed 1, 3 draws of 5000 images) the baseline loses 0.8 points at 8e-4, 2.1 at
  1.6e-3, 4.4 at 3.2e-3; a curriculum of ten epochs up to 4.8e-3 costs 0.8 without errors, and ends at 1.0, 1.5 and 2.5;
  longer and harsher ones change little.
- FP32 in one binade: the network boosted at int8 with guarded signs, stored so, loses 0.34 instead of 0.38 points at
  2e-3 and 0.89 instead of 1.07 at 5e-3 (seed 1, 30,000 images). The format does nothing by itself: the unboosted
  network loses 2.5 points at 2e-3 as FP32 is, 2.7 in one binade (both within 0.3); with IFMs within their quantile, but
  not retrained, 1.3, and 0.3 without errors.
- FP32 in one binade, 16 epochs, the same: up to 10 times the baseline's rate, 4.2e-3, costs 0.24 points without errors
  and 0.54 more at 4.5e-3; up to 6 times 0.12 and 0.70.
- FP32 in one binade, 16 epochs, three seeds, 10,000 validation images, tolerated rate over the baseline's: on fresh
  maps up to 6 times 4.0, 8.0 and 5.7, up to 10 times 4.0, 6.7 and 3.4; on the module's own map 6.4, 7.0 and 5.1, up to
  8 times 7.2, 6.2 and 5.1, up to 10 times 7.2, 5.5 and 5.1. That is no certain difference; without errors 6 costs less
  (0.22 instead of 0.28, and 0.28 instead of 0.38 points, means).
- FP32 in one binade, on MNIST (`eden run plans/default.toml`): up to 3 times the baseline's rate, chosen for a format
  that is gone, 4.4 times the baseline's tolerance, and 4.8 without errors; on four draws instead of five 5.7 and 4.0.
  Harsher ends give no more there: up to 6 times 4.8, with 16 epochs 5.7, up to 10 times with 16 epochs 5.2.
- FP32: saturating implausible values instead of zeroing them loses 4.2 % instead of 1.4 % (within 0.6) at 1.5e-3 in the
  unboosted network: 2.3 % if weights alone are saturated, 3.5 % if IFMs are. Storing values scaled such that the
  largest lies just below 2 or 4 does not help by itself.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from eden.approximate import ApproximateNetwork
from eden.checkpoint import Checkpoint, prefixed, under
from eden.datasets import Dataset, Split
from eden.memory import ApproximateMemory, ReliableMemory
from eden.precision import Precision
from eden.seeds import derive_seed
from eden.tensor_format import TensorFormat
from eden.tolerance import AccuracyMeter, CurvePoint, MemoryAt, Sampling
from eden.training import CALIBRATION_BATCH, Course, Hooks, Loss, Training, calibrate, recipe, train
from profiles.errors import NetworkError
from profiles.progress import Progress, silent

CALIBRATION_IMAGES = 1000
PROBE_STEP = 2.0  # from what the baseline tolerates up, until a rate misses the target
HIGHEST_PROBE = 0.25
PROBE_BATCH = 50
PROBE_IMAGES = 2000  # of the validation split: an estimate is rough, what it costs is not
EPOCH_NOISE = 2.0  # between the estimates of epochs that are as good; of these the last has the lowest learning rate


@dataclass(frozen=True)
class Boosting:
    """How boosting goes.

    Attributes:
        training: epochs, learning rate and so on.
        highest: error rate at the curriculum's end, as a multiple of what the baseline tolerates.
        ramp: share of the epochs over which the rate rises; it starts at 0 and then grows by a constant factor. With 0
            there is no curriculum: the rate is the highest from the first epoch on.
        weight_limit: standard deviations that a weight may reach.
        ifm_quantile: quantile of an IFM's values that its range holds.
        guarded_signs: whether tensors of both signs keep three copies of them, as of `TensorFormat.for_range`.
        teacher: weight of the unboosted network's outputs in the loss; labels have the rest.
        temperature: softens those outputs.
        averaged_epochs: about so many of the last epochs' weights are averaged (exponentially) in the network that is
            judged and kept.
    """

    training: Training
    highest: float
    weight_limit: float
    ifm_quantile: float
    guarded_signs: bool = False
    ramp: float = 0.7
    teacher: float = 0.9
    temperature: float = 2.0
    averaged_epochs: float = 1.0


INTEGER_BOOSTING = Boosting(
    Training(epochs=12, learning_rate=3e-3, shift_pixels=1),
    highest=6.0,
    weight_limit=1.7,
    ifm_quantile=0.98,
    guarded_signs=True,
)
FLOAT_BOOSTING = Boosting(
    Training(epochs=12, learning_rate=3e-3, shift_pixels=1),
    highest=3.0,
    weight_limit=1.7,
    ifm_quantile=0.98,
    guarded_signs=True,
)


def default_boosting(precision: Precision, network: str = "lenet") -> Boosting:
    """Settings that were found to work on the validation split for LeNet; the learning rate is the network's, if any.

    Deep networks without batch norms, which are folded, need a lower one: ResNet-8 at int8 fell from 91 to 52 % of
    validation images in the fifth of ten epochs at LeNet's 3e-3, without errors to 64 %, and no epoch kept its clean
    accuracy; at 1e-3 it lost a point in the first epochs and none at the end.
    """
    settings, rate = INTEGER_BOOSTING if precision.is_integer else FLOAT_BOOSTING, recipe(network).retraining_rate
    return settings if rate is None else replace(settings, training=replace(settings.training, learning_rate=rate))


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of boosting, measured on the validation split.

    Attributes:
        epoch: from 0.
        ber: error rate it trained at.
        clean_accuracy: without errors; of an epoch that could not be kept, on some of the images.
        estimated_ber: rough tolerance, interpolated between a few rates; 0 where clean accuracy misses the target.
    """

    epoch: int
    ber: float
    clean_accuracy: float
    estimated_ber: float


@dataclass(frozen=True)
class Retrained:
    """What `boost` returns; measure tolerances on equal terms with `eden.tolerance.coarse`.

    Attributes:
        network: the retrained network, on reliable memory.
        history: its epochs.
        kept_epoch: whose weights were kept; -1 means no epoch met the clean accuracy, and the baseline's were.
    """

    network: ApproximateNetwork
    history: tuple[EpochRecord, ...]
    kept_epoch: int


def boost(
    baseline: ApproximateNetwork,
    memory_at: MemoryAt,
    data: Dataset,
    tolerated_ber: float,
    target_drop: float,
    baseline_accuracy: float,
    seed: int,
    boosting: Boosting | None = None,
    progress: Progress = silent,
    control: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Retrained:
    """Retrain a copy of ``baseline`` to tolerate more errors; or, as a control, alike but without errors.

    Args:
        baseline: a trained, calibrated network; left as it is.
        memory_at: makes the memory of a given error rate and seed to train with.
        data: trains on ``train``, decides on ``validation``; ``test`` is not touched.
        tolerated_ber: what the baseline tolerates, from `eden.tolerance.coarse`.
        target_drop, baseline_accuracy: criterion for the clean accuracy, as fractions, as for `coarse`.
        seed: of the order of images and of all errors.
        boosting: settings; by default those of the precision.
        progress: called after each epoch.
        control: train without errors; ``memory_at`` then only serves to choose the epoch that is kept.
        checkpoint: where to keep the state after each epoch, and to go on from; whoever gives it removes it once the
            network is safe.

    Raises:
        NetworkError: ``tolerated_ber`` is not within 0..1.
        ProfileError: the checkpoint cannot be written.
    """
    settings = boosting or default_boosting(baseline.precision)
    rates = curriculum(tolerated_ber, settings)
    if control:
        rates = [0.0] * len(rates)
    target = baseline_accuracy - target_drop
    run = _Retraining(baseline, memory_at, data, settings, rates, tolerated_ber, target, seed, checkpoint)
    return run.result(progress)


def curriculum(tolerated_ber: float, boosting: Boosting) -> list[float]:
    """Error rate of each epoch: 0, then from a quarter of ``tolerated_ber`` up by equal factors, then constant.

    Raises:
        NetworkError: ``tolerated_ber`` is not within 0..1.
    """
    if not 0 < tolerated_ber < 1:
        raise NetworkError(f"tolerated BER {tolerated_ber} gives no scale to start from; allow more accuracy loss")
    epochs = boosting.training.epochs
    top = boosting.highest * tolerated_ber
    if not boosting.ramp:
        return [top] * epochs
    start = min(top, tolerated_ber / 4)
    rising = max(1, round(boosting.ramp * epochs) - 1)
    rates = [start * (top / start) ** min(1.0, step / rising) for step in range(epochs - 1)]
    return [0.0, *rates]


class _Retraining:
    """One arm: retrains a twin of the baseline, averages its weights as they move, and keeps the best epoch's average.

    Attributes:
        network: what is trained.
        averaged: the network with its weights' average: what is judged and kept.
    """

    def __init__(
        self,
        baseline: ApproximateNetwork,
        memory_at: MemoryAt,
        data: Dataset,
        settings: Boosting,
        rates: Sequence[float],
        tolerated_ber: float,
        target: float,
        seed: int,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.network = baseline.twin()
        self.network.guarded_signs = settings.guarded_signs
        self.averaged = self.network.twin()
        self.teacher = baseline.twin().eval()
        self.memory_at = memory_at
        self.data = data
        self.settings = settings
        self.rates = rates
        self.tolerated_ber = tolerated_ber
        self.target = target
        self.seed = seed
        self.checkpoint = checkpoint
        self.history: list[EpochRecord] = []
        self.kept_epoch = -1
        self._kept = _copy(baseline)
        self._best = 0.0
        self._steps = 0

    def result(self, progress: Progress) -> Retrained:
        """Retrain, and give back the network of the best epoch."""
        train(
            self.network,
            self.data.train,
            self.settings.training,
            derive_seed(self.seed, "boost"),
            loss=taught_by(self.teacher, self.data.train, self.settings.teacher, self.settings.temperature),
            hooks=Hooks(self._go_on, self._set_errors, self._limit_and_average, self._judge, self._keep),
            progress=progress,
        )
        state, self.averaged.formats, self.averaged.guarded_signs = self._kept
        self.averaged.module.load_state_dict(state)
        return Retrained(self.averaged.eval(), tuple(self.history), self.kept_epoch)

    def _keep(self, course: Course) -> None:
        if self.checkpoint is None:
            return
        tensors, where = course.state()
        weights, formats, guarded_signs = self._kept
        self.checkpoint.keep(
            (
                {**tensors, **prefixed("averaged.", self.averaged.module.state_dict()), **prefixed("kept.", weights)},
                {
                    "course": where,
                    "steps": self._steps,
                    "history": [asdict(epoch) for epoch in self.history],
                    "kept_epoch": self.kept_epoch,
                    "best": self._best,
                    "kept": {"guarded_signs": guarded_signs, "formats": {n: asdict(f) for n, f in formats.items()}},
                },
            )
        )

    def _go_on(self, course: Course) -> None:
        """From what an interrupted run kept."""
        found = self.checkpoint.kept() if self.checkpoint else None
        if found is None:
            return
        tensors, notes = found
        course.go_on((tensors, notes["course"]))
        self.averaged.module.load_state_dict(under("averaged.", tensors))
        self._steps, self._best, self.kept_epoch = notes["steps"], notes["best"], notes["kept_epoch"]
        self.history = [EpochRecord(**epoch) for epoch in notes["history"]]
        formats = {name: TensorFormat.from_fields(fields) for name, fields in notes["kept"]["formats"].items()}
        self._kept = under("kept.", tensors), formats, notes["kept"]["guarded_signs"]

    def _set_errors(self, epoch: int) -> None:
        self._take_ranges(self.network)
        ber = self.rates[epoch]
        memory = self.memory_at(ber, derive_seed(self.seed, "train", epoch)) if ber else ReliableMemory()
        self.network.memory = memory

    def _take_ranges(self, network: ApproximateNetwork) -> None:
        calibrate(network, self.data.train.first(CALIBRATION_IMAGES), self.settings.ifm_quantile)

    def _limit_and_average(self, epoch: int) -> None:
        del epoch
        self._limit_weights()
        epoch_steps = math.ceil(len(self.data.train) / self.settings.training.batch)
        self._steps += 1
        newest = max(1 / self._steps, 1 / max(1.0, self.settings.averaged_epochs * epoch_steps))
        averaged, trained = list(self.averaged.module.parameters()), list(self.network.module.parameters())
        get_ema_multi_avg_fn(1 - newest)(averaged, trained, self._steps)  # type: ignore[no-untyped-call]

    def _limit_weights(self) -> None:
        with torch.no_grad():
            for value in self.network.module.parameters():
                if value.dim() > 1:
                    limit = float(value.std()) * self.settings.weight_limit
                    value.clamp_(-limit, limit)

    def _judge(self, epoch: int) -> None:
        """Record the epoch; keep it unless one before tolerates clearly more. While the rate rises, only record it."""
        with torch.no_grad():
            for ours, theirs in zip(self.averaged.module.buffers(), self.network.module.buffers(), strict=True):
                ours.copy_(theirs)  # a batch norm's statistics are averages already
        self._take_ranges(self.averaged)
        may_be_kept, validation = self._may_be_kept(epoch), self.data.validation
        images = validation if may_be_kept else validation.first(PROBE_IMAGES)
        clean = AccuracyMeter(self.averaged, images, Sampling(1)).clean
        to_lose = clean - self.target
        estimated = self._estimate(to_lose) if to_lose >= 0 and may_be_kept else 0.0
        self.history.append(EpochRecord(epoch, self.rates[epoch], clean, estimated))
        if estimated * EPOCH_NOISE > self._best:
            self.kept_epoch = epoch
            self._kept = _copy(self.averaged)
        self._best = max(self._best, estimated)

    def _may_be_kept(self, epoch: int) -> bool:
        return epoch >= len(self.rates) * self.settings.ramp - 1

    def _estimate(self, to_lose: float) -> float:
        """Rough tolerance. Probes go on until one misses: a highest one would make all good epochs look alike."""
        batch = min(PROBE_BATCH, self.settings.training.batch)  # a memory may have room for no more
        sampling = Sampling(1, batch, derive_seed(self.seed, "probe"))
        meter = AccuracyMeter(self.averaged, self.data.validation.first(PROBE_IMAGES), sampling)
        target = meter.clean - to_lose
        points, ber = [CurvePoint(0.0, meter.clean, meter.clean, meter.clean)], self.tolerated_ber
        while points[-1].accuracy >= target and ber <= HIGHEST_PROBE:
            points.append(meter.at(ber, self._memory_factory(ber)))
            ber *= PROBE_STEP
        return crossing(points, target)

    def _memory_factory(self, ber: float) -> Callable[[int], ApproximateMemory]:
        return lambda seed: self.memory_at(ber, seed)


def taught_by(teacher: ApproximateNetwork, split: Split, share: float, temperature: float) -> Loss:
    """Loss against the labels of ``split`` and, by ``share``, against ``teacher``'s softened outputs (distillation).

    The teacher sees each image as it is, once; the pupil may see it moved.
    """
    with torch.no_grad():
        logits = torch.cat([teacher(batch.to(teacher.device)) for batch in split.batches(CALIBRATION_BATCH)])
    taught, labels = functional.softmax(logits / temperature, dim=1), split.labels.to(teacher.device)

    def loss(outputs: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        told = functional.log_softmax(outputs / temperature, dim=1)
        imitation = functional.kl_div(told, taught[chosen], reduction="none").sum(dim=1).mean() * temperature**2
        return share * imitation + (1 - share) * functional.cross_entropy(outputs, labels[chosen])

    return loss


def crossing(points: Sequence[CurvePoint], target: float) -> float:
    """Where accuracy first falls to ``target``, between ascending ``points``.

    The mean decides, not its lower bound: of so few draws the bound says more of their number than of the network.

    Interpolated in the logarithm of BER, from 0 to a first positive rate linearly; the last BER where it never does.
    """
    for left, right in itertools.pairwise(points):
        if right.accuracy < target:
            share = (left.accuracy - target) / (left.accuracy - right.accuracy)
            if left.ber == 0:
                return right.ber * share
            return math.exp(math.log(left.ber) + share * math.log(right.ber / left.ber))
    return points[-1].ber


def _copy(network: ApproximateNetwork) -> tuple[dict[str, torch.Tensor], dict[str, TensorFormat], bool]:
    """Its weights, and how they and IFMs are stored."""
    state = {name: value.clone() for name, value in network.module.state_dict().items()}
    return state, dict(network.formats), network.guarded_signs
