"""Vendor presets against measurement. ``pytest -s tests/host/test_presets.py`` prints the tables.

Measured: Chang et al., SIGMETRICS 2016 (tRCD, data, temperature) and 2017 (VDD, faulty lines, clustering by rows).
"""

import numpy as np
import pytest

from host.chip_presets import PRESETS
from host.programs import Traversal
from profiles.geometry import Geometry
from tests.host import expectation
from tests.host.rig import GEOMETRY, board_of, fill, read, write_and_read

GIB_CELLS = 1 << 33
VENDORS = ("A", "B", "C")

# lowest and highest median over the DIMMs of a vendor, nominal VDD, by tRCD in ps
BER = {
    "A": {7500: (4e-6, 4e-2), 5000: (0.012, 0.075), 2500: (0.35, 0.50)},
    "B": {7500: (0.016, 0.049), 5000: (0.17, 0.30), 2500: (0.45, 0.50)},
    "C": {7500: (4e-10, 1e-4), 5000: (0.12, 0.16), 2500: (0.48, 0.50)},
}
FIRST_FAILING_AND_CLEAN_MV = {"A": (1100, 1125), "B": (1075, 1100), "C": (1250, 1300)}
ONES_OVER_ZEROS_AT_5_NS = {"A": (0.25, 0.98), "B": (1.5, 2.1), "C": (0.034, 0.064)}
ALTERNATING_OVER_MIX = {"A": (1.05, 1.61), "B": (0.95, 1.3), "C": (0.95, 1.3)}
PERCENT_PER_C_AT_5_NS = (-0.2, 0.6)
GROWTH_PER_VOLT = {"A": (40, 325), "B": (125, 321), "C": (47, 129)}  # none is published for A: between the others


def say(*columns: object) -> None:
    print(*(f"{column!s:>16}" for column in columns))


def region(rows: int, banks: int = 4) -> Traversal:
    return Traversal(tuple(range(banks)), 0, rows, 0, 128)


