"""Training of baseline networks: float first, then in the stored precision, so that quantisation costs nothing."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import nn

from eden.approximate import ApproximateNetwork
from eden.checkpoint import State, prefixed, under
from eden.datasets import Dataset, Split, fashion_mnist, mnist5000
from eden.efficientnet import imagenet_weights, photographs
from eden.networks import build, folded
from eden.precision import Precision
from eden.speech import enrol, voices
from eden.spelling import cmudict
from profiles.progress import Progress, silent

CALIBRATION_BATCH = 500


@dataclass(frozen=True)
class Training:
    """How one stretch of training goes.

    Attributes:
        epochs: passes over the training split.
        learning_rate: peak of a one-cycle schedule (Adam).
        batch: images a step.
        shift_pixels: each image moves by up to this much in both directions, at random; words stay as they are.
        gradient_norm: gradients are scaled down to this norm; rare huge errors then cannot undo an epoch.
    """

    epochs: int
    learning_rate: float
    batch: int = 64
    shift_pixels: int = 2
    gradient_norm: float = 5.0


FLOAT_TRAINING = Training(epochs=20, learning_rate=4e-3)
QUANTISED_TRAINING = Training(epochs=3, learning_rate=5e-4)


@dataclass(frozen=True)
class Recipe:
    """What a network is trained on, and how: in float, then, for integers, in its stored precision.

    ``pretrained`` fills in weights that come in a package, given the training split; training may then have no epochs.
    ``retraining_rate`` is the peak learning rate of `eden.boosting`, where its own is too high for the network.
    ``integer_quantile`` is that of an IFM's values that integer ranges hold, as of `ApproximateNetwork.calibrate`.
    """

    data: Callable[[], Dataset]
    float_training: Training = FLOAT_TRAINING
    quantised_training: Training = QUANTISED_TRAINING
    pretrained: Callable[[nn.Module, Split], None] | None = None
    retraining_rate: float | None = None
    integer_quantile: float = 1.0


AS_IT_COMES = Training(epochs=0, learning_rate=0.0)
RECIPES = {
    "lenet-fashion": Recipe(fashion_mnist),
    "resnet8": Recipe(fashion_mnist, retraining_rate=1e-3),
    "resnet20": Recipe(fashion_mnist, retraining_rate=1e-3),
    "g2p": Recipe(cmudict, Training(12, 6e-3, batch=256), Training(2, 1e-3, batch=256)),
    "speaker": Recipe(voices, AS_IT_COMES, Training(6, 3e-4, batch=20), enrol, integer_quantile=0.98),
    "efficientnet-lite0": Recipe(photographs, AS_IT_COMES, AS_IT_COMES, imagenet_weights),
}
"""By network; every other one learns the digits of `mnist5000`."""


def recipe(network_name: str) -> Recipe:
    """The recipe of a network of `eden.networks`."""
    return RECIPES.get(network_name, Recipe(mnist5000))


def train_baseline(
    network_name: str,
    precision: Precision,
    data: Dataset,
    seed: int,
    float_training: Training | None = None,
    quantised_training: Training | None = None,
    per_channel: bool = False,
    progress: Progress = silent,
    trained_in_float: nn.Module | None = None,
) -> ApproximateNetwork:
    """Train the network ``network_name`` on ``data.train`` for reliable memory of the given precision.

    Its batch norms are then folded, and integer networks trained on in their stored precision. Same seed, same network.
    Training is that of the network's `recipe` where none is given. What is trained in float is the same for every
    precision: ``trained_in_float`` may be the module of this network and seed at FP32, which is then trained on.

    Returns:
        The network, calibrated, on reliable memory, in evaluation mode.
    """
    usual = recipe(network_name)
    float_training = float_training or usual.float_training
    quantised_training = quantised_training or usual.quantised_training
    epochs = 0 if trained_in_float else float_training.epochs
    total = epochs + (quantised_training.epochs if precision.is_integer else 0)
    module = trained_in_float or _train_float(
        network_name, data, seed, float_training, lambda done, _: progress(done, total)
    )
    network = ApproximateNetwork(module, precision, per_channel=per_channel)
    if precision.is_integer:
        hooks = Hooks(before_epoch=lambda _: calibrate(network, data.train, usual.integer_quantile))
        train(
            *(network, data.train, quantised_training, seed + 1),
            hooks=hooks,
            progress=lambda done, _: progress(epochs + done, total),
        )
    calibrate(network, data.train, usual.integer_quantile if precision.is_integer else 1.0)
    return network.eval()


def _train_float(network_name: str, data: Dataset, seed: int, training: Training, progress: Progress) -> nn.Module:
    """The network trained in float, its batch norms folded."""
    module, usual = build(network_name, seed), recipe(network_name)
    if usual.pretrained is not None:
        usual.pretrained(module, data.train)
    train(module, data.train, training, seed, progress=progress)
    return folded(module)


def calibrate(network: ApproximateNetwork, split: Split, quantile: float = 1.0) -> None:
    """Take the network's scales and plausible ranges from all of ``split``; see `ApproximateNetwork.calibrate`."""
    network.calibrate(split.batches(CALIBRATION_BATCH), quantile)


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Loss from outputs (logits) and the indices of their images in the training split."""


def _nothing(_: object) -> None:
    pass


class Course:
    """A training between two epochs: what its rest follows from, besides the data.

    Attributes:
        epoch: how many are done.
    """

    def __init__(self, network: nn.Module, training: Training, images: int, seed: int) -> None:
        self.epoch = 0
        self.network = network
        self.generator = torch.Generator().manual_seed(seed)
        self.optimiser = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
        steps = training.epochs * -(-images // training.batch)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, training.learning_rate, total_steps=max(1, steps)
        )

    def state(self) -> State:
        """All of it."""
        adam = self.optimiser.state_dict()
        moments = {
            f"{parameter}.{name}": value for parameter, held in adam["state"].items() for name, value in held.items()
        }
        tensors = {
            **prefixed("network.", self.network.state_dict()),
            **prefixed("optimiser.", moments),
            "generator": self.generator.get_state(),
            "dropout": torch.get_rng_state(),
        }
        return tensors, {"epoch": self.epoch, "groups": adam["param_groups"], "schedule": self.schedule.state_dict()}

    def go_on(self, state: State) -> None:
        """Be where ``state`` was taken."""
        tensors, notes = state
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for place, value in under("optimiser.", tensors).items():
            parameter, _, name = place.partition(".")
            moments.setdefault(int(parameter), {})[name] = value
        self.network.load_state_dict(under("network.", tensors))
        self.optimiser.load_state_dict({"state": moments, "param_groups": notes["groups"]})
        self.schedule.load_state_dict(notes["schedule"])
        self.generator.set_state(tensors["generator"])
        torch.set_rng_state(tensors["dropout"])
        self.epoch = notes["epoch"]


@dataclass(frozen=True)
class Hooks:
    """What else happens in training. Epochs count from 0.

    Attributes:
        begin: called first, with the course; it may have it go on from where another one was.
        before_epoch, after_epoch: called with the epoch's number.
        after_step: called with the epoch's number after each optimiser step.
        keep: called after all else of an epoch, with the course.
    """

    begin: Callable[[Course], None] = _nothing
    before_epoch: Callable[[int], None] = _nothing
    after_step: Callable[[int], None] = _nothing
    after_epoch: Callable[[int], None] = _nothing
    keep: Callable[[Course], None] = _nothing


def train(
    network: nn.Module,
    split: Split,
    training: Training,
    seed: int,
    loss: Loss | None = None,
    hooks: Hooks = Hooks(),
    progress: Progress = silent,
) -> None:
    """Train ``network`` in place; the loss is cross-entropy unless another is given."""
    loss_of = loss or (lambda outputs, chosen: functional.cross_entropy(outputs, split.labels[chosen].to(device)))
    device = next(network.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # of what is random in the network itself, such as dropout
        course = Course(network, training, len(split), seed)
        hooks.begin(course)
        for epoch in range(course.epoch, training.epochs):
            hooks.before_epoch(epoch)
            network.train()
            for chosen in torch.split(torch.randperm(len(split), generator=course.generator), training.batch):
                images = shift_randomly(split.images[chosen], training.shift_pixels, course.generator)
                course.optimiser.zero_grad()
                torch.autograd.backward(loss_of(network(images.to(device)), chosen))
                nn.utils.clip_grad_norm_(network.parameters(), training.gradient_norm)
                course.optimiser.step()
                course.schedule.step()
                hooks.after_step(epoch)
            network.eval()
            hooks.after_epoch(epoch)
            course.epoch = epoch + 1
            hooks.keep(course)
            progress(epoch + 1, training.epochs)


def shift_randomly(images: torch.Tensor, pixels: int, generator: torch.Generator) -> torch.Tensor:
    """Each of ``images`` [n, c, h, w] moved by up to ``pixels`` along both axes, padded with the smallest value.

    What is not of this shape, such as words, is returned as it is.
    """
    if not pixels or images.dim() != 4:
        return images
    count, _, height, width = images.shape
    padded = functional.pad(images, (pixels,) * 4, value=float(images.min()))
    down, right = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=generator)
    rows = (down + torch.arange(height))[:, :, None]
    columns = (right + torch.arange(width))[:, None, :]
    return padded[torch.arange(count)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)
