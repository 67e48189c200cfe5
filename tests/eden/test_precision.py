"""The stored bits are exact, and encoding what was decoded changes nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eden.precision import Precision
from eden.tensor_format import STORED_TYPE, TensorFormat, pack, unpack
from profiles.errors import NetworkError

INTEGERS = [Precision.INT4, Precision.INT8, Precision.INT16]
FLOATS = [Precision.FP32, Precision.FP16, Precision.BF16]
floats = st.floats(-(2.0**100), 2.0**100, width=32)


@pytest.mark.parametrize(
    ("precision", "stored"),
    [
        (Precision.INT4, [0x17, 0x0F | (0x9 << 4), 0x00]),
        (Precision.INT8, [7, 1, 0xFF, 0xF9, 0]),
        (Precision.INT16, [7, 0, 1, 0, 0xFF, 0xFF, 0xF9, 0xFF, 0, 0]),
    ],
)
def test_codes_lie_little_endian_low_nibble_first_in_twos_complement(precision: Precision, stored: list[int]) -> None:
    tensor_format = TensorFormat(precision, 0.5, -7, 7)
    values = torch.tensor([3.5, 0.5, -0.5, -3.5, 0.0])
    assert tensor_format.encode(values).tolist() == stored
    assert torch.equal(tensor_format.decode(torch.tensor(stored, dtype=torch.uint8), values.shape), values)


def test_fp32_is_stored_as_its_little_endian_ieee_bytes() -> None:
    values = torch.tensor([1.0, -2.5, 1e-40, 3.4e38])
    encoded = TensorFormat(Precision.FP32, 1.0, -2.5, 3.4028234663852886e38).encode(values)
    assert encoded.numpy().tobytes() == values.numpy().astype("<f4").tobytes()


@pytest.mark.parametrize(
    ("precision", "stored"),
    [  # sign, exponent, fraction by hand: 1 = 2^0; -2.5 = -1.25 * 2^1; 65504 = (2 - 2^-10) * 2^15; 2^-24
        (Precision.FP16, [0x3C00, 0xC100, 0x7BFF, 0x0001]),
        (Precision.BF16, [0x3F80, 0xC020, 0x4780, 0x3380]),  # 65504 lies between 65280 and 65536, nearer to that
    ],
)
def test_half_precisions_are_stored_as_their_little_endian_words(precision: Precision, stored: list[int]) -> None:
    values = torch.tensor([1.0, -2.5, 65504.0, 2.0**-24])
    tensor_format = TensorFormat.for_range(precision, -2.5, 65504.0)
    words = np.array(stored, "<u2")
    assert tensor_format.encode(values).numpy().tobytes() == words.tobytes()
    read = tensor_format.decode(torch.from_numpy(words.view(np.uint8)), values.shape)
    expected = [1.0, -2.5, 65504.0 if precision is Precision.FP16 else 65536.0, 2.0**-24]
    assert read.tolist() == expected


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_half_precisions_round_to_even_and_saturate_at_the_largest_finite_number(precision: Precision) -> None:
    largest, spacing = torch.finfo(STORED_TYPE[precision]).max, torch.finfo(STORED_TYPE[precision]).eps
    tensor_format = TensorFormat.for_range(precision, -3.4028234663852886e38, 3.4028234663852886e38)
    assert (tensor_format.low, tensor_format.high) == (-largest, largest)
    ties = torch.tensor([1 + spacing / 2, 1 + 3 * spacing / 2, 3.4028234663852886e38, float("-inf")])
    assert tensor_format.decode(tensor_format.encode(ties), ties.shape).tolist() == [
        1.0,
        1 + 2 * spacing,
        largest,
        -largest,
    ]


@settings(deadline=None, max_examples=60)
@given(st.lists(floats, min_size=1, max_size=40), st.sampled_from(list(Precision)))
def test_encoding_what_was_decoded_gives_the_same_bytes(numbers: list[float], precision: Precision) -> None:
    values = torch.tensor(numbers, dtype=torch.float32)
    tensor_format = TensorFormat.for_range(precision, float(values.min()), float(values.max()))
    encoded = tensor_format.encode(values)
    assert encoded.numel() == precision.stored_bytes(len(numbers))
    decoded = tensor_format.decode(encoded, values.shape)
    assert torch.equal(tensor_format.encode(decoded), encoded)
    if precision is Precision.FP32:
        assert torch.equal(decoded, values)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(INTEGERS), st.integers(1, 33), st.integers(0, 2**32 - 1))
def test_every_code_survives_packing_even_the_one_no_network_stores(
    precision: Precision, count: int, seed: int
) -> None:
    limit = precision.largest_code + 1
    codes = torch.from_numpy(np.random.default_rng(seed).integers(-limit, limit, count))
    stored_type = torch.int16 if precision is Precision.INT16 else torch.int8
    packed = pack(codes.to(stored_type), precision)
    assert packed.numel() == precision.stored_bytes(count)
    assert torch.equal(unpack(packed, count, precision).to(torch.int64), codes)


def test_floating_point_has_no_largest_code() -> None:
    with pytest.raises(NetworkError, match="bf16 has no integer codes; ask for int4, int8 or int16"):
        _ = Precision.BF16.largest_code


def test_codes_stop_at_the_symmetric_limit() -> None:
    for precision in INTEGERS:
        tensor_format = TensorFormat.for_range(precision, -3.0, 2.0)
        codes = tensor_format.stored_elements(tensor_format.encode(torch.tensor([-9.0, 9.0])), 2)
        assert codes.tolist() == [-precision.largest_code, round(2 / 3 * precision.largest_code)]


@pytest.mark.parametrize("precision", list(Precision))
def test_values_beyond_the_plausible_range_saturate_when_stored(precision: Precision) -> None:
    tensor_format = TensorFormat.for_range(precision, 0.0, 1.0)
    values = torch.tensor([-5.0, 5.0, float("nan"), float("inf"), float("-inf")])
    decoded = tensor_format.decode(tensor_format.encode(values), values.shape).tolist()
    high = 1.0 if precision.is_integer else tensor_format.high
    assert decoded == [0.0, high, 0.0, high, 0.0]


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("ends", [(-1.0, 3.0), (0.0, 3.0), (-3.0, 0.0), (0.5, 0.6)])
def test_each_value_is_divided_shifted_saturated_and_rounded_in_single_precision(
    precision: Precision, guarded: bool, ends: tuple[float, float]
) -> None:
    """Bit for bit, against these steps in numpy; with values half way between codes, zeros of both signs, no number."""
    tensor_format = TensorFormat.for_range(precision, *ends, guarded_signs=guarded)
    assert isinstance(tensor_format.scale, float)
    halves = torch.arange(-300, 300) * tensor_format.scale / 2
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40, -1e-40]
    values = torch.cat(
        [torch.randn(2000, generator=torch.Generator().manual_seed(1)) * 2, halves, torch.tensor(special)]
    )
    low, high, scale, offset = map(
        np.float32, (tensor_format.low, tensor_format.high, tensor_format.scale, tensor_format.offset)
    )
    with np.errstate(invalid="ignore"):
        scaled = values.numpy() / scale
    shifted = scaled + offset if offset else scaled
    saturated = np.where(np.isnan(shifted) | (shifted < low), low, np.where(shifted > high, high, shifted))
    numbers = torch.from_numpy(np.rint(saturated) if precision.is_integer else saturated).to(STORED_TYPE[precision])
    expected = pack(numbers, precision)
    assert torch.equal(tensor_format.encode(values), expected)
    assert torch.equal(tensor_format.encode(values[::2]), pack(numbers[::2].contiguous(), precision))


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16, Precision.FP32])
def test_ranges_of_floating_point_reach_to_the_end_of_their_binades(precision: Precision) -> None:
    """1.0 and -0.7 as 2 and -1 but for a last place, so that no error in a mantissa there leaves the range."""
    last = torch.finfo(STORED_TYPE[precision]).eps
    for ends, expected in (
        ((-0.7, 1.0), (last / 2 - 1, 2 - last)),
        ((0.7, 5.0), (0.5, 8 - 4 * last)),
        ((-5.0, -2.5), (4 * last - 8, -2.0)),
    ):
        found = TensorFormat.for_range(precision, *ends)
        assert (found.low, found.high) == expected


def test_fp32_storage_does_not_alias_its_source() -> None:
    values = torch.ones(4)
    encoded = TensorFormat(Precision.FP32, 1.0, 0.0, 2.0).encode(values)
    values.zero_()
    assert encoded.view(torch.float32).tolist() == [1.0] * 4


def test_a_range_that_is_not_finite_is_refused_with_its_value() -> None:
    with pytest.raises(NetworkError, match="nan"):
        TensorFormat.for_range(Precision.INT8, float("nan"), 1.0)


def test_a_tensor_of_another_length_is_refused() -> None:
    with pytest.raises(NetworkError, match="take 4 bytes, not 5"):
        unpack(torch.zeros(5, dtype=torch.uint8), 4, Precision.INT8)


def test_a_tensor_of_zeros_has_a_usable_scale() -> None:
    tensor_format = TensorFormat.for_range(Precision.INT8, 0.0, 0.0)
    assert tensor_format.decode(tensor_format.encode(torch.zeros(3)), torch.Size([3])).tolist() == [0.0] * 3


# ---- a scale for each channel ----------------------------------------------------------------------------------------


def test_channels_have_their_own_scales_and_exact_codes() -> None:
    values = torch.tensor([[127.0, -3.0, 1.0], [0.5, 0.25, -0.125], [0.0, 0.0, 0.0]])
    rows = TensorFormat.for_channels(Precision.INT8, values, axis=0)
    assert rows.scale == (1.0, pytest.approx(0.5 / 127), 1.0)
    assert (rows.low, rows.high) == (-32, 127)  # -0.125 is -31.75 steps
    codes = rows.stored_elements(rows.encode(values), 9)
    assert codes.tolist() == [127, -3, 1, 127, 64, -32, 0, 0, 0]
    assert rows.metadata_bits == 3 * 32 + 2 * 8
    columns = TensorFormat.for_channels(Precision.INT8, values, axis=1)
    assert columns.stored_elements(columns.encode(values), 9).tolist() == [127, -127, 127, 0, 11, -16, 0, 0, 0]
    assert TensorFormat.for_range(Precision.INT8, -3.0, 127.0).metadata_bits == 32 + 16
    assert TensorFormat.for_range(Precision.BF16, -3.0, 127.0).metadata_bits == 32


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(INTEGERS),
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.integers(0, 3),
    st.integers(0, 99),
)
def test_channels_round_by_half_a_step_of_their_own_and_keep_what_they_decode(
    precision: Precision, shape: list[int], axis: int, seed: int
) -> None:
    axis %= len(shape)
    generator = torch.Generator().manual_seed(seed)
    along = [1] * len(shape)
    along[axis] = shape[axis]
    values = torch.randn(shape, generator=generator) * 10 ** torch.randn(along, generator=generator)
    tensor_format = TensorFormat.for_channels(precision, values, axis)
    encoded = tensor_format.encode(values)
    assert encoded.numel() == precision.stored_bytes(values.numel())
    decoded = tensor_format.decode(encoded, values.shape)
    assert torch.equal(tensor_format.encode(decoded), encoded)
    for channel, scale in enumerate(tensor_format.scale):  # type: ignore[arg-type]
        wrong = (decoded - values).select(axis, channel).abs().max()
        assert wrong <= (0.5 + 2**-7) * scale  # a code of 2^15 steps is a float32 with an end of 2^-8 steps
        alone = TensorFormat.for_range(precision, *map(float, torch.aminmax(values.select(axis, channel))))
        assert alone.scale == pytest.approx(scale, rel=1e-6)


def test_channels_of_floating_point_or_without_end_are_refused() -> None:
    with pytest.raises(NetworkError, match=r"fp16 has no scales.*ask for int4"):
        TensorFormat.for_channels(Precision.FP16, torch.ones(2, 2), 0)
    with pytest.raises(NetworkError, match="not all finite"):
        TensorFormat.for_channels(Precision.INT8, torch.tensor([[1.0], [float("inf")]]), 0)


# ---- in one binade ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "mask", "bits", "copies", "positive"),
    [  # of 1.0 .. 2: sign and exponent; around 1.5 positive numbers have 100, negative ones 011 on top of the mantissa
        (Precision.FP32, 0xFF80_0000, 0x3F80_0000, 0x0070_0000, 0x0040_0000),
        (Precision.FP16, 0xFC00, 0x3C00, 0x0380, 0x0200),
    ],
)
def test_numbers_in_one_binade_share_sign_and_exponent_and_hold_copies_of_the_value_s_sign(
    precision: Precision, mask: int, bits: int, copies: int, positive: int
) -> None:
    for ends in ((-3.0, 5.0), (0.0, 5.0), (-5.0, 0.0)):
        tensor_format = TensorFormat.for_range(precision, *ends, guarded_signs=True)
        assert tensor_format.known_bits == (mask, bits)
        assert tensor_format.sign_copies == ((copies, positive) if ends == (-3.0, 5.0) else (0, 0))
    assert TensorFormat.for_range(precision, -3.0, 5.0).known_bits == (0, 0)
    assert TensorFormat.for_range(precision, -3.0, 5.0).sign_copies == (0, 0)


def test_values_are_scaled_and_shifted_into_one_binade() -> None:
    """With both signs, the largest magnitude, 4, lies an eighth from 1.5; with one, 1 from 1."""
    around = TensorFormat.for_range(Precision.FP32, -1.0, 4.0, guarded_signs=True)
    numbers = around.stored_elements(around.encode(torch.tensor([0.0, 2.0, -4.0, 9.0, -9.0])), 5)
    assert numbers.tolist() == [1.5, 1.5625, 1.375, around.high, 1.375]
    for sign in (1, -1):
        ends = sorted((0.0, sign * 4.0))
        above = TensorFormat.for_range(Precision.FP32, *ends, guarded_signs=True)
        numbers = above.stored_elements(above.encode(torch.tensor([0.0, sign * 2.0, sign * -1.0, sign * 9.0])), 4)
        assert numbers.tolist() == [1.0, 1.5, 1.0, above.high]


@settings(deadline=None, max_examples=100)
@given(st.lists(floats, min_size=1, max_size=40), st.sampled_from(FLOATS), st.sampled_from([-1, 0, 1]))
def test_all_that_is_stored_in_one_binade_has_the_known_bits_and_copies_of_its_sign(
    numbers: list[float], precision: Precision, only: int
) -> None:
    values = torch.tensor(numbers, dtype=torch.float32)
    values = values.abs() * only if only else values
    tensor_format = TensorFormat.for_range(precision, float(values.min()), float(values.max()), guarded_signs=True)
    (mask, bits), (copies, positive) = tensor_format.known_bits, tensor_format.sign_copies
    anything = torch.cat([values, torch.tensor([0.0, -0.0, 1e30, -1e30, float("nan"), float("-inf")])])
    encoded = tensor_format.encode(anything)
    words = encoded.numpy().view({32: np.uint32, 16: np.uint16}[precision.bits])
    assert np.all(words & mask == bits)
    decoded = tensor_format.decode(encoded, anything.shape)
    if copies:
        assert np.all(words & copies == np.where(decoded.numpy() < 0, copies ^ positive, positive))
    if tensor_format.offset:
        step = torch.finfo(STORED_TYPE[precision]).eps * abs(tensor_format.scale)  # type: ignore[arg-type]
        assert torch.all((decoded[: len(values)] - values).abs() <= 2 * step)
        again = tensor_format.decode(tensor_format.encode(decoded), anything.shape)
        assert torch.all((again - decoded).abs() <= 2 * step)


def test_ranges_too_small_or_too_large_to_scale_are_stored_all_the_same() -> None:
    zeros = TensorFormat.for_range(Precision.FP32, 0.0, 0.0, guarded_signs=True)
    assert zeros.decode(zeros.encode(torch.zeros(3)), torch.Size([3])).tolist() == [0.0] * 3
    tiny = TensorFormat.for_range(Precision.FP32, -1e-39, 1e-39, guarded_signs=True)
    assert tiny.decode(tiny.encode(torch.tensor([1e-39])), torch.Size([1])).item() == pytest.approx(1e-39, rel=1e-4)
    huge = TensorFormat.for_range(Precision.FP32, -3e38, 3e38, guarded_signs=True)
    assert huge.decode(huge.encode(torch.tensor([3e38])), torch.Size([1])).item() == pytest.approx(4.25e37, rel=1e-2)
    assert huge.decode(huge.encode(torch.tensor([1e37])), torch.Size([1])).item() == pytest.approx(1e37, rel=1e-4)


def test_where_there_are_no_bits_to_spare_floating_point_stays_as_it_is() -> None:
    ends = (Precision.BF16, -3.0, 5.0)
    assert TensorFormat.for_range(*ends, guarded_signs=True) == TensorFormat.for_range(*ends)


def test_scale_and_signs_count_as_metadata() -> None:
    assert TensorFormat.for_range(Precision.FP16, -3.0, 127.0, guarded_signs=True).metadata_bits == 32 + 1
