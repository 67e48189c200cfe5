"""Any module runs from any memory: the same bits without errors, straight gradients, clear refusals."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from eden.approximate import ApproximateNetwork, read_checkpoint_metadata
from eden.bounding import Bounding
from eden.memory import ApproximateMemory, BitErrorMemory, ErrorModelMemory, ProfileMemory, ReliableMemory
from eden.placement import Placement
from eden.precision import Precision
from eden.tensor_format import TensorFormat
from profiles.cells import WeakCells
from profiles.error_models import ErrorModel
from profiles.errors import NetworkError, ProfileError

Place = Callable[[dict[str, int]], dict[str, Placement]]
ErrorModels = dict[int, Callable[[float], ErrorModel]]
ALL = list(Precision)


def attach(
    module: nn.Module, images: torch.Tensor, precision: Precision, bounding: Bounding = Bounding.ZERO
) -> ApproximateNetwork:
    network = ApproximateNetwork(module, precision, bounding=bounding).eval()
    network.calibrate([images[:4]])
    return network


class Recording(ReliableMemory):
    """Reliable memory that keeps the order of stores and loads."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def store(self, tensor: str, data: torch.Tensor) -> None:
        self.log.append(f"store {tensor}")
        super().store(tensor, data)

    def load(self, tensor: str) -> torch.Tensor:
        self.log.append(f"load {tensor}")
        return super().load(tensor)


