"""Where a bank's bit error rate passes a target along VDD or tRCD: what measurements show, and what they leave open.

A *ladder* is a row of operating points from mild to harsh that differ in VDD or in tRCD alone. At a rung a bank's BER
has an interval (`profiles.statistics.clustered_ber`: wordlines are the sampling units, so that it speaks of the bank
and not of the rows that were read). The rung is **below** the target if the interval ends below it, **above** if the
interval begins above it, **open** otherwise. The *cliff* of a bank lies between the harshest rung that is below, as are
all milder ones that were tested, and the mildest rung that is above, as are all harsher ones. Open rungs may lie in
between; where none do and the two are neighbours, the cliff is known to the ladder's step.

The intervals of all rungs that a bisection may look at hold together with 95 % (Bonferroni).

Bisection takes for granted that rates do not fall from mild to harsh. That is checked wherever it can be, between all
rungs that were tested: both ends of the ladder always, and its quarters where both ends are on the same side. Two whose
intervals contradict it end the search, and are reported instead of a cliff. A rung that was not tested may still be out
of order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from profiles.pattern import Pattern
from profiles.schema import OperatingPoint, PointRecord, WriteCondition
from profiles.statistics import CONFIDENCE, BerEstimate, clustered_ber
from profiles.storage import Profile

Rates = Mapping[int, BerEstimate]
"""A bank's bit error rate, by rung."""


@dataclass(frozen=True)
class Ladder:
    """Operating points along which a cliff is looked for.

    Attributes:
        points: the rungs, from mild to harsh.
        write: where the data were written.
        patterns: a rung is tested for a bank once it was with all of them; their reads are pooled.
    """

    points: tuple[OperatingPoint, ...]
    write: WriteCondition
    patterns: tuple[Pattern, ...]

    @property
    def most_tests(self) -> int:
        """Rungs that one bisection looks at, at the most: both ends, and twice a halving, as a rung may be open."""
        return min(len(self.points), 2 + 2 * (len(self.points) - 1).bit_length())

    @property
    def confidence(self) -> float:
        """Of each rung's interval, such that those of a bisection hold together with `CONFIDENCE`."""
        return 1 - (1 - CONFIDENCE) / self.most_tests

    @property
    def axis(self) -> str:
        """The coordinate that changes: "vdd_mv" or "trcd_ps"."""
        return "vdd_mv" if self.points[0].vdd_mv != self.points[-1].vdd_mv else "trcd_ps"

    def visits(self, profile: Profile) -> dict[int, dict[int, list[PointRecord]]]:
        """What each bank was tested with at each rung; nothing where it was not with all patterns."""
        rungs = {point: rung for rung, point in enumerate(self.points)}
        found: dict[int, dict[int, list[PointRecord]]] = {}
        for record in profile.points:
            rung = rungs.get(record.point)
            if rung is not None and record.write_condition == self.write and record.pattern in self.patterns:
                for bank in record.region.banks:
                    found.setdefault(bank, {}).setdefault(rung, []).append(record)
        return {
            bank: {rung: records for rung, records in at.items() if self._is_tested(records)}
            for bank, at in sorted(found.items())
        }

    def _is_tested(self, records: list[PointRecord]) -> bool:
        return {record.pattern for record in records} == set(self.patterns)


@dataclass(frozen=True)
class Position:
    """Where on a ladder a cliff lies.

    Attributes:
        mild: harshest rung that is below the target, as are all milder ones that were tested; -1 if there is none.
        harsh: mildest rung that is above it, as are all harsher ones; the number of rungs if there is none.
        between: rungs between the two that were tested, ascending: open ones, and others that are out of order.
        contradiction: a milder and a harsher rung of which the harsher fails less often, beyond their intervals.
    """

    mild: int
    harsh: int
    between: tuple[int, ...]
    contradiction: tuple[int, int] | None


def locate(rates: Rates, target: float, rungs: int) -> Position:
    """Where the rates of the rungs that were tested put the cliff at BER ``target`` on a ladder of ``rungs`` rungs."""
    tested = sorted(rates)
    mild, harsh = -1, rungs
    for rung in tested:
        if rates[rung].high >= target:
            break
        mild = rung
    for rung in reversed(tested):
        if rates[rung].low <= target:
            break
        harsh = rung
    between = tuple(rung for rung in tested if mild < rung < harsh)
    return Position(mild, harsh, between, _contradiction(rates))


