"""Run any ``nn.Module`` with its weights and input feature maps (IFMs) in an approximate memory, unchanged.

On every forward pass each parameter is read through the memory as ``"<module path>.<parameter>"``, and each layer's
input is stored and read back as ``"<module path>.ifm"``, in the exact bits of the chosen precision. Gradients pass
straight through: master weights and the backward pass are reliable (EDEN, section 1).

What stays reliable: buffers (running statistics of batch norm), integer inputs (indices of an embedding), and what a
recurrent layer holds between its time steps.
"""

import copy
import itertools
import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from eden.bounding import Bounding, correct
from eden.memory import ApproximateMemory, ReliableMemory
from eden.precision import Precision, TensorFormat
from profiles.errors import NetworkError
from profiles.progress import Progress, silent

CHECKPOINT_FORMAT = "eden-network"
CHECKPOINT_VERSION = "1"

_networks: "WeakValueDictionary[int, ApproximateNetwork]" = WeakValueDictionary()
_handles = itertools.count()


@dataclass(frozen=True)
class TensorSpec:
    """One tensor that lives in approximate memory.

    Attributes:
        name: its name in the memory.
        kind: "weight" (any parameter) or "ifm".
        elements: values of the tensor; of an IFM, for one image.
        precision: stored number format.
    """

    name: str
    kind: Literal["weight", "ifm"]
    elements: int
    precision: Precision

    def bits(self, images: int = 1) -> int:
        """Bits that it occupies, in whole bytes; an IFM that of a batch of ``images``."""
        count = self.elements * (images if self.kind == "ifm" else 1)
        return self.precision.stored_bytes(count) * 8


@torch.library.custom_op("eden::pass_through_memory", mutates_args=())
def _pass_through_memory(values: torch.Tensor, network: int, tensor: str, store: bool) -> torch.Tensor:
    """What the memory of ``network`` returns for ``tensor``, after storing ``values`` there if ``store``."""
    return _networks[network]._read(tensor, values, store)


@_pass_through_memory.register_fake
def _(values: torch.Tensor, network: int, tensor: str, store: bool) -> torch.Tensor:
    return torch.empty(values.shape, dtype=values.dtype, device=values.device)


