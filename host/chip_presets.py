"""Vendor presets of the chip model, and the tables that turn operating conditions into integers.

Measured, and held to by tests:
    BER over tRCD at nominal VDD, data dependence, neighbour coupling and temperature: Chang et al., "Understanding
    Latency Variation in Modern DRAM Chips", SIGMETRICS 2016 (DDR3 DIMMs of vendors A, B, C). First failing VDD at tRCD
    = 10 ns, growth of faulty lines with VDD, clustering by rows, and the required tRCD by circuit simulation: Chang et
    al., "Understanding Reduced-Voltage Operation in Modern DRAM Devices", SIGMETRICS 2017 (DDR3L).

Assumed, since no data set gives the joint BER(VDD, tRCD) surface:
    VDD and time act through one *effective time* = time since ACT x slowdown(nominal) / slowdown(VDD). For vendors A
    and B the slowdown is the 2017 study's circuit simulation; for C that would contradict one study or the other, so C
    has a slowdown of its own that passes through both. Where bits lie (bitline, DQ and bank factors), WRITE failures
    (the same curve at `WRITE_MARGIN` times the effective time) and persistence are assumptions too.

Numbers are computed with `decimal`, whose results do not depend on the machine's mathematics library.
"""

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from itertools import pairwise
from math import exp, expm1
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from host import chip as model
from host.chip import Chip
from profiles.errors import BoardError
from profiles.geometry import Geometry
from profiles.pattern import PatternKind

WRITE_MARGIN = Decimal("1.04")
REFERENCE_TEMPERATURE_C = 20.0


@dataclass(frozen=True)
class Knot:
    """One point of a preset's curve.

    Attributes:
        effective_ps: effective time from ACT to RD, picoseconds.
        weak_fraction: fraction of cells that are weak there.
        flip_zero, flip_one: probability that a read of a weak cell flips a stored 0, a stored 1.
    """

    effective_ps: int
    weak_fraction: str
    flip_zero: str
    flip_one: str


@dataclass(frozen=True)
class Preset:
    """A vendor's chips.

    Attributes:
        bound_ps: effective time from which no cell fails: the tail is bounded.
        knots: from long to short effective time; log(rate) and flip probabilities are linear between them.
        slowdown: (VDD in mV, required time in ps or any proportional unit), from high to low VDD, linear between.
        temperature_per_c: relative growth of the weak-cell rate per degree Celsius above 20.
        coupling: relative growth of the flip probability when both neighbours hold the other value.
        weak_row_share, weak_row_factor: the two classes of rows; the strong class's factor keeps the mean at 1.
        weak_bitline_share: share of weak cells that fall on one bitline in 64.
        bank_sigma, row_sigma, lane_sigma: spread (of the logarithm) of bank, row and DQ lane factors.
        persistence: probability that a flipped read is restored into the cell.
        write_flip: probability that a WRITE to a cell that is weak for WRITEs fails to change it.
    """

    vendor: str
    bound_ps: int
    knots: tuple[Knot, ...]
    slowdown: tuple[tuple[int, int], ...]
    temperature_per_c: str
    coupling: str
    weak_row_share: float
    weak_row_factor: float
    weak_bitline_share: float = 0.2
    bank_sigma: float = 0.2
    row_sigma: float = 0.25
    lane_sigma: float = 0.3
    persistence: float = 0.05
    write_flip: float = 0.5


_CIRCUIT = (
    *((1350, 8400), (1250, 8600), (1200, 8900), (1150, 9300), (1100, 10000), (1050, 10800), (1000, 12000)),
    *((950, 13700), (900, 16000)),
)

