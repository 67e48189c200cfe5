"""Error Models 0-3: what they sample, how they scale, and that their files come back or are refused."""

import io
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.error_models import (
    BitlineModel,
    CrossedModel,
    DataDependentModel,
    ErrorModel,
    GroupedModel,
    UniformModel,
    WordlineModel,
    _sealed,
    load_error_model,
)
from profiles.errors import ModelError
from profiles.geometry import Geometry

GEOMETRY = Geometry(banks=4, rows=512, columns=128, data_width=16, subarray_rows=128)
WIDE = Geometry(banks=1, rows=256, columns=4096, data_width=64, subarray_rows=128)  # a row longer than a block
NUMBERS = [0, 1, 2, 3, 4]


def make(number: int, geometry: Geometry = GEOMETRY, banks: tuple[int, ...] | None = None, seed: int = 1) -> ErrorModel:
    rng = np.random.default_rng(seed)
    shared = {"geometry": geometry, "banks": banks or tuple(range(geometry.banks)), "origin": "made up"}
    if number == 0:
        return UniformModel(**shared, weak_fraction=0.02, flip_probability=0.3)
    if number == 3:
        return DataDependentModel(**shared, weak_fraction=0.02, flip_zero=0.1, flip_one=0.6)
    if number == 4:
        wordline, bitline = (
            np.concatenate([bank * size + np.arange(0, size, 2) for bank in shared["banks"]])
            for size in (geometry.rows, geometry.bitlines)
        )
        return CrossedModel(
            **shared,
            wordline=wordline,
            hazard=rng.choice([0.0, 0.01, 0.2], wordline.size),
            bitline=bitline,
            factor=rng.choice([0.2, 1.0, 3.0], bitline.size),
            pooled_hazard=0.03,
            flip_zero=0.2,
            flip_one=0.7,
        )
    per_bank = geometry.bitlines if number == 1 else geometry.rows
    line = np.concatenate([bank * per_bank + np.arange(0, per_bank, 2) for bank in shared["banks"]])  # every other one
    kind = BitlineModel if number == 1 else WordlineModel
    return kind(
        **shared,
        line=line,
        weak_fraction=rng.choice([0.0, 0.01, 0.2], line.size),
        flip_probability=rng.uniform(0.1, 0.9, line.size),
        pooled_weak_fraction=0.03,
        pooled_flip_probability=0.4,
    )


def line_probabilities(model: ErrorModel, cells: np.ndarray) -> np.ndarray:
    if isinstance(model, CrossedModel):
        hazard = model.hazards(model.geometry.wordline(cells)) * model.factors(model.geometry.bitline(cells))
        return 1 - np.exp(-hazard)
    return model.parameters(model.line_of(cells))[0] if isinstance(model, GroupedModel) else np.full(cells.size, 0.02)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("geometry", [GEOMETRY, WIDE])
def test_samples_follow_the_weak_fractions(number: int, geometry: Geometry) -> None:
    model = make(number, geometry)
    count = 1 << 20
    weak = model.sample_weak_cells(0, count, seed=5)
    probability = line_probabilities(model, np.arange(count))
    assert np.all(np.diff(weak.cell) > 0)
    for part in (slice(None), *(probability == value for value in np.unique(probability))):
        mask = np.zeros(count, bool)
        mask[part] = True
        expected, variance = probability[mask].sum(), (probability * (1 - probability))[mask].sum()
        assert abs(mask[weak.cell].sum() - expected) <= 5 * np.sqrt(variance)
    flip_zero, flip_one = model.flip_probabilities(weak.cell)
    assert np.array_equal(weak.flip_zero, flip_zero)
    assert np.array_equal(weak.flip_one, flip_one)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), number=st.sampled_from(NUMBERS))
def test_a_region_is_a_cut_of_the_one_module(data: st.DataObject, number: int) -> None:
    model = make(number)
    first = data.draw(st.integers(0, GEOMETRY.cells - 1))
    count = data.draw(st.integers(0, min(300_000, GEOMETRY.cells - first)))
    middle = data.draw(st.integers(0, count))
    whole = model.sample_weak_cells(first, count, seed=9)
    left = model.sample_weak_cells(first, middle, seed=9)
    right = model.sample_weak_cells(first + middle, count - middle, seed=9)
    assert np.array_equal(whole.cell, np.concatenate([left.cell, right.cell + middle]))
    assert np.array_equal(whole.flip_one, np.concatenate([left.flip_one, right.flip_one]))