@pytest.fixture
def foreign_network() -> nn.Module:
    """Embedding, recurrent and linear layers, in a module that knows nothing of this toolkit."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 8)
            self.norm = nn.LayerNorm(8)
            self.recurrent = nn.GRU(8, 6, batch_first=True)
            self.scale = nn.Parameter(torch.full((6,), 1.5))
            self.head = nn.Linear(6, 3)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            states, _ = self.recurrent(self.norm(self.embedding(tokens)))
            outputs: torch.Tensor = self.head(states[:, -1] * self.scale)
            return outputs

    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Reader().eval()


@pytest.mark.parametrize("precision", ALL)
@pytest.mark.parametrize("bounding", list(Bounding))
def test_at_ber_0_every_back_end_returns_the_clean_result_bit_for_bit(
    small_network: nn.Module,
    small_images: torch.Tensor,
    error_models: ErrorModels,
    no_weak_cells: WeakCells,
    place_in_a_row: Place,
    precision: Precision,
    bounding: Bounding,
) -> None:
    clean = attach(small_network, small_images, precision, Bounding.OFF)(
        small_images * 3
    )  # beyond the calibrated range
    network = attach(small_network, small_images, precision, bounding)
    placements = place_in_a_row({tensor.name: tensor.bits(8) for tensor in network.tensors()})
    back_ends: list[ApproximateMemory] = [
        ReliableMemory(),
        BitErrorMemory(0.0, 0),
        *(ErrorModelMemory(error_models[n](0.0), 0, fresh) for n in (0, 3) for fresh in (True, False)),
        ProfileMemory(no_weak_cells, placements, 0),
    ]
    for memory in back_ends:
        network.memory = memory
        assert torch.equal(network(small_images * 3), clean)


def test_fp32_on_reliable_memory_is_the_module_itself(small_network: nn.Module, small_images: torch.Tensor) -> None:
    network = attach(small_network, small_images, Precision.FP32)
    assert torch.equal(network(small_images[:4]), small_network(small_images[:4]))


@pytest.mark.parametrize(
    ("precision", "error"),
    [
        (Precision.INT16, 1e-3),
        (Precision.INT8, 0.1),
        (Precision.INT4, 2.0),
        (Precision.FP16, 1e-2),
        (Precision.BF16, 0.1),
    ],
)
def test_quantised_results_are_close(
    small_network: nn.Module, small_images: torch.Tensor, precision: Precision, error: float
) -> None:
    network = attach(small_network, small_images, precision)
    assert (network(small_images[:4]) - small_network(small_images[:4])).abs().max() < error


def test_every_tensor_is_named_by_its_path_and_sized_in_stored_bits(
    small_network: nn.Module, small_images: torch.Tensor
) -> None:
    network = attach(small_network, small_images, Precision.INT4)
    sizes = {tensor.name: (tensor.kind, tensor.elements, tensor.bits(3)) for tensor in network.tensors()}
    assert sizes == {
        "0.weight": ("weight", 36, 144),
        "0.bias": ("weight", 4, 16),
        "1.weight": ("weight", 4, 16),
        "1.bias": ("weight", 4, 16),
        "4.weight": ("weight", 2560, 10240),
        "4.bias": ("weight", 10, 40),
        "0.ifm": ("ifm", 64, 768),
        "1.ifm": ("ifm", 256, 3072),
        "4.ifm": ("ifm", 256, 3072),
    }


def test_weights_are_stored_when_they_change_and_read_at_every_pass(
    small_network: nn.Module, small_images: torch.Tensor
) -> None:
    network = attach(small_network, small_images, Precision.INT8)
    memory = Recording()
    network.memory = memory
    network(small_images)
    network(small_images)
    assert memory.log.count("store 4.weight") == 1
    assert memory.log.count("load 4.weight") == 2
    assert memory.log.count("store 4.ifm") == memory.log.count("load 4.ifm") == 2
    with torch.no_grad():
        small_network[4].weight.mul_(2)
    network(small_images)
    assert memory.log.count("store 4.weight") == 2
    assert memory.log.count("store 0.weight") == 1


def test_every_memory_gets_the_weights_as_they_are_encoded_when_they_change(
    small_network: nn.Module, small_images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, encode = attach(small_network, small_images, Precision.INT8), TensorFormat.encode
    sizes: list[int] = []

    def counted(tensor_format: TensorFormat, values: torch.Tensor) -> torch.Tensor:
        sizes.append(values.numel())
        return encode(tensor_format, values)

    def read() -> torch.Tensor:
        network.memory = memory = Recording()
        network(small_images)
        assert memory.log.count("store 4.weight") == 1
        return memory.load("4.weight")

    monkeypatch.setattr(TensorFormat, "encode", counted)
    weights = small_network[4].weight.numel()
    first = read()
    assert torch.equal(read(), first)
    assert sizes.count(weights) == 1
    network.guarded_signs = True
    assert not torch.equal(read(), first)
    network.guarded_signs = False
    assert torch.equal(read(), first)


def doubled_behind_torch_s_back(layer: nn.Linear) -> None:
    layer.weight.data.mul_(2)


def replaced(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.data.neg_())  # pointer and version are as before


def moved_to_where_it_was(layer: nn.Linear) -> None:
    shape, layer.weight = layer.weight.shape, None
    layer.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(5)))


def trained_in_one_step(layer: nn.Linear) -> None:
    optimiser = torch.optim.SGD([layer.weight], lr=1.0, fused=True)  # leaves the version as it is
    layer.weight.grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(6))
    optimiser.step()


def turned(layer: nn.Linear) -> None:
    layer.weight.data = layer.weight.data.t()


def given_another_zero(layer: nn.Linear) -> None:
    layer.weight.data[0, 0] = -0.0


CHANGES = [
    *(doubled_behind_torch_s_back, replaced, moved_to_where_it_was, trained_in_one_step, turned, given_another_zero),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("new_memory", [False, True])
def test_a_weight_that_was_changed_in_any_way_is_stored_anew(
    change: Callable[[nn.Linear], None], new_memory: bool
) -> None:
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight[0, 0] = 0.0
    network = ApproximateNetwork(layer, Precision.FP32).eval()
    network.calibrate([torch.randn(4, 8)])
    network.memory = memory = ReliableMemory()
    network(torch.randn(4, 8))
    change(layer)
    if new_memory:
        network.memory = memory = ReliableMemory()
    network(torch.randn(4, 8))
    assert torch.equal(memory.load("weight").view(torch.int32), layer.weight.detach().reshape(-1).view(torch.int32))


def test_the_module_itself_stays_as_it_was(small_network: nn.Module, small_images: torch.Tensor) -> None:
    before = small_network(small_images)
    keys = list(small_network.state_dict())
    network = attach(small_network, small_images, Precision.INT4)
    network.memory = BitErrorMemory(0.3, 0)
    network(small_images)
    assert torch.equal(small_network(small_images), before)
    assert list(small_network.state_dict()) == keys


def test_two_networks_over_one_module_do_not_meet(small_network: nn.Module, small_images: torch.Tensor) -> None:
    first = attach(small_network, small_images, Precision.INT8)
    expected = first(small_images)
    second = attach(small_network, small_images, Precision.INT4)
    second.memory = BitErrorMemory(0.2, 0)
    second(small_images)
    assert torch.equal(first(small_images), expected)


@pytest.mark.parametrize("precision", ALL)
def test_gradients_pass_straight_through_errors(small_images: torch.Tensor, precision: Precision) -> None:
    layer = nn.Linear(4, 3)
    network = ApproximateNetwork(layer, precision)
    inputs = torch.randn(5, 4, requires_grad=True)
    network.calibrate([inputs.detach()])
    network.memory = memory = BitErrorMemory(0.05, 3)
    outputs = network(inputs)
    assert memory.total_flips > 0
    seen: dict[str, torch.Tensor] = {}
    replay = BitErrorMemory(0.05, 3)
    for name, value in (("weight", layer.weight), ("bias", layer.bias), ("network.ifm", inputs)):
        replay.store(name, network.formats[name].encode(value))
        seen[name] = network._values(name, replay.load(name), value.detach())
    upstream = torch.randn(5, 3)
    outputs.backward(upstream)
    torch.testing.assert_close(layer.weight.grad, upstream.T @ seen["network.ifm"])
    torch.testing.assert_close(inputs.grad, upstream @ seen["weight"])
    torch.testing.assert_close(layer.bias.grad, upstream.sum(0))


@pytest.mark.parametrize("operator", ["read_weights", "pass_ifm"])
def test_the_operators_pass_torch_checks(small_network: nn.Module, small_images: torch.Tensor, operator: str) -> None:
    network = attach(small_network, small_images, Precision.INT8)
    arguments: dict[str, tuple[object, ...]] = {
        "read_weights": (list(small_network.parameters()), network._handle),
        "pass_ifm": (torch.randn(2, 256, requires_grad=True), network._handle, "4.ifm"),
    }
    torch.library.opcheck(
        getattr(torch.ops.eden, operator).default,
        arguments[operator],
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


@pytest.mark.parametrize("precision", ALL)
def test_a_foreign_module_with_embedding_norm_and_gru(foreign_network: nn.Module, precision: Precision) -> None:
    tokens = torch.randint(0, 20, (4, 7), generator=torch.Generator().manual_seed(0))
    expected = foreign_network(tokens)
    network = ApproximateNetwork(foreign_network, precision).eval()
    network.calibrate([tokens])
    names = {tensor.name for tensor in network.tensors()}
    assert {"embedding.weight", "recurrent.weight_hh_l0", "scale", "recurrent.ifm", "norm.ifm", "head.ifm"} <= names
    assert "embedding.ifm" not in names
    if precision is Precision.FP32:
        assert torch.equal(network(tokens), expected)
    memory = BitErrorMemory(0.01, 0)
    network.memory = memory
    outputs = network(tokens)
    assert memory.flips["recurrent.weight_hh_l0"] > 0
    outputs.sum().backward()
    assert all(value.grad is not None for value in foreign_network.parameters())


def test_tied_weights_are_one_tensor() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[1].weight = module[0].weight
    network = attach(module, torch.randn(4, 4), Precision.FP32)
    assert [tensor.name for tensor in network.tensors()] == ["0.weight", "0.ifm", "1.ifm"]
    memory = Recording()
    network.memory = memory
    network(torch.randn(2, 4))
    assert memory.log.count("load 0.weight") == 1


@pytest.mark.parametrize("precision", ALL)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_layers_that_compute_in_half_precision_are_stored_all_the_same(precision: Precision, half: torch.dtype) -> None:
    layers = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    in_half, in_single = (ApproximateNetwork(layers, precision) for _ in range(2))
    with torch.autocast("cpu", half):
        in_half.calibrate([inputs], quantile=0.9)
        found = in_half(inputs)
    in_single.calibrate([inputs], quantile=0.9)
    expected = in_single(inputs)
    assert found.dtype is half
    assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_a_tightened_range_holds_its_share_of_the_values_at_both_ends() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    network = ApproximateNetwork(nn.Linear(1, 1), Precision.INT8)
    network.calibrate([values[:, None]], quantile=0.9)
    in_order = values.sort().values
    expected = TensorFormat.for_range(Precision.INT8, float(in_order[100]), float(in_order[899]))
    assert network.formats["network.ifm"] == expected


def test_what_cannot_be_attached_is_refused_with_the_reason(small_images: torch.Tensor) -> None:
    with pytest.raises(NetworkError, match=r"torch.float64"):
        ApproximateNetwork(nn.Linear(2, 2).double(), Precision.INT8)
    with pytest.raises(NetworkError, match="no parameters"):
        ApproximateNetwork(nn.ReLU(), Precision.INT8)
    with pytest.raises(NetworkError, match=r"MultiheadAttention with add_bias_kv.*separate Linear"):
        ApproximateNetwork(nn.MultiheadAttention(4, 2, add_bias_kv=True), Precision.INT8)
    with pytest.raises(NetworkError, match="weight has no shape yet; run the module once"):
        ApproximateNetwork(nn.LazyLinear(2), Precision.INT8)
    with pytest.raises(NetworkError, match=r"the network is TorchScript.*give the Python module"):
        ApproximateNetwork(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), Precision.INT8)
    with pytest.raises(NetworkError, match=r"call calibrate\(\)"):
        ApproximateNetwork(nn.Linear(2, 2), Precision.INT8)(torch.zeros(1, 2))
    with pytest.raises(NetworkError, match="no batches"):
        ApproximateNetwork(nn.Linear(2, 2), Precision.INT8).calibrate([])
    with pytest.raises(NetworkError, match=r"network\.ifm: values range from nan"):
        ApproximateNetwork(nn.Linear(2, 2), Precision.INT8).calibrate([torch.full((1, 2), float("nan"))])


def test_a_layer_that_is_never_called_is_refused() -> None:
    class Bypassing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values @ self.inner.weight

    with pytest.raises(NetworkError, match=r"layer inner \(Linear\) is never called"):
        ApproximateNetwork(Bypassing(), Precision.INT8).calibrate([torch.zeros(1, 2)])


@pytest.mark.parametrize("precision", ALL)
def test_a_checkpoint_restores_the_network_bit_for_bit(
    small_network: nn.Module, small_images: torch.Tensor, precision: Precision, tmp_path: Path
) -> None:
    network = attach(small_network, small_images, precision)
    network.save(tmp_path / "a.safetensors", "small")
    assert read_checkpoint_metadata(tmp_path / "a.safetensors")["network"] == "small"
    copy = network.twin()
    for value in copy.parameters():
        nn.init.zeros_(value)
    copy.calibrate([torch.ones(1, 1, 8, 8)])
    copy.bounding = Bounding.OFF
    copy.load(tmp_path / "a.safetensors")
    assert copy.bounding is network.bounding
    assert torch.equal(copy(small_images), network(small_images))
    assert copy.tensors() == network.tensors()


@pytest.mark.parametrize("bounding", list(Bounding))
def test_bounding_goes_with_a_checkpoint_and_is_zero_in_older_ones(
    small_network: nn.Module, small_images: torch.Tensor, bounding: Bounding, tmp_path: Path
) -> None:
    path, network = tmp_path / "a.safetensors", attach(small_network, small_images, Precision.INT8)
    network.bounding = bounding
    network.save(path, "small")
    again = attach(small_network, small_images, Precision.INT8)
    again.load(path)
    assert again.bounding is bounding
    with safe_open(path, "pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "bounding"}
        save_file({name: file.get_tensor(name) for name in file.keys()}, path, metadata)  # noqa: SIM118
    again.load(path)
    assert again.bounding is Bounding.ZERO


def test_a_network_that_cannot_be_written_leaves_the_one_before(
    small_network: nn.Module, small_images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, network = tmp_path / "a.safetensors", attach(small_network, small_images, Precision.INT8)
    network.save(path, "small")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ProfileError, match="the disk is full"):
        network.save(path, "small")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])


def test_a_foreign_or_damaged_checkpoint_is_refused(
    small_network: nn.Module, small_images: torch.Tensor, tmp_path: Path
) -> None:
    network = attach(small_network, small_images, Precision.INT8)
    path = tmp_path / "a.safetensors"
    with pytest.raises(NetworkError, match="train one first"):
        network.load(path)
    path.write_bytes(b"junk")
    with pytest.raises(NetworkError, match="no intact safetensors"):
        network.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(NetworkError, match="not written by this toolkit"):
        network.load(path)
    network.save(path, "small")
    with pytest.raises(NetworkError, match="holds an int8 network, not fp32"):
        attach(small_network, small_images, Precision.FP32).load(path)
    with pytest.raises(NetworkError, match="another network"):
        attach(nn.Linear(8, 8), small_images, Precision.INT8).load(path)
    with safe_open(path, "pt") as file:
        save_file({"a": torch.zeros(1)}, path, file.metadata() | {"version": "3", "binades": "8"})
    with pytest.raises(NetworkError, match="a format of floating point that is gone; boost it again"):
        network.load(path)


def test_a_twin_is_independent(small_network: nn.Module, small_images: torch.Tensor) -> None:
    network = attach(small_network, small_images, Precision.INT8)
    before = network(small_images)
    twin = network.twin()
    assert torch.equal(twin(small_images), before)
    with torch.no_grad():
        for value in twin.parameters():
            value.zero_()
    assert torch.equal(network(small_images), before)
    assert not torch.equal(twin(small_images), before)
