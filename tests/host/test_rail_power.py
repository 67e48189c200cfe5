"""What the rail took: like reads beside like, and nothing where nothing was measured."""

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import pytest

from host.boards import open_mock
from host.cli.rail_power import rail_power
from host.cli.report import _measured_power
from host.plan import Grid, Rows, ScanPlan
from host.scan import scan
from profiles.geometry import Geometry
from profiles.pattern import Pattern
from profiles.schema import OperatingPoint
from profiles.storage import Profile

LOW = OperatingPoint(vdd_mv=1100, trcd_ps=10000)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    plan = ScanPlan(
        grid=(Grid(trcd_ps=10000, vdd_mv=(1350, 1100)), Grid(trcd_ps=14000, vdd_mv=(1350,))),
        patterns=(Pattern.parse("0x00"), Pattern.parse("0xAA")),
        rounds=1,
        banks=(0,),
        rows=Rows(start=0, count=1),
    )
    geometry = Geometry(banks=1, rows=64, columns=512, data_width=64, subarray_rows=32)
    return scan(open_mock("A", 1, geometry), plan, tmp_path_factory.mktemp("power") / "profile")


def measured(profile: Profile, power: dict[tuple[int, int, str], float]) -> Profile:
    """The profile as a supply that measures power would have left it."""
    records = [
        record.model_copy(
            update={"power_mw": power.get((record.point.vdd_mv, record.point.trcd_ps, str(record.pattern)))}
        )
        for record in profile.points
    ]
    return cast(Any, SimpleNamespace(points=records, header=profile.header))


def test_the_same_reads_are_compared_at_the_same_trcd(profile: Profile) -> None:
    zeros, stripes = (str(Pattern.parse(text)) for text in ("0x00", "0xAA"))
    powers = {
        **{(1350, 10000, zeros): 1000.0, (1350, 10000, stripes): 1400.0, (1350, 14000, zeros): 900.0},
        (1100, 10000, zeros): 700.0,
    }
    found = rail_power(measured(profile, powers), LOW)
    assert found is not None
    assert (found.nominal_mw, found.reduced_mw) == (1000, 700)
    said = _measured_power(asdict(found))
    assert "1000 mW at nominal VDD and 700 mW" in said
    assert "30.0 %" in said


def test_nothing_is_said_where_nothing_was_measured(profile: Profile) -> None:
    assert rail_power(profile, LOW) is None
    zeros = str(Pattern.parse("0x00"))
    assert rail_power(measured(profile, {(1100, 10000, zeros): 700.0}), LOW) is None
    assert rail_power(measured(profile, {(1350, 10000, zeros): 700.0}), LOW.model_copy(update={"vdd_mv": 1350})) is None
    assert "measured no power" in _measured_power(None)
