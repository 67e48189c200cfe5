"""Run any ``nn.Module`` with its weights and input feature maps (IFMs) in an approximate memory, unchanged.

On every forward pass each parameter is read through the memory, once, as ``"<module path>.<parameter>"``; one that
layers share is one tensor. Each layer's input is stored and read back as ``"<module path>.ifm"`` whenever the layer is
called, in the exact bits of the chosen precision. Gradients pass straight through: master weights and the backward pass
are reliable (EDEN, section 1).

What stays reliable: buffers (running statistics of batch norm), integer inputs (indices of an embedding), what a
recurrent layer holds between its time steps and between layers that are stacked in it (``num_layers``: use one layer
after the other to have their inputs in the memory), and what attention holds between its projections and its products.

The module may compute on a GPU. Its tensors become stored bits there; on a CUDA device the memories of `eden.memory`
hold and corrupt them there too (`eden.cuda_injection`). The same seed flips the same bits as on a CPU.

Reads are operators of their own (`_read_weights`, `_pass_ifm`), so that ``torch.compile`` and ``torch.export`` keep
them, every one. An exported program reads the memory of the network it was made from, while that is in use. Activation
checkpointing, which would read anew in the backward pass, is refused.
"""

import copy
import itertools
import json
import math
import statistics
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves, tree_map

from eden import attention
from eden.bounding import Bounding, values_read
from eden.memory import ApproximateMemory, ReliableMemory
from eden.precision import Precision
from eden.tensor_format import TensorFormat
from profiles.errors import NetworkError
from profiles.files import atomic_file
from profiles.progress import Progress, silent

CHECKPOINT_FORMAT = "eden-network"
CHECKPOINT_VERSION = "4"
READABLE_VERSIONS = ("1", "2", "3", CHECKPOINT_VERSION)  # guarded signs are new in 3, of floating point in 4

# A CUDA graph would repeat the draws that it was captured with.
_TAGS = (torch.Tag.nondeterministic_seeded, torch.Tag.cudagraph_unsafe)
_networks: "weakref.WeakValueDictionary[int, ApproximateNetwork]" = weakref.WeakValueDictionary()
_handles = itertools.count()
_PARAMETER_CONTAINERS = (nn.ParameterList, nn.ParameterDict)  # they are never called: who holds them computes


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


Batch: TypeAlias = torch.Tensor | Sequence[Any] | Mapping[str, Any]
"""Inputs of a module: its only one, several in their order, or by name."""


@torch.library.custom_op("eden::read_weights", mutates_args=(), tags=_TAGS)
def _read_weights(weights: list[torch.Tensor], network: int) -> list[torch.Tensor]:
    """What the memory of ``network`` returns for its parameters, after storing those of ``weights`` that changed."""
    return _network(network)._weights_read(weights)


@_read_weights.register_fake
def _(weights: list[torch.Tensor], network: int) -> list[torch.Tensor]:
    return [torch.empty(value.shape, dtype=value.dtype, device=value.device) for value in weights]


@torch.library.custom_op("eden::pass_ifm", mutates_args=(), tags=_TAGS)
def _pass_ifm(values: torch.Tensor, network: int, tensor: str) -> torch.Tensor:
    """What the memory of ``network`` returns for ``tensor``, after storing ``values`` there."""
    return _network(network)._ifm_read(tensor, values)


@_pass_ifm.register_fake
def _(values: torch.Tensor, network: int, tensor: str) -> torch.Tensor:
    return torch.empty(values.shape, dtype=values.dtype, device=values.device)


_read_weights.register_autograd(lambda _, gradients: (gradients, None))
_pass_ifm.register_autograd(lambda _, gradient: (gradient, None, None))


def _network(handle: int) -> "ApproximateNetwork":
    network = _networks.get(handle)
    if network is None:
        raise NetworkError(
            "the approximate network that this program was made from is gone; keep it while the program is in use, or "
            "export it again"
        )
    return network


