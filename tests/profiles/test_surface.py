"""The BER surface: what was measured, what lies between, and nothing beyond."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.errors import SurfaceError
from profiles.schema import OperatingPoint, WriteCondition
from profiles.statistics import BerEstimate, estimate
from profiles.surface import BerSurface

READS = 10**9


def at(vdd_mv: int, trcd_ps: int) -> OperatingPoint:
    return OperatingPoint(vdd_mv=vdd_mv, trcd_ps=trcd_ps)


def rate(ber: float) -> BerEstimate:
    return estimate(round(ber * READS), READS)


# Clean at 10 ns down to 1.1 V, as published modules are; and a contradiction at 5 ns.
SURFACE = BerSurface(
    {
        at(1350, 10000): rate(0),
        at(1100, 10000): rate(0),
        at(1050, 10000): rate(1e-4),
        at(1000, 10000): rate(1e-2),
        at(1350, 7500): rate(1e-6),
        at(1100, 7500): rate(1e-3),
        at(1350, 5000): rate(0.2),
        at(1200, 5000): rate(0.1),
    },
    "a made-up module",
)


def test_measured_points_come_back_as_they_were_measured() -> None:
    for point, known in SURFACE.measured.items():
        value = SURFACE.at(point)
        assert (value.ber, value.low, value.high, value.measured) == (known.ber, known.low, known.high, True)


def test_between_two_failing_points_the_logarithm_is_linear_and_the_interval_reaches_both() -> None:
    value = SURFACE.at(at(1025, 10000))
    assert value.ber == pytest.approx(1e-3)
    assert value.low == SURFACE.measured[at(1050, 10000)].low
    assert value.high == SURFACE.measured[at(1000, 10000)].high
    assert not value.measured


def test_the_tail_is_bounded() -> None:
    """Between clean points it is clean; between a clean and a failing one there are limits and no rate."""
    clean = SURFACE.at(at(1200, 10000))
    assert (clean.ber, clean.low) == (0.0, 0.0)
    assert 0 < clean.high < 5 / READS
    edge = SURFACE.at(at(1075, 10000))
    assert np.isnan(edge.ber)
    assert (edge.low, edge.high) == (0.0, SURFACE.measured[at(1050, 10000)].high)
    # A smooth curve through 7.5 and 5 ns at nominal VDD would claim errors here.
    nothing = SURFACE.at(at(1350, 9000))
    assert np.isnan(nothing.ber)
    assert nothing.low == 0.0


@pytest.mark.parametrize("point", [at(990, 10000), at(1360, 7500), at(1000, 7500), at(1350, 12500), at(1350, 2500)])
def test_extrapolation_is_refused_with_the_measured_range(point: OperatingPoint) -> None:
    with pytest.raises(SurfaceError, match=r"outside .* measured \(1000\.\.1350 mV, 5\.\.10 ns\).*scan"):
        SURFACE.at(point)


def test_a_contradiction_is_refused_where_it_matters() -> None:
    """At 5 ns the milder point failed more often: as some modules do when the order of the tests differs."""
    with pytest.raises(SurfaceError, match="fails more often at 1350 mV, 5 ns"):
        SURFACE.at(at(1250, 5000))


def test_no_points_are_refused(planted: ModuleType, tmp_path: Path) -> None:
    geometry = planted.small_geometry()
    profile = planted.profile(tmp_path / "dimm", geometry, planted.random_weak(geometry, 500))
    surface = BerSurface.of(profile, WriteCondition.NOMINAL)
    assert surface.at(planted.POINT).ber == pytest.approx(
        sum(record.errors for record in profile.points) / (geometry.cells * 32)
    )
    with pytest.raises(SurfaceError, match="holds no point"):
        BerSurface.of(profile, WriteCondition.OPERATING_POINT)


@settings(max_examples=200, deadline=None)
@given(
    vdd=st.lists(st.integers(900, 1350), min_size=3, max_size=8, unique=True),
    trcd=st.lists(st.sampled_from([2500, 5000, 7500, 10000, 12500]), min_size=2, max_size=5, unique=True),
    slope=st.floats(0.5, 3),
    data=st.data(),
)
def test_limits_hold_the_truth_of_every_monotone_surface(
    vdd: list[int], trcd: list[int], slope: float, data: st.DataObject
) -> None:
    """Rates known almost exactly: the limits hold a truth that rises towards low VDD and short tRCD."""

    def truth(point: OperatingPoint) -> float:
        stress = (1350 - point.vdd_mv) / 450 + (12500 - point.trcd_ps) / 10000
        return 0.0 if stress < 0.4 else min(0.5, 1e-6 * np.exp(slope * 4 * (stress - 0.4)))

    chosen = [at(v, t) for v in vdd for t in trcd if data.draw(st.booleans())]
    if not chosen:
        return
    surface = BerSurface({point: estimate(round(truth(point) * 10**12), 10**12) for point in chosen}, "made up")
    wanted = at(data.draw(st.integers(900, 1350)), data.draw(st.integers(2500, 12500)))
    try:
        value = surface.at(wanted)
    except SurfaceError:
        mild = any(p.vdd_mv >= wanted.vdd_mv and p.trcd_ps >= wanted.trcd_ps for p in chosen)
        harsh = any(p.vdd_mv <= wanted.vdd_mv and p.trcd_ps <= wanted.trcd_ps for p in chosen)
        assert not (mild and harsh)
        return
    assert value.low <= truth(wanted) <= value.high
    assert np.isnan(value.ber) or value.low <= value.ber <= value.high
