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
from profiles.plots import plot_ber_surface, plot_model, plot_spatial
from profiles.schema import WriteCondition
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


@pytest.mark.parametrize("weak", [0.0, 1.0])
def test_a_profile_without_errors_or_points(planted: ModuleType, tmp_path: Path, weak: float) -> None:
    geometry = planted.small_geometry()
    cells = UniformModel(geometry=geometry, banks=(0, 1), weak_fraction=weak, flip_probability=1.0)
    profile = planted.profile(tmp_path / "dimm", geometry, cells.sample_weak_cells(0, geometry.cells, 1), ("0xFF",))
    assert drawn(plot_ber_surface(profile), tmp_path)
    assert drawn(plot_spatial(profile, profile.points), tmp_path)
    empty = Profile.create(tmp_path / "empty", planted.header(geometry, 1))
    assert drawn(plot_ber_surface(empty), tmp_path)
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