def next_rung(rates: Rates, target: float, rungs: int) -> int | None:
    """The rung that a bisection tests next; None if nothing is left to test, or rates are out of order."""
    for end in (0, rungs - 1):
        if end not in rates:
            return end
    position = locate(rates, target, rungs)
    if position.contradiction is not None:
        return None
    if unseen := _unseen_quarters(rates, position, rungs):
        return unseen[0]
    return next(((low + high) // 2 for low, high in _gaps(position) if high - low > 1), None)


def most_left(rates: Rates, target: float, rungs: int) -> int:
    """How many more rungs a bisection tests, at the most."""
    ends = sum(end not in rates for end in {0, rungs - 1})
    if ends:
        return ends + max(3, 2 * (rungs - 2).bit_length())
    position = locate(rates, target, rungs)
    if position.contradiction is not None:
        return 0
    if unseen := _unseen_quarters(rates, position, rungs):
        return len(unseen)
    halvings = sum((high - low - 1).bit_length() for low, high in _gaps(position))
    return halvings if position.between else max(0, 2 * halvings - 1)


def _gaps(position: Position) -> list[tuple[int, int]]:
    """Where a bisection still has to look: on both sides of what is open, or between below and above."""
    if not position.between:
        return [(position.mild, position.harsh)]
    return [(position.mild, position.between[0]), (position.between[-1], position.harsh)]


def _unseen_quarters(rates: Rates, position: Position, rungs: int) -> list[int]:
    """Where no cliff was met from end to end: the quarters of the ladder that were not looked at either."""
    if 0 < position.harsh < rungs or -1 < position.mild < rungs - 1 or position.between:
        return []
    return [rung for rung in dict.fromkeys((rungs // 2, rungs // 4, 3 * rungs // 4)) if rung not in rates]


def _contradiction(rates: Rates) -> tuple[int, int] | None:
    """The first rung that fails less often than a milder one, beyond their intervals, and that milder one."""
    tested = sorted(rates)
    worst = None
    for rung in tested:
        if worst is not None and rates[rung].high < rates[worst].low:
            return worst, rung
        if worst is None or rates[rung].low > rates[worst].low:
            worst = rung
    return None


@dataclass(frozen=True)
class Cliff:
    """The cliff of one bank on one ladder.

    Attributes:
        bank: which bank.
        target: the bit error rate that is passed there.
        ladder: where it was looked for.
        rates: of the bank at the rungs that were tested, with intervals of the ladder's confidence.
    """

    bank: int
    target: float
    ladder: Ladder
    rates: Rates

    @cached_property
    def position(self) -> Position:
        return locate(self.rates, self.target, len(self.ladder.points))

    @property
    def below(self) -> OperatingPoint | None:
        """The harshest point that is shown to be below the target, as all milder ones tested; None: there is none."""
        mild = self.position.mild
        return None if mild < 0 else self.ladder.points[mild]

    @property
    def above(self) -> OperatingPoint | None:
        """The mildest point that is shown to be above the target, as all harsher ones tested; None: there is none."""
        harsh = self.position.harsh
        return None if harsh == len(self.ladder.points) else self.ladder.points[harsh]

    @property
    def resolved(self) -> bool:
        """Whether below and above are neighbours on the ladder."""
        return self.position.contradiction is None and self.position.harsh - self.position.mild == 1

    @property
    def searched(self) -> bool:
        """Whether a bisection would test nothing more."""
        return next_rung(self.rates, self.target, len(self.ladder.points)) is None

    @property
    def contradiction(self) -> tuple[OperatingPoint, OperatingPoint] | None:
        """Two points of which the harsher fails less often, beyond their intervals: no cliff is claimed then."""
        found = self.position.contradiction
        return None if found is None else (self.ladder.points[found[0]], self.ladder.points[found[1]])


class LadderRates:
    """The rates of banks along a ladder, each worked out once from a profile that may grow meanwhile."""

    def __init__(self, profile: Profile, ladder: Ladder) -> None:
        self._profile, self._ladder = profile, ladder
        self._known: dict[tuple[int, ...], BerEstimate] = {}

    def by_bank(self) -> dict[int, Rates]:
        """The rates of each bank at the rungs where it was tested by now.

        Raises:
            ProfileError: a file is damaged.
        """
        visits = self._ladder.visits(self._profile)
        return {bank: {rung: self._rate(bank, tested) for rung, tested in at.items()} for bank, at in visits.items()}

    def _rate(self, bank: int, records: list[PointRecord]) -> BerEstimate:
        key = (bank, *(record.index for record in records))
        if key not in self._known:
            self._known[key] = clustered_ber(self._profile, records, bank, self._ladder.confidence)
        return self._known[key]


def find_cliffs(profile: Profile, ladder: Ladder, targets: Sequence[float]) -> list[Cliff]:
    """The cliff at each of ``targets`` of each bank that was tested on the ladder; of banks that were not, nothing.

    Raises:
        ProfileError: a file is damaged.
    """
    rates = LadderRates(profile, ladder).by_bank()
    return [Cliff(bank, target, ladder, known) for target in targets for bank, known in rates.items() if known]