PRESETS = {
    "A": Preset(
        vendor="A",
        bound_ps=8550,
        knots=(
            Knot(8400, "1e-8", "0.7", "0.5"),
            Knot(7500, "3e-3", "0.7", "0.5"),
            Knot(5000, "0.075", "0.7", "0.42"),
            Knot(2500, "0.95", "0.55", "0.52"),
        ),
        slowdown=_CIRCUIT,
        temperature_per_c="0.003",
        coupling="0.4",
        weak_row_share=0.2,
        weak_row_factor=3.0,
    ),
    "B": Preset(
        vendor="B",
        bound_ps=8250,
        knots=(
            Knot(8077, "1e-6", "0.8", "0.45"),
            Knot(7700, "3e-3", "0.8", "0.45"),
            Knot(7500, "0.03", "0.8", "0.45"),
            Knot(7300, "0.07", "0.8", "0.45"),
            Knot(7000, "0.15", "0.8", "0.45"),
            Knot(6000, "0.28", "0.7", "0.6"),
            Knot(5000, "0.36", "0.5", "0.9"),
            Knot(2500, "0.95", "0.57", "0.58"),
        ),
        slowdown=_CIRCUIT,
        temperature_per_c="-0.001",
        coupling="0.1",
        weak_row_share=0.1,
        weak_row_factor=5.0,
    ),
    "C": Preset(
        vendor="C",
        bound_ps=9000,
        knots=(
            Knot(8900, "1e-9", "0.9", "0.045"),
            Knot(7500, "4e-6", "0.9", "0.045"),
            Knot(5000, "0.34", "0.9", "0.045"),
            Knot(2500, "0.95", "0.78", "0.77"),
        ),
        slowdown=((1350, 1000), (1300, 1050), (1250, 1125), (1200, 1350), (1130, 1667), (1050, 2200), (900, 3600)),
        temperature_per_c="0.002",
        coupling="0",
        weak_row_share=0.5,
        weak_row_factor=1.9,
    ),
}


def _interpolate(x: Decimal, points: list[tuple[Decimal, Decimal]]) -> Decimal:
    """Piecewise linear through ``points`` (x descending), constant outside."""
    if x >= points[0][0]:
        return points[0][1]
    for (x1, y1), (x2, y2) in pairwise(points):
        if x >= x2:
            return y2 + (y1 - y2) * (x - x2) / (x1 - x2)
    return points[-1][1]


def effective_time_ps(preset: Preset, vdd_uv: int, elapsed_ps: int) -> Decimal:
    """Time at nominal VDD that stresses a cell as ``elapsed_ps`` at ``vdd_uv`` (microvolts) does."""
    table = [(Decimal(mv * 1000), Decimal(slow)) for mv, slow in preset.slowdown]
    lowest = table[-1][0]
    if vdd_uv < lowest:
        raise BoardError(
            f"the chip model covers VDD down to {lowest / 1000:g} mV, not {vdd_uv / 1000:g} mV; raise the supply"
        )
    return elapsed_ps * table[0][1] / _interpolate(Decimal(vdd_uv), table)


def weak_rate(preset: Preset, effective_ps: Decimal, temperature_c: float) -> Decimal:
    """Rate r of the weak-cell process per cell: a cell is weak with probability 1 - exp(-r)."""
    if effective_ps >= preset.bound_ps:
        return Decimal(0)
    points = [(Decimal(k.effective_ps), (-(1 - Decimal(k.weak_fraction)).ln()).ln()) for k in preset.knots]
    warmth = 1 + Decimal(preset.temperature_per_c) * (Decimal(temperature_c) - Decimal(REFERENCE_TEMPERATURE_C))
    return min(_interpolate(effective_ps, points).exp() * warmth, Decimal(model.MAX_STRESS_PER_CELL))


def flip_probability(preset: Preset, effective_ps: Decimal, stored: int, neighbours: int) -> Decimal:
    """Probability that a weak cell's read flips, by stored bit and number (0..2) of differing neighbours."""
    points = [(Decimal(k.effective_ps), Decimal(k.flip_one if stored else k.flip_zero)) for k in preset.knots]
    return min(_interpolate(effective_ps, points) * (1 + Decimal(preset.coupling) * neighbours / 2), Decimal(1))


