"""Bisection on planted rates: what it claims is true, and it claims all that intervals allow, in few tests."""

from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from profiles.cliffs import Cliff, Ladder, Rates, locate, most_left, next_rung
from profiles.pattern import Pattern
from profiles.schema import OperatingPoint, WriteCondition
from profiles.statistics import BerEstimate


def rate(ber: float, below: float, above: float) -> BerEstimate:
    """An estimate whose interval reaches from ``ber / below`` to ``ber * above``."""
    return BerEstimate(0, 1, ber, ber / below, ber * above)


@dataclass(frozen=True)
class Planted:
    """True rates from mild to harsh, what a test of each rung would say, and a target."""

    truth: list[float]
    told: list[BerEstimate]
    target: float

    def search(self) -> tuple[dict[int, BerEstimate], list[int]]:
        """What bisection tests, and what it had left at the most before each test."""
        rates: dict[int, BerEstimate] = {}
        bounds = []
        while (rung := next_rung(rates, self.target, len(self.truth))) is not None:
            assert rung not in rates
            bounds.append(most_left(rates, self.target, len(self.truth)))
            rates[rung] = self.told[rung]
        return rates, bounds


@st.composite
def planted(draw: st.DrawFn, monotone: bool = True, exact: bool = False) -> Planted:
    logs = draw(st.lists(st.floats(-8, -1), min_size=3, max_size=70))
    truth = [float(10**log) for log in (sorted(logs) if monotone else logs)]
    wide = st.floats(1.0, 1.0 if exact else 30.0)
    told = [rate(ber, draw(wide), draw(wide)) for ber in truth]
    return Planted(truth, told, float(10 ** draw(st.floats(-8, -1))))


def ladder(rungs: int) -> Ladder:
    points = tuple(OperatingPoint(vdd_mv=1350 - 2 * rung, trcd_ps=10_000) for rung in range(rungs))
    return Ladder(points, WriteCondition.NOMINAL, (Pattern.parse("0x00"),))


@given(planted())
def test_what_is_claimed_is_true_wherever_intervals_hold(plan: Planted) -> None:
    rates, bounds = plan.search()
    rungs = len(plan.truth)
    found = locate(rates, plan.target, rungs)
    assert found.contradiction is None
    assert all(truth < plan.target for truth in plan.truth[: found.mild + 1])
    assert all(truth > plan.target for truth in plan.truth[found.harsh :])
    for rung in range(found.mild + 1, found.harsh):  # whatever lies between is open, or hemmed in by what is
        assert found.between
        assert rung in found.between or found.between[0] < rung < found.between[-1]
    assert len(rates) <= ladder(rungs).most_tests
    assert all(bound >= len(bounds) - done for done, bound in enumerate(bounds))
    assert most_left(rates, plan.target, rungs) == 0


@given(planted(exact=True))
def test_sharp_rates_give_the_one_step_where_the_target_is_passed(plan: Planted) -> None:
    if plan.target in plan.truth:
        return
    rates, _ = plan.search()
    passed = sum(truth < plan.target for truth in plan.truth)
    found = locate(rates, plan.target, len(plan.truth))
    assert (found.mild, found.harsh, found.between) == (passed - 1, passed, ())
    assert len(rates) <= 2 + max(3, (len(plan.truth) - 2).bit_length())


@given(planted(monotone=False))
def test_rates_out_of_order_are_reported_and_nothing_is_claimed_past_them(plan: Planted) -> None:
    rates, _ = plan.search()
    tested = sorted(rates)
    out_of_order = [(i, j) for i in tested for j in tested if i < j and rates[j].high < rates[i].low]
    found = locate(rates, plan.target, len(plan.truth))
    assert (found.contradiction is not None) == bool(out_of_order)
    if found.contradiction is not None:
        assert found.contradiction in out_of_order
        assert next_rung(rates, plan.target, len(plan.truth)) is None
    assert all(rates[rung].high < plan.target for rung in tested if rung <= found.mild)
    assert all(rates[rung].low > plan.target for rung in tested if rung >= found.harsh)


def test_a_dip_beyond_a_cliff_is_no_cliff() -> None:
    """Rates that fall again at the harsh end, as where a supply did not follow: the end is always tested."""
    rates = [1e-6] * 10 + [1e-2] * 10 + [1e-5]
    rungs = len(rates)
    plan = Planted(rates, [rate(ber, 1.5, 1.5) for ber in rates], 1e-4)
    found = Cliff(0, plan.target, ladder(rungs), plan.search()[0])
    assert found.contradiction is not None
    assert not found.resolved
    assert found.searched


def test_a_cliff_beyond_either_end_is_not_made_up() -> None:
    for rates, mild, harsh in (([1e-6] * 9, 8, 9), ([1e-2] * 9, -1, 0)):
        found, tests = Planted(rates, [rate(ber, 1.1, 1.1) for ber in rates], 1e-4).search()
        position = locate(found, 1e-4, 9)
        assert (position.mild, position.harsh) == (mild, harsh)
        assert len(tests) == 5
        cliff = Cliff(0, 1e-4, ladder(9), found)
        assert (cliff.below is None) == (mild < 0)
        assert (cliff.above is None) == (harsh == 9)


def test_all_intervals_of_a_bisection_hold_together() -> None:
    for rungs in (3, 4, 9, 100, 600):
        assert ladder(rungs).confidence == 1 - 0.05 / ladder(rungs).most_tests
    assert np.isclose(1 - ladder(129).confidence, 0.05 / 18)


def _as_rates(values: list[float]) -> Rates:
    return {rung: rate(ber, 1.01, 1.01) for rung, ber in enumerate(values)}


def test_every_rung_tested_says_the_same_as_bisection() -> None:
    """A full grid is read in the same way."""
    values = [1e-7, 1e-7, 1e-6, 1e-5, 1e-3, 1e-2, 0.1]
    position = locate(_as_rates(values), 1e-4, len(values))
    assert (position.mild, position.harsh, position.between) == (3, 4, ())
