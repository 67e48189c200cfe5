"""Whatever layers a module has: what was read is what it computes with, once, and gradients pass straight through."""

import copy
import gc
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as functional
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from eden import approximate
from eden.approximate import ApproximateNetwork
from eden.attention import attend
from eden.bounding import Bounding
from eden.memory import BitErrorMemory, ReliableMemory
from eden.precision import Precision
from profiles.errors import NetworkError


class Planted(ReliableMemory):
    """Flips the same bit of one tensor at every read, and counts. Flipped twice, it would be as before."""

    def __init__(self, tensor: str = "", bit: int = 0) -> None:
        super().__init__()
        self.tensor, self.bit = tensor, bit
        self.stores: dict[str, int] = {}
        self.reads: dict[str, int] = {}

    def store(self, tensor: str, data: torch.Tensor) -> None:
        self.stores[tensor] = self.stores.get(tensor, 0) + 1
        super().store(tensor, data)

    def _read(self, tensor: str, data: torch.Tensor, turn: int) -> torch.Tensor:
        self.reads[tensor] = turn + 1
        read = data.clone()
        if tensor == self.tensor:
            read[self.bit // 8] ^= 1 << self.bit % 8
        return read


class SelfAttention(nn.Module):
    """Attention over its own input, by keyword and without weights, as a user may call it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.attention(query=values, key=values, value=values, need_weights=False)[0]
        return output


class SeparateAttention(nn.Module):
    """The same of separate projections and the function."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        heads = [each(values).unflatten(-1, (2, 4)).transpose(1, 2) for each in (self.query, self.key, self.value)]
        context = functional.scaled_dot_product_attention(*heads)
        output: torch.Tensor = self.out(context.transpose(1, 2).flatten(2))
        return output


class First(nn.Module):
    """The first of what a recurrent layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layer(values)[0]
        return output


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def tokens() -> torch.Tensor:
    return torch.randint(0, 20, (4, 5), generator=torch.Generator().manual_seed(3))


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "embedding": (lambda: nn.Embedding(20, 8), tokens),
    "linear": (lambda: nn.Linear(8, 3), lambda: normal(4, 8)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(8, 3)), lambda: normal(4, 8)),
    "layer norm": (lambda: nn.LayerNorm(8), lambda: normal(4, 8)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), lambda: normal(2, 3, 9)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), lambda: normal(2, 4, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2), lambda: normal(2, 3, 4, 4)),
    "gru": (lambda: First(nn.GRU(5, 4, num_layers=2, bidirectional=True, batch_first=True)), lambda: normal(2, 6, 5)),
    "lstm": (lambda: First(nn.LSTM(5, 4, proj_size=3, batch_first=True)), lambda: normal(2, 6, 5)),
    "attention": (SelfAttention, lambda: normal(2, 6, 8)),
    "separate attention": (SeparateAttention, lambda: normal(2, 6, 8)),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"),
        lambda: normal(2, 6, 8),
    ),
}


def made(kind: str) -> tuple[nn.Module, torch.Tensor]:
    module, inputs = LAYERS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = module().eval()
        for value in network.parameters():
            nn.init.normal_(value, std=0.5)  # biases too
        return network, inputs()


def attached(
    module: nn.Module, *inputs: torch.Tensor, precision: Precision = Precision.FP32, bounding: Bounding = Bounding.OFF
) -> ApproximateNetwork:
    network = ApproximateNetwork(module, precision, bounding=bounding).eval()
    network.calibrate(list(inputs))
    return network


def widened(module: nn.Module, inputs: torch.Tensor) -> ApproximateNetwork:
    """Attached with ranges that hold what a flipped bit makes of the inputs of layers behind it."""
    network = attached(module, inputs)
    for name, each in network.formats.items():
        network.formats[name] = replace(each, low=100 * each.low - 100, high=100 * each.high + 100)
    return network


def flipped(values: torch.Tensor, bit: int) -> torch.Tensor:
    """``values`` with a bit of the FP32 at hand flipped."""
    words = values.detach().clone().contiguous().view(torch.int32)
    words.view(-1)[bit // 32] ^= 1 << bit % 32
    return words.view(torch.float32)


PLANTED_BIT = 32 * 2 + 22  # of the third value, the fraction's highest


@pytest.mark.parametrize("kind", list(LAYERS))
def test_without_errors_the_module_computes_what_it_did_and_its_gradients(kind: str) -> None:
    module, inputs = made(kind)
    with torch.no_grad():
        expected = module(inputs)
    network = attached(module, inputs)
    torch.testing.assert_close(network(inputs), expected)
    grads = []
    for each in (network, copy.deepcopy(module)):
        each.zero_grad()
        (each(inputs) ** 2).sum().backward()
        grads.append([value.grad for value in each.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", list(LAYERS))
def test_a_bit_flipped_in_a_weight_is_what_the_layer_computes_with(kind: str) -> None:
    module, inputs = made(kind)
    network = widened(module, inputs)
    clean = network(inputs)
    for name, _ in module.named_parameters():
        network.memory = memory = Planted(name, PLANTED_BIT)
        found = network(inputs)
        planted = copy.deepcopy(module)
        with torch.no_grad():
            value = planted.get_parameter(name)
            value.copy_(flipped(value, PLANTED_BIT))
        torch.testing.assert_close(found, planted(inputs), msg=lambda text, name=name: f"{name}: {text}")
        assert memory.reads[name] == 1
        if kind != "embedding" and not name.endswith("in_proj_bias"):  # a row not looked up; keys' biases cancel
            assert not torch.equal(found, clean), name


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "embedding"])
def test_a_bit_flipped_in_an_input_is_what_its_layer_computes_with_and_no_other(kind: str) -> None:
    """The layer is given, by a hook, the same input with the same bit flipped."""
    module, inputs = made(kind)
    network = widened(module, inputs)
    clean = network(inputs)
    ifms = [tensor.name for tensor in network.tensors() if tensor.kind == "ifm"]
    assert ifms
    for name in ifms:
        network.memory = memory = Planted(name, PLANTED_BIT)
        found = network(inputs)
        assert memory.stores[name] == memory.reads[name] == 1
        assert not torch.equal(found, clean)
        if not name.startswith(("attention.out_proj", "self_attn.out_proj")):  # torch itself hides it
            planted = copy.deepcopy(module)
            path = name.removesuffix(".ifm")
            layer = planted if path == "network" else planted.get_submodule(path)
            layer.register_forward_pre_hook(_flip_inputs, with_kwargs=True)
            torch.testing.assert_close(found, planted(inputs), msg=lambda text, name=name: f"{name}: {text}")


def _flip_inputs(layer: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, object]) -> object:
    def flip(value: object) -> object:
        return flipped(value, PLANTED_BIT) if isinstance(value, torch.Tensor) else value

    return tuple(flip(value) for value in args), {name: flip(value) for name, value in kwargs.items()}


def test_the_input_of_attentions_output_projection_is_read_as_of_separate_layers() -> None:
    module, separate = SelfAttention().eval(), SeparateAttention().eval()
    with torch.no_grad():
        for part, weight, bias in zip(
            (separate.query, separate.key, separate.value),
            module.attention.in_proj_weight.chunk(3),
            module.attention.in_proj_bias.chunk(3),
            strict=True,
        ):
            part.weight.copy_(weight)
            part.bias.copy_(bias)
    separate.out.load_state_dict(module.attention.out_proj.state_dict())
    inputs = normal(2, 6, 8)
    found = []
    for each, name in ((module, "attention.out_proj.ifm"), (separate, "out.ifm")):
        network = attached(each, inputs)
        network.memory = Planted(name, PLANTED_BIT)
        found.append(network(inputs))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("precision", list(Precision))
def test_every_precision_holds_an_encoder(precision: Precision) -> None:
    module, inputs = made("encoder")
    network = attached(module, inputs, precision=precision, bounding=Bounding.ZERO)
    assert {tensor.name for tensor in network.tensors() if tensor.kind == "ifm"} == {
        *("self_attn.ifm", "self_attn.out_proj.ifm", "linear1.ifm", "linear2.ifm", "norm1.ifm", "norm2.ifm")
    }
    with torch.no_grad():
        clean = network(inputs)
        network.memory = memory = BitErrorMemory(0.05, 0)
        for _ in range(10):
            assert not torch.equal(network(inputs), clean)
    assert all(memory.flips[tensor.name] > 0 for tensor in network.tensors())


OPTIONS = [
    {"need_weights": False},
    {"average_attn_weights": False},
    {"attn_mask": torch.triu(torch.ones(6, 6, dtype=torch.bool), 1), "is_causal": True},
    {"attn_mask": torch.triu(torch.full((6, 6), -2.0), 1), "need_weights": False},
    {"attn_mask": normal(6, 6, 6) > 1},  # of 3 inputs and 2 heads
    {
        "key_padding_mask": torch.arange(6) >= torch.tensor([[6], [4], [1]]),
        "attn_mask": torch.triu(torch.ones(6, 6) > 0, 3),
    },
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options))
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 8, "vdim": 8}, {"bias": False}, {"kdim": 5, "vdim": 3}], ids=str)
def test_attention_in_steps_is_torchs(options: dict[str, object], batch_first: bool, sizes: dict[str, int]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = nn.MultiheadAttention(8, 2, batch_first=batch_first, **sizes)  # type: ignore[arg-type]
    shape = (3, 6) if batch_first else (6, 3)
    inputs = normal(*shape, 8), normal(*shape, sizes.get("kdim", 8)), normal(*shape, sizes.get("vdim", 8))
    found, expected = attend(layer, inputs, **options), layer(*inputs, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)


def test_attention_over_one_sequence_without_batch_is_torchs() -> None:
    layer, inputs = nn.MultiheadAttention(8, 2), (normal(4, 8), normal(6, 8), normal(6, 8) + 1)
    torch.testing.assert_close(attend(layer, inputs), layer(*inputs))
    with pytest.raises(NetworkError, match="give attn_mask too"):
        attend(layer, inputs, is_causal=True)


def test_inputs_by_keyword_in_tuples_and_the_same_twice_are_each_one_tensor() -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.recurrent, self.both = nn.Linear(4, 4), nn.LSTM(4, 3), nn.Bilinear(3, 3, 2)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            state = torch.ones(1, 2, 3)
            outputs, _ = self.recurrent(self.linear(input=values), (state, state * 2))
            output: torch.Tensor = self.both(outputs, outputs)
            return output

    inputs = normal(5, 2, 4)
    network = attached(Calls(), inputs)
    assert [tensor.name for tensor in network.tensors() if tensor.kind == "ifm"] == [
        *("linear.ifm", "recurrent.ifm", "recurrent.ifm1", "recurrent.ifm2", "both.ifm")
    ]
    network.memory = memory = Planted()
    network(inputs)
    assert set(memory.reads.values()) == {1}


class PaddedConvolution(nn.Conv2d):
    """A convolution that has a layer without parameters do its padding."""

    def __init__(self) -> None:
        super().__init__(1, 2, 3)
        self.padded = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(self.padded(values))


def test_a_module_of_several_inputs_is_calibrated_and_called_as_it_is() -> None:
    """In their order or by name, tensors and others: with FP32 and no errors it computes what it did."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True).eval()
    values, memory = normal(3, 6, 8), normal(3, 4, 8) + 1
    how = {"tgt_mask": nn.Transformer.generate_square_subsequent_mask(6), "tgt_is_causal": True}
    expected = decoder(values, memory, **how)
    for batch in ((values, memory, how["tgt_mask"]), {"tgt": values, "memory": memory, **how}):
        network = ApproximateNetwork(decoder, Precision.FP32, bounding=Bounding.OFF).eval()
        network.calibrate([batch])
        torch.testing.assert_close(network(values, memory, **how), expected)
        torch.testing.assert_close(network(tgt=values, memory=memory, **how), expected)
        (size,) = {tensor.elements for tensor in network.tensors() if tensor.name == "linear1.ifm"}
        assert size == 6 * 8  # of one of three sequences
    with pytest.raises(NetworkError, match="holds no tensor"):
        network.calibrate([{"causal": True}])


def test_what_lies_within_an_input_goes_to_the_modules_device_too() -> None:
    device = torch.device("meta")
    inputs, named = approximate._arguments((normal(2, 3), (normal(2, 4), [normal(5)])), device)
    assert not named
    assert {inputs[0].device, inputs[1][0].device, inputs[1][1][0].device} == {device}


def test_a_layer_with_helpers_that_have_no_parameters_is_one_layer() -> None:
    network = ApproximateNetwork(nn.Sequential(PaddedConvolution(), nn.ReLU()), Precision.INT8)
    network.calibrate([torch.rand(2, 1, 4, 4)])
    assert [tensor.name for tensor in network.tensors()] == ["0.weight", "0.bias", "0.ifm"]
    assert network.tensors()[-1].elements == 16  # before it is padded


def test_a_cell_called_at_every_step_reads_its_input_anew_and_its_weights_once() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(4, 4)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            state = torch.zeros(2, 4)
            for step in range(3):
                state = self.cell(values[step] * 0 + 1, state)
            return state

    network = attached(Steps(), normal(3, 2, 4))
    network.memory = memory = Planted()
    network(normal(3, 2, 4))
    assert memory.reads == {
        **dict.fromkeys(("cell.weight_ih", "cell.weight_hh", "cell.bias_ih", "cell.bias_hh"), 1),
        **{"cell.ifm": 3, "cell.ifm1": 3},
    }
    network.memory = BitErrorMemory(0.02, 1)
    seen = []
    network.module.cell.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(normal(3, 2, 4))
    assert not torch.equal(seen[0], seen[1])  # what is stored is the same at each step
    assert not torch.equal(seen[1], seen[2])


def test_a_module_at_two_paths_keeps_its_own_weights(tmp_path: Path) -> None:
    layer = nn.Linear(4, 4)
    module = nn.Sequential(layer, nn.ReLU(), layer)
    module.append(nn.Linear(4, 4, bias=False))
    module[3].weight = layer.weight
    before = layer.weight.clone()
    inputs = normal(2, 4)
    network = attached(module, inputs, precision=Precision.INT4)
    assert [tensor.name for tensor in network.tensors()] == ["0.weight", "0.bias", "0.ifm", "3.ifm"]
    network.memory = memory = Planted("0.weight", 3)
    outputs = network(inputs)
    assert memory.reads == {"0.weight": 1, "0.bias": 1, "0.ifm": 2, "3.ifm": 1}
    assert layer.weight is module[2].weight is module[3].weight
    assert torch.equal(layer.weight, before)
    outputs.sum().backward()
    assert layer.weight.grad is not None
    network.memory = ReliableMemory()
    network.save(tmp_path / "shared.safetensors", "shared")
    other = network.twin()
    nn.init.zeros_(other.module[0].weight)
    other.load(tmp_path / "shared.safetensors")
    assert torch.equal(other(inputs), network(inputs))
    assert other.module[0].weight is other.module[3].weight


def test_networks_over_one_attention_do_not_meet_and_a_twin_is_independent() -> None:
    module, inputs = made("attention")
    plain = module(inputs)
    first, second = attached(module, inputs), attached(module, inputs, precision=Precision.INT4)
    expected = first(inputs)
    second.memory = BitErrorMemory(0.2, 0)
    assert not torch.equal(second(inputs), expected)
    assert torch.equal(first(inputs), expected)
    assert torch.equal(module(inputs), plain)
    twin = first.twin()
    with torch.no_grad():
        for value in twin.parameters():
            value.zero_()
    assert not torch.equal(twin(inputs), expected)
    assert torch.equal(first(inputs), expected)


def test_nested_and_packed_sequences_are_refused_with_the_remedy() -> None:
    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.GRU(3, 2)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(values, torch.tensor([4, 2]))
            output: torch.Tensor = self.recurrent(packed)[1]
            return output

    class Nests(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            padding = torch.arange(6) >= torch.tensor([[6], [4]])
            output: torch.Tensor = self.encoder(values, src_key_padding_mask=padding)
            return output

    with pytest.raises(NetworkError, match=r"recurrent takes a PackedSequence.*pad sequences"):
        attached(Packs(), normal(4, 2, 3))
    with pytest.raises(NetworkError, match=r"takes a nested tensor.*enable_nested_tensor=False"):
        attached(Nests(), normal(2, 6, 8))


class Pair(NamedTuple):
    """What `Takes` is called with."""

    first: torch.Tensor
    second: torch.Tensor


@dataclass
class Hidden:
    """A container that nobody looks into."""

    values: torch.Tensor


class Takes(nn.Module):
    """Gives its layer what ``pack`` makes of the input."""

    def __init__(self, pack: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.pack, self.inner = pack, TakesParts()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.inner(self.pack(values))
        return output


class TakesParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(4, 4))

    def forward(self, parts: Any) -> torch.Tensor:
        values: torch.Tensor = parts.values if isinstance(parts, Hidden) else parts[0] - parts[1]
        return values @ self.weight


def test_named_tuples_are_seen_through_and_tensors_in_other_objects_refused() -> None:
    network = attached(Takes(lambda values: Pair(values, 2 * values)), normal(3, 4))
    assert [tensor.name for tensor in network.tensors()] == ["inner.weight", "inner.ifm", "inner.ifm1"]
    network.memory = BitErrorMemory(0.5, 1)
    assert not torch.equal(network(normal(3, 4)), network.module(normal(3, 4)))
    with pytest.raises(NetworkError, match=r"inner takes tensors within a Hidden.*tuples, lists or dictionaries"):
        attached(Takes(Hidden), normal(3, 4))
    with pytest.raises(NetworkError, match=r"inner takes tensors within a UserDict"):
        attached(Takes(lambda values: UserDict({"a": values})), normal(3, 4))


@pytest.mark.parametrize("kind", ["list", "dictionary"])
def test_parameters_in_containers_are_their_owners(kind: str) -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            held = {str(number): nn.Parameter(normal(4, 4)) for number in range(2)}
            self.chain = nn.ParameterDict(held) if kind == "dictionary" else nn.ParameterList(held.values())

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            for name in self.chain if kind == "dictionary" else range(2):
                values = values @ self.chain[name]
            return values

    network, inputs = attached(Chain(), normal(3, 4), precision=Precision.FP32), normal(3, 4)
    assert [tensor.name for tensor in network.tensors()] == ["chain.0", "chain.1", "network.ifm"]
    assert torch.equal(network(inputs), network.module(inputs))
    network.memory = memory = BitErrorMemory(0.1, 1)
    network(inputs)
    assert all(memory.flips[name] for name in ("chain.0", "chain.1", "network.ifm"))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_layers_that_a_backward_pass_recomputes_are_refused(kind: str, reentrant: bool) -> None:
    """They would see reliable weights, and gradients would be those of another network."""

    class Saves(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = checkpoint(self.inner, values, use_reentrant=reentrant)
            return output

    module, inputs = made(kind)
    network = attached(Saves(module), inputs)

    def around(values: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = checkpoint(attached(copy.deepcopy(module), inputs), values, use_reentrant=reentrant)
        return output

    with pytest.raises(NetworkError, match=r"the network runs again in the backward pass"):
        around(inputs.requires_grad_()).sum().backward()
    output = network(inputs)
    with pytest.raises(NetworkError, match=r"runs again in the backward pass.*without torch\.utils\.checkpoint"):
        output.sum().backward()


# ---- torch.compile and torch.export ----------------------------------------------------------------------------------

RECURRENT = ["gru", "lstm"]  # torch compiles what is around them
COMPILED = ["linear", "depthwise", "embedding", "attention", "encoder", *RECURRENT]


class Twice(nn.Module):
    """One layer called twice with the same input, which a compiler might call once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layer(values) - self.layer(values)
        return output


def compiled(network: nn.Module, as_one: bool = True) -> Callable[[torch.Tensor], torch.Tensor]:
    """All of it, as one graph or not, without the C++ compiler that ``inductor`` takes half a minute with."""
    program: Callable[[torch.Tensor], torch.Tensor] = torch.compile(network, backend="aot_eager", fullgraph=as_one)
    return program


def exported(network: nn.Module, inputs: torch.Tensor) -> nn.Module:
    return torch.export.export(network, (inputs,)).module()


@pytest.mark.prove
def test_the_default_compiler_keeps_every_read() -> None:
    """``inductor``: kernels in C++, outputs but for rounding, and the same errors."""
    torch.compiler.reset()
    module, inputs = made("depthwise")
    network, found = attached(module, inputs, precision=Precision.INT8), []
    for program in (network, torch.compile(network)):
        network.memory = memory = BitErrorMemory(0.02, 7)
        module.zero_grad()
        outputs = [program(inputs), program(inputs)]
        sum(output.square().sum() for output in outputs).backward()
        gradients = [value.grad for value in module.parameters()]
        found.append((outputs, gradients, memory.flips))
    (outputs, gradients, flips), (compiled_outputs, compiled_gradients, compiled_flips) = found
    torch.testing.assert_close(compiled_outputs, outputs)
    torch.testing.assert_close(compiled_gradients, gradients, rtol=1e-4, atol=1e-4)
    assert compiled_flips == flips


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.BF16])
@pytest.mark.parametrize("kind", COMPILED)
def test_a_compiled_network_reads_what_the_network_itself_reads(kind: str, precision: Precision) -> None:
    """From the same seed: the same errors, outputs and gradients at every pass, and weights as they change."""
    torch.compiler.reset()
    module, inputs = made(kind)
    network = attached(module, inputs, precision=precision, bounding=Bounding.ZERO)
    as_one, results = kind not in RECURRENT, []
    for program in (network, compiled(network, as_one)):
        network.memory = memory = BitErrorMemory(0.02, 7)
        module.zero_grad()
        outputs = [program(inputs) for _ in range(2)]
        outputs[1].square().sum().backward()
        results.append((outputs, [value.grad.clone() for value in module.parameters()], dict(memory.flips)))
    torch.testing.assert_close(results[0], results[1])
    assert not torch.equal(results[1][0][0], results[1][0][1])
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(2)
    network.memory = ReliableMemory()
    torch.testing.assert_close(compiled(network, as_one)(inputs), network(inputs))


@pytest.mark.filterwarnings("ignore:The tensor attributes self.module.layer._flat_weights")
@pytest.mark.parametrize("kind", COMPILED)
def test_an_exported_program_reads_what_the_network_itself_reads(kind: str) -> None:
    module, inputs = made(kind)
    network = attached(module, inputs, precision=Precision.INT8, bounding=Bounding.ZERO)
    results = []
    with torch.no_grad():
        for program in (network, exported(network, inputs)):
            network.memory = memory = BitErrorMemory(0.02, 7)
            results.append(([program(inputs) for _ in range(2)], dict(memory.flips)))
    torch.testing.assert_close(results[0], results[1])
    assert not torch.equal(*results[1][0])


def test_equal_reads_are_not_merged_into_one() -> None:
    torch.compiler.reset()
    inputs = normal(4, 8)
    network = attached(Twice(), inputs)
    with torch.no_grad():
        for program in (network, compiled(network), exported(network, inputs)):
            network.memory = memory = Planted()
            program(inputs)
            assert memory.reads["layer.ifm"] == 2


def test_a_program_whose_network_is_gone_says_so() -> None:
    inputs = normal(4, 8)
    network = attached(Twice(), inputs)
    program = exported(network, inputs)
    del network
    gc.collect()
    with pytest.raises(NetworkError, match="is gone; keep it while the program is in use"):
        program(inputs)


# ---- a scale for each output channel ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(LAYERS))
def test_scales_of_channels_follow_the_layers_outputs(kind: str) -> None:
    """Channels of very different size: each is as exact as its own size allows, and read in its own code."""
    module, inputs = made(kind)
    network = ApproximateNetwork(module, Precision.INT8, bounding=Bounding.ZERO, per_channel=True).eval()
    network.calibrate([inputs])
    network(inputs)
    for name, value in module.named_parameters():
        assert isinstance(network.formats[name].scale, tuple) == (value.dim() > 1), name
    axis = {"embedding": 1, "transposed": 1}.get(kind, 0)
    for name, value in module.named_parameters():
        if value.dim() > 1:
            assert network.formats[name].axis == axis
            assert len(network.formats[name].scale) == value.shape[axis]  # type: ignore[arg-type]
    scales = sum(value.shape[axis] if value.dim() > 1 else 1 for value in module.parameters())
    ifms = sum(tensor.kind == "ifm" for tensor in network.tensors())
    assert network.metadata_bits() == 32 * (scales + ifms) + 16 * len(network.tensors())


def test_a_small_channel_beside_a_large_one_is_kept_by_a_scale_of_its_own(tmp_path: Path) -> None:
    layer, inputs = nn.Linear(8, 2, bias=False), normal(16, 8)
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([[1000.0], [0.001]]))
        expected = layer(inputs)[:, 1]
    found = {}
    for per_channel in (False, True):
        network = ApproximateNetwork(layer, Precision.INT8, per_channel=per_channel).eval()
        network.calibrate([inputs])
        found[per_channel] = network(inputs)[:, 1]
    assert (found[False] == 0).all()
    torch.testing.assert_close(found[True], expected, rtol=0.05, atol=0.02 * float(expected.detach().abs().max()))
    network.save(tmp_path / "a.safetensors", "small")
    twin = network.twin()
    nn.init.zeros_(twin.module.weight)
    twin.load(tmp_path / "a.safetensors")
    assert torch.equal(twin(inputs)[:, 1], found[True])
    with pytest.raises(NetworkError, match="scales of another kind"):
        attached(nn.Linear(8, 2, bias=False), inputs, precision=Precision.INT8).load(tmp_path / "a.safetensors")
    with pytest.raises(NetworkError, match="bf16 has no scales"):
        ApproximateNetwork(layer, Precision.BF16, per_channel=True)
    network.memory = memory = BitErrorMemory(0.05, 0)
    network(inputs).sum().backward()
    assert memory.flips["weight"] > 0
    assert layer.weight.grad is not None


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize("precision", [Precision.INT4, Precision.INT8, Precision.BF16, Precision.FP32])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_wherever_the_module_computes_the_same_bits_are_stored_and_flipped(device: str, precision: Precision) -> None:
    torch.manual_seed(1)
    module, batch = nn.Sequential(nn.Linear(33, 20), nn.ReLU(), nn.Linear(20, 5)), torch.rand(7, 33)
    here = ApproximateNetwork(copy.deepcopy(module), precision)
    there = ApproximateNetwork(module.to(device), precision)
    for network in (here, there):
        network.calibrate([batch])
        network.memory = BitErrorMemory(1e-2, 3)
    expected, output = here(batch), there(batch.to(device))
    assert output.device == there.device == torch.device(there.device.type, 0 if device == "cuda" else None)
    torch.testing.assert_close(output.cpu(), expected)
    assert isinstance(here.memory, BitErrorMemory)
    assert isinstance(there.memory, BitErrorMemory)
    assert there.memory.flips == here.memory.flips
    functional.cross_entropy(output, torch.zeros(7, dtype=torch.int64, device=device)).backward()
    assert all(value.grad is not None and value.grad.device == value.device for value in there.parameters())


def test_parameters_without_values_are_refused() -> None:
    with pytest.raises(NetworkError, match=r"weight is torch.float32 on meta; give float32 values"):
        ApproximateNetwork(nn.Linear(2, 2, device="meta"), Precision.INT8)
