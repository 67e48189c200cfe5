"""Pictures of profiles and fits. Each function returns a matplotlib `Figure` of its own and leaves pyplot alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from scipy.stats import binom

from profiles.bank_map import bank_map
from profiles.error_models import (
    BitlineModel,
    CrossedModel,
    DataDependentModel,
    ErrorModel,
    Floats,
    UniformModel,
    WordlineModel,
)
from profiles.errors import FitError
from profiles.fit import FitReport
from profiles.geometry import Geometry
from profiles.population import Integers, Population, collect
from profiles.schema import PointRecord, WriteCondition
from profiles.statistics import BerTable, SurfacePoint, ber, ber_by, ber_surface
from profiles.storage import Profile

# Okabe and Ito's colours, which remain distinct for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MODEL_NAMES = {0: "0 uniform", 1: "1 by bitline", 2: "2 by wordline", 3: "3 data dependent", 4: "4 lines and data"}

_UNTESTED = "#E4E4E4"
_MAX_BLOCKS = 256


def plot_ber_surface(profile: Profile) -> Figure:
    """BER over the measured VDD, a line for each tRCD, a panel for each write condition, all patterns pooled.

    Bars are 95 % Clopper-Pearson intervals of the reads made; arrows are upper limits of points without an error.

    Raises:
        ProfileError: access modes are mixed.
    """
    surfaces = {condition: ber_surface(profile, condition) for condition in WriteCondition}
    shown = {condition: surface for condition, surface in surfaces.items() if surface}
    figure = Figure(figsize=(5.2 * max(1, len(shown)) + 0.6, 4.2), layout="constrained")
    if not shown:
        _nothing(figure, "no point has been measured yet")
        return figure
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    trcds = sorted({each.point.trcd_ps for surface in shown.values() for each in surface})
    for axis, (condition, surface) in zip(axes, shown.items(), strict=True):
        for index, trcd in enumerate(trcds):
            line = sorted(
                (each for each in surface if each.point.trcd_ps == trcd), key=lambda each: each.vdd_measured_mv
            )
            _surface_line(axis, line, f"{trcd / 1000:g} ns", COLOURS[index % len(COLOURS)])
        axis.axvline(profile.header.module.nominal_vdd_mv, color="grey", linestyle=":", linewidth=1)
        axis.set_yscale("log")
        axis.set_xlabel("VDD measured (mV); dotted: nominal")
        axis.set_title(f"written at {'nominal' if condition == WriteCondition.NOMINAL else 'the operating point'}")
        axis.grid(alpha=0.25, which="both", linewidth=0.5)
    axes[0].set_ylabel("bit error rate (arrow: upper limit, no error seen)")
    axes[-1].legend(title="tRCD", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(_module(profile), fontsize=11, parse_math=False)
    return figure


def plot_ber_map(profile: Profile) -> Figure:
    """BER as a heat map of VDD by tRCD, a panel for each write condition, all patterns pooled.

    Measured points only, a cell for each: white was measured and clean, grey was not measured.

    Raises:
        ProfileError: access modes are mixed.
    """
    surfaces = {condition: ber_surface(profile, condition) for condition in WriteCondition}
    shown = {condition: surface for condition, surface in surfaces.items() if surface}
    every = [each for surface in shown.values() for each in surface]
    vdds = sorted({each.point.vdd_mv for each in every})
    trcds = sorted({each.point.trcd_ps for each in every})
    size = (0.42 * max(6, len(vdds)) + 2, (0.42 * len(trcds) + 1.3) * max(1, len(shown)) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    if not shown:
        _nothing(figure, "no point has been measured yet")
        return figure
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    failing = [each.ber.ber for each in every if each.ber.errors]
    norm = LogNorm(min(failing), max(max(failing), 1.01 * min(failing))) if failing else None
    for axis, (condition, surface) in zip(axes, shown.items(), strict=True):
        image = np.full((len(trcds), len(vdds)), np.nan)
        clean = np.zeros(image.shape, bool)
        for each in surface:
            at = trcds.index(each.point.trcd_ps), vdds.index(each.point.vdd_mv)
            image[at] = each.ber.ber if each.ber.errors else np.nan
            clean[at] = not each.ber.errors
        axis.set_facecolor(_UNTESTED)
        axis.imshow(np.where(clean, 1.0, np.nan), aspect="auto", origin="lower", cmap="binary_r", vmin=0, vmax=1)
        if norm is not None:
            drawn = axis.imshow(image, aspect="auto", origin="lower", norm=norm, cmap="viridis")
        axis.set_xticks(range(len(vdds)), [str(vdd) for vdd in vdds], rotation=90, fontsize=8)
        axis.set_yticks(range(len(trcds)), [f"{trcd / 1000:g}" for trcd in trcds], fontsize=8)
        axis.set_ylabel("tRCD (ns)")
        axis.set_title(
            f"written at {'nominal' if condition == WriteCondition.NOMINAL else 'the operating point'}", fontsize=10
        )
    axes[-1].set_xlabel("VDD (mV); white: clean, grey: not measured")
    if norm is not None:
        figure.colorbar(drawn, ax=list(axes), label="bit error rate", pad=0.01)
    figure.suptitle(_module(profile), fontsize=11, parse_math=False)
    return figure


def plot_zoom(
    profile: Profile,
    records: Sequence[PointRecord],
    bank: int,
    rows: tuple[int, int] | None = None,
    bitlines: tuple[int, int] | None = None,
) -> Figure:
    """Where errors lie within one bank, row by bitline; pooled over ``records``. White failed nowhere, grey is unknown.

    Args:
        profile: where the records come from.
        records: points to pool.
        bank: the bank.
        rows: first row and the one after the last; None shows all that were tested.
        bitlines: the same of bitlines, numbered column x data width + data line; None shows all.

    Raises:
        ProfileError: the bank was not tested in ``records``, a span lies outside what was, or a file is damaged.
    """
    here = [record for record in records if bank in record.region.banks]
    found = bank_map(profile, records, bank, rows, bitlines, _MAX_BLOCKS)
    (top, bottom), (left, right), rate = found.rows, found.bitlines, found.ber
    height, width = found.block_rows, found.block_bitlines
    figure = Figure(figsize=(10.5, 5.0), layout="constrained")
    axis = figure.subplots()
    axis.set_facecolor(_UNTESTED)
    extent = (left - 0.5, left + rate.shape[1] * width - 0.5, top + rate.shape[0] * height - 0.5, top - 0.5)
    shown: Any = {"aspect": "auto", "extent": extent, "interpolation": "nearest"}
    axis.imshow(np.where(rate == 0, 1.0, np.nan), cmap="binary_r", vmin=0, vmax=1, **shown)
    positive = rate[rate > 0]
    if positive.size:
        norm = LogNorm(positive.min(), max(positive.max(), positive.min() * 1.01))
        drawn = axis.imshow(np.where(rate > 0, rate, np.nan), norm=norm, cmap="viridis", **shown)
        figure.colorbar(drawn, ax=axis, label="bit error rate", pad=0.01)
    axis.set_xlim(left - 0.5, right - 0.5)
    axis.set_ylim(bottom - 0.5, top - 0.5)
    axis.set_xlabel("bitline of the row: column x data width + data line" + (f" (by {width})" if width > 1 else ""))
    axis.set_ylabel("row" + (f" (by {height})" if height > 1 else ""))
    figure.suptitle(f"{_module(profile)}: {_conditions(here)}; bank {bank}", fontsize=11, parse_math=False)
    return figure


def plot_spatial(profile: Profile, records: Sequence[PointRecord]) -> Figure:
    """Where errors lie: bank x row block, column, data line and bank; pooled over ``records``. Grey was not tested.

    Raises:
        ProfileError: there are no records, or a file is damaged.
    """
    geometry = profile.geometry
    low = min(record.region.row_start for record in records) if records else 0
    high = max(record.region.row_start + record.region.row_count for record in records) if records else 1
    block = 1 << max(0, int(np.ceil(np.log2((high - low) / _MAX_BLOCKS))))
    blocks = ber_by(profile, records, "wordline_block", block_rows=block)
    bitlines = ber_by(profile, records, "bank_bitline")
    figure = Figure(figsize=(10.5, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1.3, 1, 0.7))
    _bank_row_map(figure, figure.add_subplot(grid[0, :]), geometry, blocks, block, low, high)
    _column_profile(figure.add_subplot(grid[1, 0]), geometry, bitlines)
    line = np.array(bitlines.keys) % geometry.row_bits % geometry.data_width
    _rate_bars(figure.add_subplot(grid[1, 1]), line, bitlines, "data line (DQ)", geometry.chip_width)
    _rate_bars(figure.add_subplot(grid[1, 2]), np.array(blocks.keys) // geometry.rows, blocks, "bank", 0)
    pooled = ber(profile, records)
    figure.suptitle(
        f"{_module(profile)}: {_conditions(records)}; BER {pooled.ber:.3g}, {pooled.errors:,} errors",
        fontsize=11,
        parse_math=False,
    )
    return figure


def plot_model(report: FitReport, profile: Profile) -> Figure:
    """The fitted models against the data: errors a cell, failing cells a wordline, and BIC.

    Raises:
        FitError, ProfileError: as `profiles.population.collect`.
    """
    data = collect(profile, report.point, report.write_condition, report.banks)
    figure = Figure(figsize=(11.5, 3.9), layout="constrained")
    by_cell, by_line, by_bic = figure.subplots(1, 3, width_ratios=(1.2, 1.2, 0.8))
    counts = np.arange(1, report.observed_cells.size + 1)
    by_cell.bar(counts, report.observed_cells, color="#C8C8C8", width=0.9, label="measured")
    for number, each in report.fits.items():
        style = {"linewidth": 2.2, "zorder": 4} if number == report.chosen else {"linewidth": 1.1, "linestyle": "--"}
        by_cell.plot(counts, each.expected_cells, color=COLOURS[number], label=MODEL_NAMES[number], **style)
    by_cell.set_yscale("log")
    by_cell.set_ylim(0.5, 30 * report.observed_cells.max())  # room for the legend
    by_cell.set_xlabel("failed reads of a cell")
    by_cell.set_ylabel("cells")
    by_cell.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    by_cell.set_title("errors a cell", fontsize=10)
    _wordline_histogram(by_line, report, data)
    _bic_bars(by_bic, report)
    figure.suptitle(
        f"{_module(profile)} at {report.point}, {report.write_condition.replace('_', ' ')} writes",
        fontsize=11,
        parse_math=False,
    )
    return figure


def _module(profile: Profile) -> str:
    module = profile.header.module
    return f"{module.manufacturer} {module.part_number} ({module.dram_type})"


def _conditions(records: Sequence[PointRecord]) -> str:
    points = sorted({str(record.point) for record in records})
    patterns = sorted({str(record.pattern) for record in records})
    return f"{points[0] if len(points) == 1 else f'{len(points)} operating points'}, {', '.join(patterns)}"


def _nothing(figure: Figure, text: str) -> None:
    figure.text(0.5, 0.5, text, ha="center", va="center")


def _surface_line(axis: Any, line: list[SurfacePoint], label: str, colour: str) -> None:
    if not line:
        return
    seen = [each for each in line if each.ber.errors]
    clean = [each for each in line if not each.ber.errors]
    rate = np.array([each.ber.ber for each in seen])
    spread = [rate - [each.ber.low for each in seen], [each.ber.high for each in seen] - rate]
    axis.errorbar(
        [each.vdd_measured_mv for each in seen], rate, yerr=spread, color=colour, label=label,
        marker="o", markersize=4, linewidth=1.3, capsize=2,
    )  # fmt: skip
    high = np.array([each.ber.high for each in clean])
    axis.errorbar(
        [each.vdd_measured_mv for each in clean], high, yerr=high * 0.6, uplims=True, color=colour,
        linestyle="none", marker="_", markersize=6, linewidth=1, alpha=0.8,
    )  # fmt: skip


def _bank_row_map(
    figure: Figure, axis: Any, geometry: Geometry, blocks: BerTable, block: int, low: int, high: int
) -> None:
    first = low // block
    image = np.full((geometry.banks, -(-high // block) - first), np.nan)
    wordline = np.array(blocks.keys)
    image[wordline // geometry.rows, wordline % geometry.rows // block - first] = blocks.ber
    extent = (first * block, (first + image.shape[1]) * block, geometry.banks - 0.5, -0.5)
    positive = image[image > 0]
    axis.set_facecolor(_UNTESTED)
    if positive.size:
        norm = LogNorm(positive.min(), max(positive.max(), positive.min() * 1.01))
        # Clean blocks are drawn apart from untested ones: in the map's lowest colour.
        drawn = axis.imshow(
            np.where(image == 0, positive.min(), image), aspect="auto", extent=extent, norm=norm, cmap="viridis",
            interpolation="nearest",
        )  # fmt: skip
        figure.colorbar(drawn, ax=axis, label="bit error rate", pad=0.01)
    axis.set_xlabel(f"row (blocks of {block})" if block > 1 else "row")
    axis.set_ylabel("bank")
    axis.set_yticks(np.arange(0, geometry.banks, max(1, geometry.banks // 8)))


def _column_profile(axis: Any, geometry: Geometry, bitlines: BerTable) -> None:
    column = np.array(bitlines.keys) % geometry.row_bits // geometry.data_width
    rate = np.bincount(column, bitlines.errors, geometry.columns) / np.bincount(
        column, bitlines.trials, geometry.columns
    )
    axis.plot(np.arange(geometry.columns), rate, color=COLOURS[0], linewidth=0.8)
    axis.set_xlabel("column address")
    axis.set_ylabel("bit error rate")
    axis.set_ylim(bottom=0)
    axis.set_xlim(0, geometry.columns - 1)
    axis.grid(alpha=0.25, linewidth=0.5)


def _rate_bars(axis: Any, key: Integers, table: BerTable, label: str, chip_width: int) -> None:
    """Bars of the table's counts summed by ``key``; neighbouring chips differ in shade."""
    errors, trials = np.bincount(key, table.errors), np.bincount(key, table.trials)
    tested = np.flatnonzero(trials)
    shades = [COLOURS[0] if not chip_width or each // chip_width % 2 == 0 else COLOURS[5] for each in tested]
    axis.bar(tested, errors[tested] / trials[tested], color=shades, width=0.85)
    axis.set_xlabel(label + (", shaded by chip" if chip_width else ""))
    axis.set_xlim(tested[0] - 0.7, tested[-1] + 0.7)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.25, linewidth=0.5, axis="y")