def test_seeds_differ_and_repeat() -> None:
    model = make(0)
    first, again, other = (model.sample_weak_cells(0, 1 << 18, seed).cell for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.intersect1d(first, other).size < first.size / 10


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_none_and_all_weak(fraction: float) -> None:
    model = UniformModel(geometry=GEOMETRY, banks=(0,), weak_fraction=fraction, flip_probability=0.5)
    assert model.sample_weak_cells(100, 5000, 1).cell.size == fraction * 5000


def test_certain_lines_are_wholly_weak_and_others_never() -> None:
    line = np.arange(GEOMETRY.rows)
    weak = (line % 7 == 3).astype(float)
    model = WordlineModel(
        geometry=GEOMETRY,
        banks=(0,),
        line=line,
        weak_fraction=weak,
        flip_probability=np.full(line.size, 0.5),
        pooled_weak_fraction=0.1,
        pooled_flip_probability=0.5,
    )
    cells = model.sample_weak_cells(0, GEOMETRY.bank_bits, 1).cell
    assert cells.size == weak.sum() * GEOMETRY.row_bits
    assert set(GEOMETRY.row(cells) % 7) == {3}


@pytest.mark.parametrize("number", NUMBERS)
def test_regions_outside_the_fitted_banks_are_refused(number: int) -> None:
    model = make(number, banks=(1, 2))
    model.sample_weak_cells(GEOMETRY.bank_bits, 2 * GEOMETRY.bank_bits, 1)
    with pytest.raises(ModelError, match="bank 0 is not among"):
        model.sample_weak_cells(GEOMETRY.bank_bits - 1, 2, 1)
    with pytest.raises(ModelError, match="outside the module"):
        model.sample_weak_cells(GEOMETRY.cells - 1, 2, 1)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("ber", [0.0, 1e-9, 1e-4, 0.02, 0.1, 0.2])
def test_scaling_hits_the_rate_and_leaves_the_flips(number: int, ber: float) -> None:
    model = make(number)
    scaled = model.scaled(ber)
    assert type(scaled) is type(model)
    assert scaled.ber() == pytest.approx(ber, rel=1e-9)
    cells = np.arange(0, GEOMETRY.cells, 997)
    assert np.array_equal(scaled.flip_probabilities(cells)[0], model.flip_probabilities(cells)[0])
    if isinstance(scaled, CrossedModel):
        assert np.array_equal(scaled.hazard == 0, model.hazard == 0) or ber == 0
        assert np.array_equal(scaled.factor, model.factor)
    if isinstance(scaled, GroupedModel):
        assert scaled.weak_fraction.max() <= 1
        assert np.all(scaled.weak_fraction[model.weak_fraction == 0] == 0)


@pytest.mark.parametrize("number", NUMBERS)
def test_scaling_beyond_reach_is_refused(number: int) -> None:
    for ber in (0.9, -0.1, float("nan")):
        with pytest.raises(ModelError, match="outside"):
            make(number).scaled(ber)


@pytest.mark.parametrize("number", NUMBERS)
def test_expected_rate_agrees_with_a_sample(number: int) -> None:
    model = make(number)
    for ones in (0.0, 0.5, 1.0):
        sampled = model.sample_weak_cells(0, GEOMETRY.cells, 3).ber(GEOMETRY.cells, ones)
        assert sampled == pytest.approx(model.ber(ones), rel=0.03)


@pytest.mark.parametrize("number", NUMBERS)
def test_files_come_back(number: int, tmp_path: Path) -> None:
    model = make(number)
    model.save(tmp_path / "model.parquet")
    again = load_error_model(tmp_path / "model.parquet")
    assert type(again) is type(model)
    assert (again.banks, again.origin, again.geometry) == (model.banks, model.origin, model.geometry)
    assert again.ber(0.3) == model.ber(0.3)
    left, right = (each.sample_weak_cells(0, 1 << 18, 1) for each in (model, again))
    assert np.array_equal(left.cell, right.cell)
    assert np.array_equal(left.flip_one, right.flip_one)


@pytest.mark.parametrize("number", [0, 1, 4])
def test_damaged_files_are_refused_or_unchanged(number: int, tmp_path: Path) -> None:
    geometry = Geometry(banks=1, rows=16, columns=16, data_width=16, subarray_rows=16)
    model = make(number, geometry)
    file = tmp_path / "model.parquet"
    model.save(file)
    good = file.read_bytes()
    rng = np.random.default_rng(1)
    for length in rng.integers(0, len(good), 40):
        file.write_bytes(good[:length])
        with pytest.raises(ModelError, match=r"model\.parquet"):
            load_error_model(file)
    for position in rng.integers(0, len(good), 300):
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        try:
            again = load_error_model(file)
        except ModelError:
            continue
        assert again.ber() == model.ber()
        assert again.geometry == model.geometry


def sealed(table: pa.Table) -> bytes:
    written = io.BytesIO()
    pq.write_table(table, written)
    return _sealed(written.getvalue())


def test_foreign_future_and_missing_files(tmp_path: Path, planted: ModuleType) -> None:
    file = tmp_path / "model.parquet"
    with pytest.raises(ModelError, match="does not exist"):
        load_error_model(file)
    make(0).save(file)
    table = pq.read_table(file)
    record = table.schema.metadata[b"eden.error_model"]
    for text, message in (
        (b'{"version": 99}', "update the toolkit"),
        (record.replace(b'"number":0', b'"number":7'), "no Error Model 7"),
    ):
        file.write_bytes(sealed(table.replace_schema_metadata({b"eden.error_model": text})))
        with pytest.raises(ModelError, match=message):
            load_error_model(file)
    file.write_bytes(sealed(table.replace_schema_metadata(None)))
    with pytest.raises(ModelError, match="not an error model"):
        load_error_model(file)
    pq.write_table(table, file)  # another program's: without a checksum of the footer
    with pytest.raises(ModelError, match="not an error model"):
        load_error_model(file)