@dataclass(frozen=True)
class _Encoded:
    """A weight as it is stored.

    Attributes:
        values: it was encoded from, a copy.
        guarded_signs: whether signs were guarded.
        tensor_format: how it was encoded.
        data: its bytes; memories share them.
    """

    values: torch.Tensor
    guarded_signs: bool
    tensor_format: TensorFormat
    data: torch.Tensor

    def may_be_of(self, values: torch.Tensor, guarded_signs: bool) -> bool:
        """Whether ``values`` would have been encoded alike, were they the same."""
        where = (values.device, values.dtype)
        return guarded_signs == self.guarded_signs and where == (self.values.device, torch.float32)


class ApproximateNetwork(nn.Module):
    """A network whose weights and IFMs pass through an approximate memory.

    Call `calibrate` once, then use it as the module itself. Weights are stored whenever they have changed, with scale
    and plausible range from their reliable values, and loaded on every forward pass.

    Args:
        module: the network, float32, on a CPU or a GPU; it is not modified, and training this network trains it.
        precision: stored number format of all its tensors.
        memory: where they live.
        bounding: what becomes of values read outside their plausible range.
        per_channel: whether each output channel of a weight has a scale of its own, in reliable memory; integers only.

    Attributes:
        guarded_signs: as of `TensorFormat.for_range`; what is set holds from the next calibration on, and for weights
            from the next pass on.

    Raises:
        NetworkError: ``per_channel`` for floating point, or the module holds parameters that are not float32, none at
            all, or layers whose inputs cannot be seen from outside (TorchScript).
    """

    def __init__(
        self,
        module: nn.Module,
        precision: Precision,
        memory: ApproximateMemory | None = None,
        bounding: Bounding = Bounding.ZERO,
        per_channel: bool = False,
    ) -> None:
        super().__init__()
        _check_supported(module)
        if per_channel and not precision.is_integer:
            raise NetworkError(f"{precision} has no scales, of a channel or a tensor; ask for int4, int8 or int16")
        self.per_channel = per_channel
        self._channel_axes = _channel_axes(module) if per_channel else {}
        self.module = module
        self.precision = precision
        self.bounding = bounding
        self.guarded_signs = False
        self.formats: dict[str, TensorFormat] = {}
        self._ifm_elements: dict[str, int] = {}
        self._calibrated = False
        self._encoded: dict[str, _Encoded] = {}  # weights, also while they are stored in no memory
        self._stored: set[str] = set()
        self._memory: ApproximateMemory = ReliableMemory() if memory is None else memory
        self._handle = next(_handles)
        self._running = False
        self._observer: _RangeObserver | None = None
        _networks[self._handle] = self
        for path, layer in self._layers():
            if isinstance(layer, nn.MultiheadAttention):
                _see_attention(weakref.ref(self), path, layer)
            else:
                layer.register_forward_pre_hook(_input_hook(weakref.ref(self), path), with_kwargs=True)

    @property
    def device(self) -> torch.device:
        """Where the module computes: that of its parameters. `calibrate` brings its batches there itself."""
        return next(self.module.parameters()).device

    @property
    def memory(self) -> ApproximateMemory:
        """Where the tensors live; setting it stores all weights there at the next forward pass."""
        return self._memory

    @memory.setter
    def memory(self, memory: ApproximateMemory) -> None:
        self._memory = memory
        self._stored.clear()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The module's output with every weight and IFM read from memory. Raises NetworkError before calibration."""
        if not self._calibrated:
            raise NetworkError("the network is not calibrated; call calibrate() with some batches of inputs first")
        weights = list(self.module.parameters())
        read = dict(zip(map(id, weights), _read_weights(weights, self._handle), strict=True))
        self._running = True
        try:
            return torch.func.functional_call(self.module, self._by_path(read), inputs, named, tie_weights=False)
        finally:
            self._running = False

    def encode_weights(self) -> None:
        """Encode each parameter that has changed, in a format for its values now: `formats` are then those of all."""
        self._encode_changed({name: value.detach() for name, value in self.module.named_parameters()})

    def calibrate(self, batches: Iterable[Batch], quantile: float = 1.0, progress: Progress = silent) -> None:
        """Take scales and plausible ranges of all IFMs from reliable forward passes over ``batches`` of inputs.

        A batch is the module's one input, a tuple of several, or a dictionary of them by name; the first dimension of
        its first tensor counts the images.

        Replaces any earlier calibration; what a later input exceeds a range by is saturated when it is stored. A
        ``quantile`` below 1 tightens the ranges to it at both ends (the mean over batches): rare large values are then
        saturated, and errors stay smaller.

        Raises:
            NetworkError: no batches, one without a tensor, a layer with parameters that no batch reached, an input of a
                layer that is no plain tensor, or values that are not finite.
        """
        observer = _RangeObserver(quantile)
        was_training = self.module.training
        try:
            self._observer = observer
            self.module.eval()
            with torch.no_grad():
                all_batches = list(batches)
                for done, batch in enumerate(all_batches):
                    inputs, named = _arguments(batch, self.device)
                    observer.images = _images(inputs, named)
                    self.module(*inputs, **named)
                    progress(done + 1, len(all_batches))
        finally:
            self.module.train(was_training)
            self._observer = None
        self._check_reached(observer)
        for name, ranges in observer.ranges.items():
            self.formats[name] = _named_format(name, self.precision, *observer.combined(ranges), self.guarded_signs)
        self._ifm_elements, self._calibrated = observer.elements, True

    def twin(self, memory: ApproximateMemory | None = None) -> "ApproximateNetwork":
        """An independent network with a copy of the weights and the same calibration, in ``memory``."""
        other = ApproximateNetwork(copy.deepcopy(self.module), self.precision, memory, self.bounding, self.per_channel)
        other.guarded_signs = self.guarded_signs
        other.formats = dict(self.formats)
        other._ifm_elements, other._calibrated = dict(self._ifm_elements), self._calibrated
        return other

    def tensors(self) -> list[TensorSpec]:
        """Every tensor that lives in the memory: parameters in the module's order, then IFMs. Calibrate first."""
        weights = [
            TensorSpec(name, "weight", value.numel(), self.precision) for name, value in self.module.named_parameters()
        ]
        return weights + [
            TensorSpec(name, "ifm", elements, self.precision) for name, elements in self._ifm_elements.items()
        ]

    def metadata_bits(self) -> int:
        """Bits of all scales and ranges, which lie in reliable memory. Calibrate first."""
        self.encode_weights()
        return sum(self.formats[tensor.name].metadata_bits for tensor in self.tensors())

    def save(self, path: Path, network: str) -> None:
        """Write master weights (FP32), formats, bounding and IFM sizes; ``network`` is the registry name.

        Raises:
            ProfileError: the disk is full or cannot be written; what was there is then still whole.
        """
        self.encode_weights()
        metadata = {
            "format": CHECKPOINT_FORMAT,
            "version": CHECKPOINT_VERSION,
            "network": network,
            "precision": self.precision.value,
            "per_channel": json.dumps(self.per_channel),
            "guarded_signs": json.dumps(self.guarded_signs),
            "bounding": self.bounding.value,
            "formats": json.dumps({name: asdict(value) for name, value in self.formats.items()}),
            "ifm_elements": json.dumps(self._ifm_elements),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            name: value.clone(memory_format=torch.contiguous_format) for name, value in self.module.state_dict().items()
        }
        with atomic_file(path) as file:
            file.write(save(state, metadata))

    def load(self, path: Path) -> None:
        """Load what `save` wrote into this network. Formats of weights follow from the weights themselves.

        Raises:
            NetworkError: no such file, a foreign or damaged one, one of a format that is gone, another precision, or
                weights of another network.
        """
        metadata = read_checkpoint_metadata(path)
        if metadata["precision"] != self.precision:
            raise NetworkError(
                f"{path} holds an {metadata['precision']} network, not {self.precision}; load it as that"
            )
        if is_per_channel(metadata) != self.per_channel:
            raise NetworkError(f"{path} holds a network with scales of another kind (per_channel); load it as that")
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        try:
            self.module.load_state_dict(state)
        except RuntimeError as error:
            raise NetworkError(f"{path} holds the weights of another network ({metadata['network']})") from error
        self.guarded_signs = json.loads(metadata.get("guarded_signs", "false"))
        self.bounding = Bounding(metadata.get("bounding", Bounding.ZERO))  # older files do not say
        formats = json.loads(metadata["formats"])
        self._ifm_elements, self._calibrated = json.loads(metadata["ifm_elements"]), True
        for name in self._ifm_elements:
            self.formats[name] = TensorFormat.from_fields(formats[name])

    def _layers(self) -> list[tuple[str, nn.Module]]:
        """Modules that compute with parameters of their own, with their paths; each once."""
        return [(path or "network", layer) for path, layer in self.module.named_modules() if _is_layer(layer)]

    def _by_path(self, read: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What was read of each parameter, by every path at which a module holds it.

        A module that stands at several paths appears once: torch would swap its parameters twice, and put back what
        was read.
        """
        return {
            f"{path}.{name}" if path else name: read[id(value)]
            for path, owner in self.module.named_modules()
            for name, value in owner.named_parameters(recurse=False)
        }

    def _visit(self, path: str, inputs: Any) -> Any:
        """The inputs of the layer at ``path``, as the pass in progress sees them.

        A tensor that is several of a layer's inputs is stored, and read, once.
        """
        if self._observer is None and not self._running:
            _check_not_recomputed(f"layer {path}")
            return inputs
        if self._observer is not None:
            _check_visible(inputs, path)
            self._observer.reached.add(path)
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def see(values: torch.Tensor) -> torch.Tensor:
            for stored, read in seen:
                if stored is values:
                    return read
            name = f"{path}.ifm{len(seen) or ''}"
            if self._observer is not None:
                self._observer.add(name, values)
                read = values
            else:
                read = _pass_ifm(values, self._handle, name)
            seen.append((values, read))
            return read

        return _each_tensor(inputs, path, see)

    def _store_changed(self, weights: Sequence[torch.Tensor]) -> None:
        names = [name for name, _ in self.module.named_parameters()]
        self._encode_changed({name: value.detach() for name, value in zip(names, weights, strict=True)})
        for name in names:
            if name not in self._stored:
                self._memory.store(name, self._encoded[name].data)
                self._stored.add(name)

    def _encode_changed(self, weights: Mapping[str, torch.Tensor]) -> None:
        unchanged = self._unchanged(weights)
        for name, values in weights.items():
            if name not in unchanged:
                tensor_format = self._weight_format(name, values)
                data = tensor_format.encode(values)
                self._encoded[name] = _Encoded(values.clone(), self.guarded_signs, tensor_format, data)
                self._stored.discard(name)
            self.formats[name] = self._encoded[name].tensor_format

    def _unchanged(self, weights: Mapping[str, torch.Tensor]) -> set[str]:
        """Which of ``weights`` are, bit by bit, what they were encoded from.

        torch's version counter does not tell: fused optimisers and changes through ``.data`` pass it by.
        """
        names = [
            name
            for name, values in weights.items()
            if name in self._encoded and self._encoded[name].may_be_of(values, self.guarded_signs)
        ]
        pairs = [(weights[name].view(torch.int32), self._encoded[name].values.view(torch.int32)) for name in names]
        return {name for name, same in zip(names, _are_equal(pairs), strict=True) if same}

    def _weight_format(self, name: str, value: torch.Tensor) -> TensorFormat:
        if name in self._channel_axes:
            return TensorFormat.for_channels(self.precision, value, self._channel_axes[name], self.guarded_signs)
        smallest, largest = torch.aminmax(value)
        return TensorFormat.for_range(self.precision, float(smallest), float(largest), self.guarded_signs)

    def _weights_read(self, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        _check_not_recomputed("the network")
        self._store_changed(weights)
        names = [name for name, _ in self.module.named_parameters()]
        loaded = self._memory.load_all(names)
        return [self._values(*each) for each in zip(names, loaded, weights, strict=True)]

    def _ifm_read(self, tensor: str, values: torch.Tensor) -> torch.Tensor:
        _check_not_recomputed(tensor)
        if tensor not in self.formats:
            raise NetworkError(f"{tensor} was not seen in calibration; calibrate with inputs that reach it")
        self._memory.store(tensor, self.formats[tensor].encode(values))
        return self._values(tensor, self._memory.load(tensor), values)

    def _values(self, tensor: str, data: torch.Tensor, reliable: torch.Tensor) -> torch.Tensor:
        """What ``data`` means, in the shape of the ``reliable`` values and on their device."""
        tensor_format = self.formats[tensor]
        stored = tensor_format.stored_elements(data.to(reliable.device), reliable.numel())
        return values_read(stored, tensor_format, self.bounding, reliable.shape)

    def _check_reached(self, observer: "_RangeObserver") -> None:
        if not observer.images:
            raise NetworkError("calibration got no batches; give at least one batch of inputs")
        for path, layer in self._layers():
            if path not in observer.reached:
                raise NetworkError(
                    f"layer {path} ({type(layer).__name__}) is never called by the network's forward pass, so its "
                    "input cannot be placed in memory; use a module that calls its layers"
                )


def _arguments(batch: Batch, device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What to call a module with, on its device."""

    def there(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    moved = tree_map(there, batch)
    if isinstance(moved, Mapping):
        return (), dict(moved)
    return tuple(moved) if isinstance(moved, tuple | list) else (moved,), {}


def _images(inputs: tuple[Any, ...], named: dict[str, Any]) -> int:
    found = next((value for value in tree_leaves((inputs, named)) if isinstance(value, torch.Tensor)), None)
    if found is None:
        raise NetworkError("a batch to calibrate with holds no tensor; give the module's inputs")
    return max(1, found.shape[0]) if found.dim() else 1


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

    def add(self, name: str, value: torch.Tensor) -> None:
        flat = value.detach().reshape(-1)
        rank = max(1, math.ceil(self.quantile * flat.numel()))
        if rank == flat.numel():
            smallest, largest = torch.aminmax(flat)
        else:
            places = [flat.numel() - rank, rank - 1]
            smallest, largest = np.partition(flat.float().cpu().numpy(), places)[places]
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
        NetworkError: no such file, or not one of ours, of a newer version, or of a format that is gone.
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
    if metadata.get("version") not in READABLE_VERSIONS:
        raise NetworkError(
            f"{path} has version {metadata.get('version')}, this toolkit reads up to {CHECKPOINT_VERSION}; update the "
            "toolkit"
        )
    if metadata.get("binades", "null") != "null":
        raise NetworkError(
            f"{path} was boosted by an older version of this toolkit, for a format of floating point that is gone; "
            "boost it again"
        )
    return metadata


def is_per_channel(metadata: dict[str, str]) -> bool:
    """Whether a checkpoint's network has a scale for each output channel; older ones do not say, and have not."""
    return metadata.get("per_channel", "false") == "true"


def _input_hook(network: "weakref.ref[ApproximateNetwork]", path: str) -> Any:
    def visit(layer: nn.Module, inputs: tuple[Any, ...], by_name: dict[str, Any]) -> Any:
        owner = network()
        return None if owner is None else owner._visit(path, (inputs, by_name))

    return visit


def _see_attention(network: "weakref.ref[ApproximateNetwork]", path: str, layer: nn.MultiheadAttention) -> None:
    """Have ``layer`` compute in steps (`eden.attention`) in passes of ``network``, and as before in any other.

    A method of the instance, not of its class: a copy of the layer then has it for itself.
    """
    before = layer.forward.__func__  # type: ignore[attr-defined]  # a bound method

    def forward(
        layer: nn.MultiheadAttention,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *options: Any,
        **by_name: Any,
    ) -> Any:
        owner = network()
        if owner is None or not (owner._running or owner._observer is not None):
            if owner is not None:
                _check_not_recomputed(f"layer {path}")
            return before(layer, query, key, value, *options, **by_name)
        return attention.attend(layer, owner._visit(path, (query, key, value)), *options, **by_name)

    layer.forward = types.MethodType(forward, layer)  # type: ignore[method-assign]


def _are_equal(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[bool]:
    """Which pairs are equal. A GPU is waited for once, not for each."""
    if not any(one.is_cuda for one, _ in pairs):
        return [torch.equal(*pair) for pair in pairs]
    equal = [(one == other).all() for one, other in pairs]
    same: list[bool] = torch.stack([each.to(equal[0].device) for each in equal]).tolist()
    return same


def _each_tensor(inputs: Any, path: str, see: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """``inputs`` with each floating-point tensor in it replaced by what ``see`` makes of it."""
    if isinstance(inputs, nn.utils.rnn.PackedSequence) or (isinstance(inputs, torch.Tensor) and inputs.is_nested):
        raise NetworkError(
            f"layer {path} takes a {'nested tensor' if isinstance(inputs, torch.Tensor) else 'PackedSequence'} as "
            "input; only plain tensors can be stored: pad sequences (nn.TransformerEncoder: enable_nested_tensor=False)"
        )
    if isinstance(inputs, torch.Tensor):
        return see(inputs) if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {name: _each_tensor(value, path, see) for name, value in inputs.items()}
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):
        return type(inputs)(*(_each_tensor(value, path, see) for value in inputs))
    if isinstance(inputs, tuple | list):
        return type(inputs)(_each_tensor(value, path, see) for value in inputs)
    return inputs


def _check_visible(inputs: Any, path: str) -> None:
    """Refuse tensors that are attributes of other objects, or values of other mappings: they would pass memory by."""
    leaves = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple | list) else ()
    for value in leaves:
        _check_visible(value, path)
    held = inputs if isinstance(inputs, Mapping) and not isinstance(inputs, dict) else getattr(inputs, "__dict__", {})
    if not isinstance(inputs, torch.Tensor | nn.Module) and any(isinstance(v, torch.Tensor) for v in held.values()):
        raise NetworkError(
            f"layer {path} takes tensors within a {type(inputs).__name__}, where they cannot be seen and stored; give "
            "it the tensors themselves, or tuples, lists or dictionaries of them"
        )


def _check_not_recomputed(what: str) -> None:
    """What runs during a backward pass is being recomputed, and would not meet what the forward pass read."""
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        raise NetworkError(
            f"{what} runs again in the backward pass (activation checkpointing), where it would see other errors than "
            "before, or none, and so give wrong gradients; train without torch.utils.checkpoint"
        )


def _own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Those that ``module`` holds itself, or in its lists and dictionaries of parameters."""
    held = [child for child in module.children() if isinstance(child, _PARAMETER_CONTAINERS)]
    return itertools.chain(module.parameters(recurse=False), *(child.parameters() for child in held))


def _is_layer(module: nn.Module) -> bool:
    """Whether a module computes with parameters of its own, its children (padding, parametrizations) only helping."""
    if isinstance(module, _PARAMETER_CONTAINERS):
        return False
    if isinstance(module, nn.MultiheadAttention) or parametrize.is_parametrized(module):
        return True
    others = (child for child in module.children() if not isinstance(child, _PARAMETER_CONTAINERS))
    below = itertools.chain.from_iterable(child.parameters() for child in others)
    return next(_own_parameters(module), None) is not None and next(below, None) is None


def _check_supported(module: nn.Module) -> None:
    for path, layer in module.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):
            raise NetworkError(
                f"{path or 'the network'} is TorchScript, whose layers cannot be seen; give the Python module instead"
            )
        if isinstance(layer, nn.MultiheadAttention):
            attention.check_supported(path or "the network", layer)
    parameters = dict(module.named_parameters())
    if not parameters:
        raise NetworkError("the module has no parameters; there is nothing to keep in memory")
    for name, value in parameters.items():
        if nn.parameter.is_lazy(value):
            raise NetworkError(f"{name} has no shape yet; run the module once before")
        if value.dtype != torch.float32 or value.is_meta:
            raise NetworkError(f"{name} is {value.dtype} on {value.device}; give float32 values on a CPU or a GPU")


def _named_format(
    name: str, precision: Precision, smallest: float, largest: float, guarded_signs: bool
) -> TensorFormat:
    try:
        return TensorFormat.for_range(precision, smallest, largest, guarded_signs)
    except NetworkError as error:
        raise NetworkError(f"{name}: {error}") from error


def _channel_axes(module: nn.Module) -> dict[str, int]:
    """The dimension of the output channels of each parameter that has more than one dimension."""
    second = (nn.Embedding, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    axis = {
        id(value): int(isinstance(owner, second))
        for owner in reversed(list(module.modules()))  # of what modules share, the first decides
        for value in owner.parameters(recurse=False)
    }
    return {name: axis[id(value)] for name, value in module.named_parameters() if value.dim() > 1}