def _straight_through(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
    return gradient, None, None, None


_pass_through_memory.register_autograd(_straight_through)


class ApproximateNetwork(nn.Module):
    """A network whose weights and IFMs pass through an approximate memory.

    Call `calibrate` once, then use it as the module itself. Weights are stored whenever they have changed, with scale
    and plausible range from their reliable values, and loaded on every forward pass.

    Args:
        module: the network, float32 on the CPU; it is not modified, and training this network trains it.
        precision: stored number format of all its tensors.
        memory: where they live.
        bounding: what becomes of values read outside their plausible range.

    Raises:
        NetworkError: the module holds parameters that are not float32, none at all, or layers whose inputs cannot be
            seen from outside (`nn.MultiheadAttention`).
    """

    def __init__(
        self,
        module: nn.Module,
        precision: Precision,
        memory: ApproximateMemory | None = None,
        bounding: Bounding = Bounding.ZERO,
    ) -> None:
        super().__init__()
        _check_supported(module)
        self.module = module
        self.precision = precision
        self.bounding = bounding
        self.formats: dict[str, TensorFormat] = {}
        self._ifm_elements: dict[str, int] = {}
        self._stored_versions: dict[str, tuple[int, int]] = {}
        self._memory: ApproximateMemory = ReliableMemory() if memory is None else memory
        self._handle = next(_handles)
        self._running = False
        self._loaded: dict[str, torch.Tensor] = {}  # weights of the pass in progress that it has not asked for yet
        _networks[self._handle] = self
        for path, layer in self._layers():
            layer.register_forward_pre_hook(self._ifm_hook(path))

    @property
    def memory(self) -> ApproximateMemory:
        """Where the tensors live; setting it stores the weights there at the next forward pass."""
        return self._memory

    @memory.setter
    def memory(self, memory: ApproximateMemory) -> None:
        self._memory = memory
        self._stored_versions.clear()

    def forward(self, *inputs: Any) -> Any:
        """The module's output with every weight and IFM read from memory. Raises NetworkError before calibration."""
        if not self._ifm_elements:
            raise NetworkError("the network is not calibrated; call calibrate() with some batches of inputs first")
        self.store_weights()
        weights = dict(self.module.named_parameters())
        self._loaded = dict(zip(weights, self._memory.load_all(list(weights)), strict=True))
        read = {name: self._through(name, value, store=False) for name, value in weights.items()}
        self._running = True
        try:
            return torch.func.functional_call(self.module, read, inputs, tie_weights=True)
        finally:
            self._running = False

    def store_weights(self, force: bool = False) -> None:
        """Store each parameter that has changed since it was last stored, in a format for its values now.

        Changes made through ``parameter.data`` in place cannot be seen; ``force`` stores all.
        """
        for name, value in self.module.named_parameters():
            version = (value.data_ptr(), value._version)
            if force or self._stored_versions.get(name) != version:
                self.formats[name] = _format_of(value.detach(), self.precision)
                self._memory.store(name, self.formats[name].encode(value))
                self._stored_versions[name] = version

    def calibrate(self, batches: Iterable[torch.Tensor], quantile: float = 1.0, progress: Progress = silent) -> None:
        """Take scales and plausible ranges of all IFMs from reliable forward passes over ``batches`` of inputs.

        Replaces any earlier calibration; what a later input exceeds a range by is saturated when it is stored. A
        ``quantile`` below 1 tightens the ranges to it at both ends (the mean over batches): rare large values are then
        saturated, and errors stay smaller.

        Raises:
            NetworkError: no batches, a layer with parameters that no batch reached, an input that is no plain tensor,
                or values that are not finite.
        """
        observer = _RangeObserver(quantile)
        handles = [layer.register_forward_pre_hook(observer.hook(path)) for path, layer in self._layers()]
        was_training = self.module.training
        try:
            self.module.eval()
            with torch.no_grad():
                all_batches = list(batches)
                for done, batch in enumerate(all_batches):
                    observer.images = max(1, batch.shape[0])
                    self.module(batch)
                    progress(done + 1, len(all_batches))
        finally:
            self.module.train(was_training)
            for handle in handles:
                handle.remove()
        self._check_reached(observer)
        for name, ranges in observer.ranges.items():
            self.formats[name] = _named_format(name, self.precision, *observer.combined(ranges))
        self._ifm_elements = observer.elements

    def twin(self, memory: ApproximateMemory | None = None) -> "ApproximateNetwork":
        """An independent network with a copy of the weights and the same calibration, in ``memory``."""
        other = ApproximateNetwork(copy.deepcopy(self.module), self.precision, memory, self.bounding)
        other.formats = dict(self.formats)
        other._ifm_elements = dict(self._ifm_elements)
        return other

    def tensors(self) -> list[TensorSpec]:
        """Every tensor that lives in the memory: parameters in the module's order, then IFMs. Calibrate first."""
        weights = [
            TensorSpec(name, "weight", value.numel(), self.precision) for name, value in self.module.named_parameters()
        ]
        return weights + [
            TensorSpec(name, "ifm", elements, self.precision) for name, elements in self._ifm_elements.items()
        ]

    def save(self, path: Path, network: str) -> None:
        """Write master weights (FP32), formats and IFM sizes as safetensors; ``network`` is the registry name."""
        self.store_weights()
        metadata = {
            "format": CHECKPOINT_FORMAT,
            "version": CHECKPOINT_VERSION,
            "network": network,
            "precision": self.precision.value,
            "formats": json.dumps({name: asdict(value) for name, value in self.formats.items()}),
            "ifm_elements": json.dumps(self._ifm_elements),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.module.state_dict().items()}, path, metadata)

    def load(self, path: Path) -> None:
        """Load what `save` wrote into this network. Formats of weights follow from the weights themselves.

        Raises:
            NetworkError: no such file, a foreign or damaged one, another precision, or weights of another network.
        """
        metadata = read_checkpoint_metadata(path)
        if metadata["precision"] != self.precision:
            raise NetworkError(
                f"{path} holds an {metadata['precision']} network, not {self.precision}; load it as that"
            )
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        try:
            self.module.load_state_dict(state)
        except RuntimeError as error:
            raise NetworkError(f"{path} holds the weights of another network ({metadata['network']})") from error
        formats = json.loads(metadata["formats"])
        self._ifm_elements = json.loads(metadata["ifm_elements"])
        for name in self._ifm_elements:
            values = formats[name]
            self.formats[name] = TensorFormat(self.precision, values["scale"], values["low"], values["high"])
        self._stored_versions.clear()

    def _layers(self) -> list[tuple[str, nn.Module]]:
        """Leaf modules that have parameters of their own, with their paths."""
        return [
            (path or "network", layer)
            for path, layer in self.module.named_modules()
            if next(layer.parameters(recurse=False), None) is not None and next(layer.children(), None) is None
        ]

    def _ifm_hook(self, path: str) -> Any:
        handle = self._handle

        def store_and_read_inputs(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            network = _networks.get(handle)
            if network is None or not network._running:
                return None
            names = _ifm_names(path, inputs)
            return tuple(
                network._through(name, value, store=True) if name is not None else value
                for name, value in zip(names, inputs, strict=True)
            )

        return store_and_read_inputs

    def _through(self, tensor: str, values: torch.Tensor, store: bool) -> torch.Tensor:
        if tensor not in self.formats:
            raise NetworkError(f"{tensor} was not seen in calibration; calibrate with inputs that reach it")
        result: torch.Tensor = _pass_through_memory(values, self._handle, tensor, store)
        return result

    def _read(self, tensor: str, values: torch.Tensor, store: bool) -> torch.Tensor:
        tensor_format = self.formats[tensor]
        if store:
            self._memory.store(tensor, tensor_format.encode(values))
        data = self._loaded.pop(tensor, None)
        stored = tensor_format.stored_elements(self._memory.load(tensor) if data is None else data, values.numel())
        return tensor_format.values(correct(stored, tensor_format, self.bounding), values.shape)

    def _check_reached(self, observer: "_RangeObserver") -> None:
        if not observer.images:
            raise NetworkError("calibration got no batches; give at least one batch of inputs")
        for path, layer in self._layers():
            if path not in observer.reached:
                raise NetworkError(
                    f"layer {path} ({type(layer).__name__}) is never called by the network's forward pass, so its "
                    "input cannot be placed in memory; use a module that calls its layers"
                )


class _RangeObserver:
    """Collects the range of values, and size an image, of every IFM."""

    def __init__(self, quantile: float) -> None:
        if not 0.5 < quantile <= 1:
            raise NetworkError(f"quantile {quantile} leaves no range; give one above 0.5, up to 1")
        self.quantile = quantile
        self.images = 0  # of the batch in progress
        self.reached: set[str] = set()
        self.ranges: dict[str, list[tuple[float, float]]] = {}
        self.elements: dict[str, int] = {}

    def hook(self, path: str) -> Any:
        def observe(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.reached.add(path)
            for name, value in zip(_ifm_names(path, inputs), inputs, strict=True):
                if name is not None:
                    self._add(name, value)

        return observe

    def _add(self, name: str, value: torch.Tensor) -> None:
        flat = value.detach().reshape(-1)
        rank = max(1, math.ceil(self.quantile * flat.numel()))
        if rank == flat.numel():
            smallest, largest = torch.aminmax(flat)
        else:
            smallest, largest = -torch.kthvalue(-flat, rank).values, torch.kthvalue(flat, rank).values
        self.ranges.setdefault(name, []).append((float(smallest), float(largest)))
        self.elements[name] = max(-(-value.numel() // self.images), self.elements.get(name, 0))

    def combined(self, ranges: list[tuple[float, float]]) -> tuple[float, float]:
        """One range from those of the batches: all of it, or the mean where it is tightened."""
        smallest, largest = zip(*ranges, strict=True)
        if self.quantile == 1:
            return (math.nan, math.nan) if any(map(math.isnan, smallest)) else (min(smallest), max(largest))
        return statistics.fmean(smallest), statistics.fmean(largest)


def read_checkpoint_metadata(path: Path) -> dict[str, str]:
    """The metadata that `ApproximateNetwork.save` wrote: network, precision, formats.

    Raises:
        NetworkError: no such file, or not one of ours, or of a newer version.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except FileNotFoundError as error:
        raise NetworkError(f"no network at {path}; train one first") from error
    except (SafetensorError, OSError) as error:
        raise NetworkError(f"{path} is no intact safetensors file ({error}); train or copy it again") from error
    if metadata.get("format") != CHECKPOINT_FORMAT:
        raise NetworkError(f"{path} was not written by this toolkit; give a file that eden train or eden boost wrote")
    if metadata.get("version") != CHECKPOINT_VERSION:
        raise NetworkError(
            f"{path} has version {metadata.get('version')}, this toolkit reads {CHECKPOINT_VERSION}; update the toolkit"
        )
    return metadata


def _ifm_names(path: str, inputs: tuple[Any, ...]) -> list[str | None]:
    """The name of each positional input in memory: ``ifm``, then ``ifm1`` ...; None for what is not stored."""
    names: list[str | None] = []
    for value in inputs:
        if isinstance(value, nn.utils.rnn.PackedSequence | tuple | list):
            raise NetworkError(
                f"layer {path} takes a {type(value).__name__} as input; only plain tensors can be stored: pad sequences"
            )
        stored = isinstance(value, torch.Tensor) and value.is_floating_point()
        count = sum(name is not None for name in names)
        names.append(f"{path}.ifm{count or ''}" if stored else None)
    return names


def _check_supported(module: nn.Module) -> None:
    parameters = dict(module.named_parameters())
    if not parameters:
        raise NetworkError("the module has no parameters; there is nothing to keep in memory")
    for name, value in parameters.items():
        if value.dtype != torch.float32 or value.device.type != "cpu":
            raise NetworkError(
                f"{name} is {value.dtype} on {value.device}; float32 on the CPU is supported: convert it"
            )
    for path, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            raise NetworkError(
                f"{path} is nn.MultiheadAttention, whose projections hide their inputs; use separate Linear layers"
            )


def _named_format(name: str, precision: Precision, smallest: float, largest: float) -> TensorFormat:
    try:
        return TensorFormat.for_range(precision, smallest, largest)
    except NetworkError as error:
        raise NetworkError(f"{name}: {error}") from error


def _format_of(value: torch.Tensor, precision: Precision) -> TensorFormat:
    smallest, largest = torch.aminmax(value)
    return TensorFormat.for_range(precision, float(smallest), float(largest))