def _wordline_histogram(axis: Any, report: FitReport, data: Population) -> None:
    lines, trials = _tested_wordlines(data)
    failing = np.bincount(np.searchsorted(lines, data.geometry.wordline(data.cell)), minlength=lines.size)
    width = max(1, int(np.ptp(failing)) // 40)
    edges = np.arange(int(failing.min()), int(failing.max()) + width + 1, width)
    axis.hist(failing, bins=edges - 0.5, color="#C8C8C8", label="measured")
    for number in sorted({0, report.chosen} & set(report.fits)):
        chances = _wordline_chances(report.fits[number].model, data, lines, trials)
        distinct, at = np.unique(np.round(chances, 12), return_counts=True)
        cumulative = binom.cdf(edges[:, None] - 1, data.geometry.row_bits, distinct) @ at
        centres = (edges[:-1] + edges[1:] - 1) / 2
        style = "-" if number == report.chosen else "--"
        axis.plot(centres, np.diff(cumulative), style, color=COLOURS[number], label=MODEL_NAMES[number])
    axis.set_xlabel("failing cells of a wordline")
    axis.set_ylabel("wordlines")
    axis.set_title(f"chi-square / degrees of freedom {report.best.wordlines.dispersion:.3g}", fontsize=10)
    axis.legend(frameon=False, fontsize=8)


def _tested_wordlines(data: Population) -> tuple[Integers, Integers]:
    """Wordlines that were tested, ascending, and the reads of each of their cells."""
    lines = [
        each.bank * data.geometry.rows + each.row_start + np.arange(each.row_count, dtype=np.int64)
        for each in data.sections
    ]
    trials = np.repeat([each.trials for each in data.sections], [each.row_count for each in data.sections])
    return np.concatenate(lines), trials


def _wordline_chances(model: ErrorModel, data: Population, lines: Integers, trials: Integers) -> Floats:
    """Mean chance, by wordline, that one of its cells fails at least once."""
    if isinstance(model, UniformModel):
        return np.asarray(model.weak_fraction * -np.expm1(trials * np.log1p(-min(model.flip_probability, 1 - 1e-16))))
    if isinstance(model, WordlineModel):
        weak, flip = model.parameters(lines)
        return np.asarray(weak * -np.expm1(trials * np.log1p(-np.minimum(flip, 1 - 1e-16))))
    if isinstance(model, BitlineModel):
        return _crossing_chances(model, data.geometry, lines, trials)
    if isinstance(model, DataDependentModel | CrossedModel):
        pairs, cells = data.stored_classes()
        survive = (1 - model.flip_zero) ** pairs[:, 0] * (1 - model.flip_one) ** pairs[:, 1]
        weak = (
            _crossed_weak(model, lines) if isinstance(model, CrossedModel) else np.full(lines.size, model.weak_fraction)
        )
        return weak * float((cells * (1 - survive)).sum() / cells.sum())
    raise FitError(f"Error Model {model.number} cannot be drawn")


def _crossed_weak(model: CrossedModel, lines: Integers) -> Floats:
    """Weak fraction of each wordline, over the bitlines that it crosses."""
    geometry = model.geometry
    subarray, hazard, weak = (
        lines // min(geometry.subarray_rows, geometry.rows),
        model.hazards(lines),
        np.empty(lines.size),
    )
    for each in np.unique(subarray).tolist():
        factors = model.factors(each * geometry.row_bits + np.arange(geometry.row_bits, dtype=np.int64))
        levels, count = np.unique(factors, return_counts=True)
        here = subarray == each
        weak[here] = -np.expm1(-np.outer(hazard[here], levels)) @ count / geometry.row_bits
    return weak


def _crossing_chances(model: BitlineModel, geometry: Geometry, lines: Integers, trials: Integers) -> Floats:
    """Mean over the bitlines that each wordline crosses."""
    subarray = lines // min(geometry.subarray_rows, geometry.rows)
    chances = np.empty(lines.size)
    for each, reads in {(int(a), int(b)) for a, b in zip(subarray, trials, strict=True)}:
        weak, flip = model.parameters(each * geometry.row_bits + np.arange(geometry.row_bits, dtype=np.int64))
        mean = (weak * -np.expm1(reads * np.log1p(-np.minimum(flip, 1 - 1e-16)))).mean()
        chances[(subarray == each) & (trials == reads)] = mean
    return chances


def _bic_bars(axis: Any, report: FitReport) -> None:
    numbers = sorted(report.fits)
    best = min(each.bic for each in report.fits.values())
    above = [report.fits[number].bic - best for number in numbers]
    axis.barh(range(len(numbers)), above, color=[COLOURS[number] for number in numbers], height=0.6)
    axis.set_yticks(range(len(numbers)), [MODEL_NAMES[number] for number in numbers])
    axis.set_xscale("symlog", linthresh=10)
    for row, (number, value) in enumerate(zip(numbers, above, strict=True)):
        axis.annotate("chosen" if number == report.chosen else f"{value:.3g}", (value, row), (4, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    widest = max(10.0, *above)
    axis.set_xlim(0, 300 * widest)
    axis.set_xticks([0.0, *10.0 ** np.arange(2, np.log10(widest) + 1, 2)])
    axis.invert_yaxis()
    axis.set_xlabel("BIC above the best")
    verdict = f"cannot be told from {', '.join(map(str, report.tied))}" if report.tied else "told from all others"
    axis.set_title(f"Model {report.chosen}: {verdict}", fontsize=10)
