"""What the chip model should give, computed apart from it: averages over the spread of rows and banks, in floats."""

from decimal import Decimal
from math import exp
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from host.chip_presets import Preset, effective_time_ps, flip_probability, weak_rate

Floats = npt.NDArray[np.float64]


def _lognormal(sigma: float, count: int = 32) -> Floats:
    values = np.array([exp(sigma * NormalDist().inv_cdf((k + 0.5) / count)) for k in range(count)])
    return values / values.mean()


def factors(preset: Preset) -> tuple[Floats, Floats]:
    """Row and bank factors that multiply the weak-cell rate, and their weights."""
    share, weak = preset.weak_row_share, preset.weak_row_factor
    strong = (1 - share * weak) / (1 - share)
    spread = np.multiply.outer(_lognormal(preset.row_sigma), _lognormal(preset.bank_sigma)).ravel()
    values = np.concatenate([weak * spread, strong * spread])
    weights = np.concatenate([np.full(spread.size, share), np.full(spread.size, 1 - share)]) / spread.size
    return values, weights


def rate(preset: Preset, vdd_mv: float, trcd_ps: int, temperature_c: float = 20.0) -> float:
    """Weak-cell rate a cell."""
    effective = effective_time_ps(preset, round(vdd_mv * 1000), trcd_ps)
    return float(weak_rate(preset, effective, temperature_c))


def flips(preset: Preset, vdd_mv: float, trcd_ps: int, neighbours: int = 0) -> tuple[float, float]:
    """Flip probabilities of a weak cell that stores 0, and 1."""
    effective = effective_time_ps(preset, round(vdd_mv * 1000), trcd_ps)
    zero, one = (flip_probability(preset, effective, stored, neighbours) for stored in (0, 1))
    return float(zero), float(one)


def weak_fraction(preset: Preset, vdd_mv: float, trcd_ps: int, temperature_c: float = 20.0) -> float:
    values, weights = factors(preset)
    return float((weights * -np.expm1(-values * rate(preset, vdd_mv, trcd_ps, temperature_c))).sum())


def ber(preset: Preset, vdd_mv: float, trcd_ps: int, temperature_c: float = 20.0) -> float:
    """Bit error rate over equal parts of 0x00 and 0xFF."""
    return weak_fraction(preset, vdd_mv, trcd_ps, temperature_c) * float(np.mean(flips(preset, vdd_mv, trcd_ps)))


def bank_ber(preset: Preset, vdd_mv: float, trcd_ps: int, bank_factor: float) -> float:
    """As `ber`, of a bank whose weak-cell rate is ``bank_factor`` times the module's."""
    share, weak = preset.weak_row_share, preset.weak_row_factor
    strong = (1 - share * weak) / (1 - share)
    rows = _lognormal(preset.row_sigma, 64)
    stress = np.concatenate([weak * rows, strong * rows]) * bank_factor * rate(preset, vdd_mv, trcd_ps)
    weights = np.concatenate([np.full(64, share), np.full(64, 1 - share)]) / 64
    return float((weights * -np.expm1(-stress)).sum()) * float(np.mean(flips(preset, vdd_mv, trcd_ps)))


def faulty_lines(preset: Preset, vdd_mv: float, trcd_ps: int) -> float:
    """Fraction of 64-byte lines with an error in a read of 0x00 or of 0xFF."""
    values, weights = factors(preset)
    zero, one = flips(preset, vdd_mv, trcd_ps)
    either = 1 - (1 - zero) * (1 - one)
    return float((weights * -np.expm1(-values * rate(preset, vdd_mv, trcd_ps) * 512 * either)).sum())


def module_errors(preset: Preset, vdd_mv: float, trcd_ps: int, cells: int) -> float:
    """Expected wrong bits in a pass of 0x00 and one of 0xFF over a module."""
    return 2 * cells * ber(preset, vdd_mv, trcd_ps)


def growth_per_volt(preset: Preset, trcd_ps: int = 10_000) -> float:
    """b of the study's P(faulty line) = c (1 - exp(-exp(a - b VDD))), by least squares where 1e-4 < P < 0.9 c."""
    ceiling = 0.5 if preset.vendor == "C" else 1.0
    volts, heights = [], []
    for vdd_mv in np.arange(1350, 900, -2.5):
        p = faulty_lines(preset, float(vdd_mv), trcd_ps)
        if 1e-4 < p < 0.9 * ceiling:
            volts.append(float(vdd_mv) / 1000)
            heights.append(float(np.log(-np.log1p(-p / ceiling))))
    return -float(np.polyfit(volts, heights, 1)[0])


def effective(preset: Preset, vdd_mv: int, trcd_ps: int) -> Decimal:
    return effective_time_ps(preset, vdd_mv * 1000, trcd_ps)
