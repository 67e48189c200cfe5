"""Finds cliffs by bisection: which point a scan tests next, given what its profile holds by now.

Each bank has a search of its own (`profiles.cliffs`) at each target of a ladder. Banks that want the same rung are
tested there together, and what they find serves all of their targets; the rung that most banks want comes first. What
to test is a function of the finished points alone, so that a search that was stopped goes on to the same end.
"""

from collections.abc import Iterator, Sequence

from host.plan import PlannedPoint, ScanPlan
from profiles.cliffs import Ladder, LadderRates, most_left, next_rung
from profiles.storage import Profile


def search_cliffs(plan: ScanPlan, profile: Profile) -> Iterator[PlannedPoint]:
    """The points that the plan's cliffs still need, one at a time: each is measured before the next is asked for."""
    for ladder, targets in plan.ladders():
        rates = LadderRates(profile, ladder)
        while (wanted := _most_wanted(rates, ladder, targets, plan.banks)) is not None:
            rung, banks = wanted
            for pattern in ladder.patterns:
                done = [
                    record
                    for record in profile.find(ladder.points[rung], ladder.write, pattern)
                    if record.region.banks == banks
                ]
                if not done:  # of a search that was stopped between two patterns
                    yield PlannedPoint(profile.missing[0], ladder.points[rung], ladder.write, pattern, banks)


def _most_wanted(
    rates: LadderRates, ladder: Ladder, targets: Sequence[float], banks: tuple[int, ...]
) -> tuple[int, tuple[int, ...]] | None:
    """The rung that most banks want to be tested at next, of several the mildest, and those banks; None: none is."""
    wanted: dict[int, set[int]] = {}
    known = rates.by_bank()
    for bank in banks:
        for target in targets:
            if (rung := next_rung(known.get(bank, {}), target, len(ladder.points))) is not None:
                wanted.setdefault(rung, set()).add(bank)
    if not wanted:
        return None
    rung = min(wanted, key=lambda rung: (-len(wanted[rung]), rung))
    return rung, tuple(sorted(wanted[rung]))


def bank_tests_left(plan: ScanPlan, profile: Profile) -> int:
    """Tests of one bank with one pattern that the plan's cliffs still need, at the most."""
    return sum(ladder_tests_left(ladder, targets, plan.banks, profile) for ladder, targets in plan.ladders())


def ladder_tests_left(ladder: Ladder, targets: Sequence[float], banks: Sequence[int], profile: Profile) -> int:
    """As `bank_tests_left`, of one ladder."""
    left, rates = 0, LadderRates(profile, ladder).by_bank()
    for known in (rates.get(bank, {}) for bank in banks):
        worst = sum(most_left(known, target, len(ladder.points)) for target in targets)
        left += min(worst, len(ladder.points) - len(known)) * len(ladder.patterns)
    return left