def measured_ber(vendor: str, trcd_ps: int, rows: int) -> float:
    """Over equal parts of 0x00 and 0xFF, as the study's medians."""
    board, where = board_of(PRESETS[vendor], tck_ps=2500), region(rows)
    failed = sum(write_and_read(board, pattern, trcd_ps // 2500, where).size for pattern in ("0x00", "0xFF"))
    return failed / (2 * 4 * rows * GEOMETRY.row_bits)


@pytest.mark.parametrize("vendor", VENDORS)
def test_ber_over_trcd(vendor: str) -> None:
    say("vendor", "tRCD ns", "mock", "expected", "measured low", "high")
    for trcd_ps, (low, high) in BER[vendor].items():
        expected = expectation.ber(PRESETS[vendor], 1350, trcd_ps)
        found = measured_ber(vendor, trcd_ps, 16 if trcd_ps < 7500 else 128)
        say(vendor, trcd_ps / 1000, f"{found:.3g}", f"{expected:.3g}", low, high)
        assert low <= expected <= high
        assert found == pytest.approx(expected, rel=0.4, abs=1e-6)  # few rows of two classes
        assert found <= 0.5
    for trcd_ps in (10_000, 12_500):
        assert measured_ber(vendor, trcd_ps, 128) == 0
        assert expectation.module_errors(PRESETS[vendor], 1350, trcd_ps, GIB_CELLS) == 0


@pytest.mark.parametrize("vendor", VENDORS)
def test_lowest_clean_supply_at_10_ns(vendor: str) -> None:
    """A pass over 1 GiB: at least one error at the first failing supply, none at the lowest clean one."""
    preset = PRESETS[vendor]
    failing, clean = FIRST_FAILING_AND_CLEAN_MV[vendor]
    say("vendor", "VDD mV", "errors in 1 GiB")
    for vdd_mv in range(1350, failing - 75, -25):
        errors = expectation.module_errors(preset, vdd_mv, 10_000, GIB_CELLS)
        say(vendor, vdd_mv, f"{errors:.3g}")
        if vdd_mv >= clean:
            assert errors == 0
        elif vdd_mv <= failing:
            assert errors > 3


@pytest.mark.parametrize("vendor", VENDORS)
def test_data_dependence_at_5_ns(vendor: str) -> None:
    board = board_of(PRESETS[vendor], tck_ps=2500)
    zeros, ones, alternating = (write_and_read(board, p, 2, region(32)).size for p in ("0x00", "0xFF", "0xAA"))
    ratio, excess = ones / zeros, alternating / ((zeros + ones) / 2)
    say("vendor", "ones/zeros", "0xAA/mix")
    say(vendor, f"{ratio:.3f}", f"{excess:.3f}")
    assert ONES_OVER_ZEROS_AT_5_NS[vendor][0] <= ratio <= ONES_OVER_ZEROS_AT_5_NS[vendor][1]
    assert ALTERNATING_OVER_MIX[vendor][0] <= excess <= ALTERNATING_OVER_MIX[vendor][1]


def test_the_sign_of_vendor_bs_data_dependence_flips_at_7_5_ns() -> None:
    zero, one = expectation.flips(PRESETS["B"], 1350, 7500)
    assert one < zero


@pytest.mark.parametrize("vendor", VENDORS)
def test_temperature_at_5_ns(vendor: str) -> None:
    cold, warm = (expectation.ber(PRESETS[vendor], 1350, 5000, t) for t in (20.0, 70.0))
    percent = (warm / cold - 1) / 50 * 100
    say("vendor", "% per degree C")
    say(vendor, f"{percent:.2f}")
    assert PERCENT_PER_C_AT_5_NS[0] <= percent <= PERCENT_PER_C_AT_5_NS[1]


@pytest.mark.parametrize("vendor", VENDORS)
def test_faulty_lines_grow_as_measured(vendor: str) -> None:
    growth = expectation.growth_per_volt(PRESETS[vendor])
    say("vendor", "b per volt")
    say(vendor, f"{growth:.0f}")
    assert GROWTH_PER_VOLT[vendor][0] <= growth <= GROWTH_PER_VOLT[vendor][1]


def log_poisson(counts: np.ndarray, mean: float) -> np.ndarray:
    """Up to the factorial, which every model shares."""
    return counts * np.log(mean) - mean


def two_class_gain(counts: np.ndarray) -> float:
    """BIC of one Poisson rate for all rows minus that of a mixture of two: positive where rows cluster."""
    uniform = float(log_poisson(counts, counts.mean()).sum())
    share, low, high = 0.5, max(counts.mean() / 3, 1e-3), counts.mean() * 3
    for _ in range(200):
        a, b = log_poisson(counts, high) + np.log(share), log_poisson(counts, low) + np.log1p(-share)
        weak = 1 / (1 + np.exp(np.clip(b - a, -700, 700)))
        share = float(np.clip(weak.mean(), 1e-6, 1 - 1e-6))
        high = float((weak * counts).sum() / max(weak.sum(), 1e-9)) + 1e-9
        low = float(((1 - weak) * counts).sum() / max((1 - weak).sum(), 1e-9)) + 1e-9
    mixture = float(
        np.logaddexp(log_poisson(counts, high) + np.log(share), log_poisson(counts, low) + np.log1p(-share)).sum()
    )
    return 2 * (mixture - uniform) - 2 * np.log(counts.size)


@pytest.mark.parametrize(("vendor", "vdd_mv"), [("A", 1030), ("B", 1045), ("C", 1160)])
def test_rows_cluster(vendor: str, vdd_mv: int) -> None:
    """At 10 ns, where lines begin to fail: a mixture of two classes of rows beats a uniform rate."""
    board, where = board_of(PRESETS[vendor], tck_ps=2500), region(128)
    fill(board, "0x00", region=where)
    board.rail.set(vdd_mv)
    cells = read(board, "0x00", 4, where)
    counts = np.bincount(cells // GEOMETRY.row_bits, minlength=GEOMETRY.banks * GEOMETRY.rows)
    gain = two_class_gain(counts.astype(np.float64))
    say("vendor", "VDD mV", "errors", "BIC gain")
    say(vendor, vdd_mv, cells.size, f"{gain:.0f}")
    assert cells.size > 300
    assert gain > 20


def test_uniform_rows_do_not_cluster() -> None:
    counts = np.random.default_rng(1).poisson(5.0, 512).astype(np.float64)
    assert two_class_gain(counts) < 5


def test_every_vendor_covers_the_supplies_that_the_rail_allows() -> None:
    for vendor in VENDORS:
        assert PRESETS[vendor].slowdown[0][0] == 1350
        assert PRESETS[vendor].slowdown[-1][0] == 900
    assert Geometry(banks=8, rows=16384, columns=1024, data_width=64).cells == GIB_CELLS
