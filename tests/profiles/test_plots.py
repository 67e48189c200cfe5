"""Figures hold what they promise, also for profiles with little or nothing in them."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.figure import Figure

from profiles.cells import WeakCells
from profiles.error_models import UniformModel, WordlineModel
from profiles.errors import ProfileError
from profiles.fit import fit
from profiles.pattern import Pattern
from profiles.plots import plot_ber_map, plot_ber_surface, plot_model, plot_spatial, plot_zoom
from profiles.schema import OperatingPoint, WriteCondition
from profiles.storage import Profile


def drawn(figure: Figure, path: Path) -> bool:
    figure.savefig(path / "figure.png", dpi=40)
    return (path / "figure.png").stat().st_size > 1000


def test_all_three_of_a_usual_profile(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    profile = planted.profile(tmp_path / "dimm", geometry, planted.random_weak(geometry, 2000))
    surface = plot_ber_surface(profile)
    assert [axis.get_yscale() for axis in surface.axes] == ["log"]
    assert drawn(surface, tmp_path)
    spatial = plot_spatial(profile, profile.points)
    labels = {axis.get_xlabel() for axis in spatial.axes}
    assert {"row", "column address", "data line (DQ), shaded by chip", "bank"} <= labels
    assert drawn(spatial, tmp_path)
    assert drawn(plot_model(fit(profile, planted.POINT, WriteCondition.NOMINAL), profile), tmp_path)


def test_a_map_holds_rates_clean_points_and_unmeasured_ones(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    made = Profile.create(tmp_path / "dimm", planted.header(geometry, 3))
    weak = planted.random_weak(geometry, 2000)
    rng = np.random.default_rng(1)
    none = WeakCells(weak.cell[:0], weak.flip_zero[:0], weak.flip_one[:0])
    for index, (vdd, trcd, cells) in enumerate(((1100, 7500, weak), (1200, 10000, none), (1100, 10000, none))):
        point = OperatingPoint(vdd_mv=vdd, trcd_ps=trcd)
        pattern, region = Pattern.parse("0xFF"), planted.whole(geometry)
        counts = planted.counts(geometry, cells, pattern, region, 4, rng)
        made.append(planted.record(geometry, counts, index, pattern=pattern, point=point), counts)
    figure = plot_ber_map(made)
    clean, rates = (np.ma.filled(image.get_array().astype(float), np.nan) for image in figure.axes[0].images)
    assert np.array_equal(np.isnan(clean), [[True, True], [False, False]])
    assert np.array_equal(np.isnan(rates), [[False, True], [True, True]])
    assert rates[0, 0] == pytest.approx(made.points[0].errors / geometry.cells / 4)
    assert drawn(figure, tmp_path)


@pytest.mark.parametrize(("rows", "bitlines"), [(None, None), ((10, 40), (100, 900)), ((5, 6), (0, 3))])
def test_a_zoom_counts_every_error_of_its_window(
    planted: ModuleType,
    tmp_path: Path,
    rows: tuple[int, int] | None,
    bitlines: tuple[int, int] | None,
) -> None:
    geometry = planted.small_geometry()
    weak = WeakCells(np.arange(geometry.cells), *np.full((2, geometry.cells), 0.5))
    profile = planted.profile(tmp_path / "dimm", geometry, weak, ("0xFF", "0x00"), rounds=4)
    figure = plot_zoom(profile, profile.points, 1, rows, bitlines)
    rate = np.ma.filled(figure.axes[0].images[-1].get_array().astype(float), 0.0)
    (top, bottom), (left, right) = rows or (0, geometry.rows), bitlines or (0, geometry.row_bits)
    errors = 0
    for record in profile.points:
        cells = profile.cells(record.index, 1)
        row, line = geometry.row(cells.cell), cells.cell % geometry.row_bits
        errors += int(cells.errors[(row >= top) & (row < bottom) & (line >= left) & (line < right)].sum())
    width = -(-(right - left) // 256)
    columns = np.diff([*range(0, right - left, width), right - left])
    assert (rate * columns).sum() * 8 == pytest.approx(errors)
    assert drawn(figure, tmp_path)


def test_a_zoom_outside_what_was_tested_is_refused(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    profile = planted.profile(tmp_path / "dimm", geometry, planted.random_weak(geometry, 100))
    with pytest.raises(ProfileError, match="bank 7 was not tested"):
        plot_zoom(profile, profile.points, 7)
    with pytest.raises(ProfileError, match="rows 0:65 are outside 0:64"):
        plot_zoom(profile, profile.points, 0, (0, 65))


@pytest.mark.parametrize("weak", [0.0, 1.0])
def test_a_profile_without_errors_or_points(planted: ModuleType, tmp_path: Path, weak: float) -> None:
    geometry = planted.small_geometry()
    cells = UniformModel(geometry=geometry, banks=(0, 1), weak_fraction=weak, flip_probability=1.0)
    profile = planted.profile(tmp_path / "dimm", geometry, cells.sample_weak_cells(0, geometry.cells, 1), ("0xFF",))
    assert drawn(plot_ber_surface(profile), tmp_path)
    assert drawn(plot_spatial(profile, profile.points), tmp_path)
    assert drawn(plot_ber_map(profile), tmp_path)
    empty = Profile.create(tmp_path / "empty", planted.header(geometry, 1))
    assert drawn(plot_ber_surface(empty), tmp_path)
    assert drawn(plot_ber_map(empty), tmp_path)
    with pytest.raises(ProfileError, match="untested"):
        plot_spatial(empty, [])


@pytest.mark.parametrize("number", [1, 2])
def test_line_models_are_drawn_against_the_data(planted: ModuleType, tmp_path: Path, number: int) -> None:
    geometry = planted.small_geometry()
    rng = np.random.default_rng(1)
    rows = geometry.banks * geometry.rows
    wordlines = WordlineModel(
        geometry=geometry,
        banks=(0, 1),
        line=np.arange(rows),
        weak_fraction=rng.gamma(0.5, 0.1, rows).clip(0, 1),
        flip_probability=np.full(rows, 0.4),
        pooled_weak_fraction=0.05,
        pooled_flip_probability=0.4,
    )
    weak = wordlines.sample_weak_cells(0, geometry.cells, 1)
    if number == 1:  # two data lines in sixteen
        cell = np.sort(rng.choice(geometry.cells // 8, 12_000, replace=False) * 8)
        weak = WeakCells(cell, np.full(cell.size, 0.4), np.full(cell.size, 0.4))
    profile = planted.profile(tmp_path / "dimm", geometry, weak)
    report = fit(profile, planted.POINT, WriteCondition.NOMINAL)
    assert report.chosen == (2 if number == 2 else 4)  # data lines are what Model 4 alone knows
    assert drawn(plot_model(report, profile), tmp_path)


def test_pyplot_is_left_alone_and_errors_are_light() -> None:
    code = "import sys, profiles.plots; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, profiles.errors; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