def set_conditions(chip: Chip, preset: Preset, vdd_uv: int, temperature_c: float, tck_ps: int) -> None:
    """Fill the chip's condition tables for a supply (microvolts) and a temperature."""
    burst_bits = int(chip.parameters[model.BURST] * chip.parameters[model.WIDTH])
    with localcontext() as context:
        context.prec = 30
        for elapsed in range(model.ELAPSED_LIMIT):
            effective = effective_time_ps(preset, vdd_uv, elapsed * tck_ps)
            for kind, at in ((model.READ, effective), (model.WRITE, effective * WRITE_MARGIN)):
                rate = weak_rate(preset, at, temperature_c) * burst_bits
                chip.rate[kind, elapsed] = int(rate * (1 << model.UNIT))
            flips = [
                [int(flip_probability(preset, effective, stored, differing) * (1 << 32)) for differing in (0, 1, 2)]
                for stored in (0, 1)
            ]
            for lane, around in np.ndindex(chip.flip.shape[1] // 8, 8):
                stored = around >> 1 & 1
                below = lane > 0 and around & 1 != stored
                above = lane < chip.flip.shape[1] // 8 - 1 and around >> 2 != stored
                chip.flip[elapsed, lane * 8 + around] = flips[stored][below + above]


def _logarithm_table() -> model.I64:
    """-ln of 1/2 .. 1 in 2^LOG_BITS steps, fixed point (see `host.chip`)."""
    steps = 1 << model.LOG_BITS
    with localcontext() as context:
        context.prec = 40
        values = [-(Decimal(steps + k) / (2 * steps)).ln() for k in range(steps + 1)]
        return np.array([int(value * (1 << model.UNIT)) for value in values], np.int64)


def _lognormal_factors(sigma: float, count: int) -> model.I64:
    """``count`` quantiles of a log-normal of mean 1, fixed point 8 bits."""
    values = np.array([exp(sigma * NormalDist().inv_cdf((k + 0.5) / count)) for k in range(count)])
    factors: model.I64 = np.maximum(1, np.round(values / values.mean() * (1 << model.FACTOR_UNIT))).astype(np.int64)
    return factors


def _spread(sigma: float, count: int, rng: np.random.Generator) -> model.I64:
    """Log-normal factors in random order: their mean is 1, whatever the seed."""
    factors: model.I64 = rng.permutation(_lognormal_factors(sigma, count))
    return factors


def _lane_table(weights: model.I64) -> model.U8:
    """Data lines, each as often as its weight asks; what rounding leaves over goes to the lines it took most from."""
    entries = 1 << model.LANE_BITS
    count, lost = np.divmod(weights * entries, weights.sum())
    count[np.argsort(-lost, kind="stable")[: entries - count.sum()]] += 1
    return np.repeat(np.arange(weights.size, dtype=np.uint8), count)


def build_chip(geometry: Geometry, preset: Preset, seed: int) -> Chip:
    """A chip at rest: every bank closed, every cell with its power-up content (pseudo-random by ``seed``)."""
    g, rng = geometry, np.random.Generator(np.random.Philox(seed))
    words, pool = g.burst_bits // 32, 256
    strong = (1 - preset.weak_row_share * preset.weak_row_factor) / (1 - preset.weak_row_share)
    parameters = np.zeros(model.PARAMETERS, np.int64)
    for index, value in {
        **{model.SEED: seed, model.ROWS: g.rows, model.COLUMNS: g.columns, model.WIDTH: g.data_width},
        **{model.BURST: g.burst_length, model.CHIP_WIDTH: g.chip_width},
        model.SUBARRAY_SHIFT: min(g.subarray_rows, g.rows).bit_length() - 1,
        model.BURST_SHIFT: g.burst_bits.bit_length() - 1,
        model.BEAT_SHIFT: model.LANE_BITS - (g.data_width.bit_length() - 1),
        model.WEAK_ROW_SHARE: round(preset.weak_row_share * 65536),
        model.WEAK_ROW_FACTOR: round(preset.weak_row_factor * (1 << model.FACTOR_UNIT)),
        model.STRONG_ROW_FACTOR: round(strong * (1 << model.FACTOR_UNIT)),
        model.WEAK_BITLINE_SHARE: round(preset.weak_bitline_share * 256),
        model.PERSISTENCE: round(preset.persistence * (1 << 32)),
        model.WRITE_FLIP: round(preset.write_flip * (1 << 32)),
        **{model.FREE_BLOCKS: pool, model.FREE_SLOTS: pool},
    }.items():
        parameters[index] = value
    chip = Chip(
        parameters=parameters,
        rate=np.zeros((2, model.ELAPSED_LIMIT), np.int64),
        flip=np.zeros((model.ELAPSED_LIMIT, 8 * g.chip_width), np.int64),
        lane=_lane_table(_spread(preset.lane_sigma, g.data_width, rng)),
        bank_factor=_spread(preset.bank_sigma, g.banks, rng),
        row_factor=_lognormal_factors(preset.row_sigma, model.ROW_CLASSES),
        logarithm=_logarithm_table(),
        open_row=np.full(g.banks, -1, np.int64),
        act_clock=np.zeros(g.banks, np.int64),
        act_index=np.zeros(g.banks, np.int64),
        bank_hash=np.zeros(g.banks, np.uint64),
        epoch_hash=np.zeros(g.banks, np.uint64),
        near=np.full((g.banks, 2), -1, np.int64),
        near_hash=np.zeros((g.banks, 2), np.uint64),
        row_tag=np.zeros(g.banks * g.rows, np.int32),
        burst_tag=np.zeros((pool, g.bursts_per_row), np.int32),
        block_spec=np.zeros(pool, np.int32),
        block_same=np.zeros(pool, np.int32),
        slots=np.zeros((pool, words), np.uint32),
        free_blocks=np.arange(pool, dtype=np.int32),
        free_slots=np.arange(pool, dtype=np.int32),
        specs=np.array([[int(PatternKind.RANDOM), seed & 0xFFFFFFFF, 0]], np.int64),
        held=np.zeros(words, np.int64),
        kept=np.zeros(words, np.int64),
        fresh=np.zeros(words, np.int64),
    )
    model.begin_epoch(chip, 0)
    return chip


def _grown(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    out = np.zeros((2 * values.shape[0], *values.shape[1:]), values.dtype)
    out[: values.shape[0]] = values
    return out


def with_more_memory(chip: Chip) -> Chip:
    """The same chip with twice the room wherever room is short."""
    p = chip.parameters
    if p[model.FREE_BLOCKS] == 0:
        size = chip.burst_tag.shape[0]
        p[model.FREE_BLOCKS] = size
        chip = chip._replace(
            burst_tag=_grown(chip.burst_tag),
            block_spec=_grown(chip.block_spec),
            block_same=_grown(chip.block_same),
            free_blocks=np.concatenate([np.arange(size, 2 * size), np.zeros(size)]).astype(np.int32),
        )
    if p[model.FREE_SLOTS] == 0:
        size = chip.slots.shape[0]
        p[model.FREE_SLOTS] = size
        free = np.concatenate([np.arange(size, 2 * size), np.zeros(size)]).astype(np.int32)
        chip = chip._replace(slots=_grown(chip.slots), free_slots=free)
    return chip


@lru_cache(maxsize=16)
def supply_ladder(vendor: str, trcd_ps: int, bers: tuple[float, float], step: float) -> dict[int, float]:
    """Supplies, millivolts, at which chips of ``vendor`` have bit error rates within ``bers``, at least ``step`` apart.

    Descending from 1350 mV to the lowest that the model covers, with the rate of each: half ones, 20 degrees Celsius,
    no differing neighbours, an average chip.
    """
    preset, supplies, last = PRESETS[vendor], dict[int, float](), 0.0
    for millivolts in range(preset.slowdown[0][0], preset.slowdown[-1][0] - 1, -1):
        effective = effective_time_ps(preset, millivolts * 1000, trcd_ps)
        flips = float(flip_probability(preset, effective, 0, 0) + flip_probability(preset, effective, 1, 0)) / 2
        ber = -expm1(-float(weak_rate(preset, effective, REFERENCE_TEMPERATURE_C))) * flips
        if bers[0] <= ber <= bers[1] and ber >= last * step:
            supplies[millivolts] = last = ber
    return supplies
