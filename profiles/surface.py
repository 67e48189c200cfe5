"""The bit error rate over VDD and tRCD: measured, or bounded by what was measured, and nothing beyond.

No law is fitted. A threshold that is smooth in tRCD and passes through the error rates at 7.5 and 5 ns predicts
millions of errors at 10 ns, where Chang et al. (SIGMETRICS 2016) found none in thirty DIMMs: the tail is bounded, and a
curve does not know where. What physics gives is an order: less time or less voltage never makes fewer errors. An
operating point between measured ones therefore lies between their rates, and its interval reaches from the lower limit
of the milder ones to the upper limit of the harsher ones. A point between two clean ones is as clean as they are.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from profiles.errors import SurfaceError
from profiles.pattern import Pattern
from profiles.schema import OperatingPoint, WriteCondition
from profiles.statistics import BerEstimate, clustered_ber, comparable_records
from profiles.storage import Profile


@dataclass(frozen=True)
class SurfaceValue:
    """What is known of the bit error rate at one operating point.

    Attributes:
        point: the operating point.
        ber: measured; or by linear interpolation of its logarithm along VDD or tRCD; 0 where a harsher point and all
            milder ones were clean; NaN where there are no two failing neighbours on one axis, so that only limits are
            known.
        low, high: limits. Measured: the 95 % interval, with wordlines as sampling units. Otherwise from the lower limit
            of the milder points to the upper limit of the harsher ones, at least 95 % if rates do not fall as points
            get harsher.
        measured: the point itself was measured.
    """

    point: OperatingPoint
    ber: float
    low: float
    high: float
    measured: bool


class BerSurface:
    """BER(VDD, tRCD) of one profile and write condition; see the module's docstring.

    Attributes:
        measured: the estimate at each measured point, from mild to harsh tRCD and VDD.
        source: where the data come from, in words.
    """

    def __init__(self, measured: dict[OperatingPoint, BerEstimate], source: str) -> None:
        """Raises SurfaceError where there is no point."""
        if not measured:
            raise SurfaceError(f"{source} holds no point; scan some, or choose another write condition or pattern")
        self.measured = dict(sorted(measured.items(), key=lambda item: (-item[0].trcd_ps, -item[0].vdd_mv)))
        self.source = source

    @classmethod
    def of(
        cls, profile: Profile, write_condition: WriteCondition, pattern: Pattern | None = None, bank: int | None = None
    ) -> "BerSurface":
        """The surface of what was measured with ``write_condition``, and ``pattern`` (None pools all).

        It is that of ``bank``; or, with None, of all banks together, which takes no point where some of them were not
        tested (`profiles.statistics.comparable_records`).

        Raises:
            SurfaceError: there is no such point, or access modes are mixed.
            ProfileError: a file is damaged.
        """
        source = f"{profile.path}, written at {write_condition.value.replace('_', ' ')}"
        source += "" if bank is None else f", bank {bank}"
        found: dict[OperatingPoint, BerEstimate] = {}
        for point in profile.operating_points():
            records = comparable_records(profile, profile.find(point, write_condition, pattern), bank)
            if len({record.access_mode for record in records}) > 1:
                raise SurfaceError(f"{source} holds two access modes at {point}; their errors do not mix")
            if records:
                found[point] = clustered_ber(profile, records, bank)
        return cls(found, source)

    def at(self, point: OperatingPoint) -> SurfaceValue:
        """What the measurements say of ``point``.

        Raises:
            SurfaceError: no measured point is as harsh, or none as mild: that would be extrapolation. Or a milder point
                fails more often than a harsher one, so that nothing follows between them.
        """
        if point in self.measured:
            rate = self.measured[point]
            return SurfaceValue(point, rate.ber, rate.low, rate.high, True)
        harsher = {each: rate for each, rate in self.measured.items() if _as_harsh(each, point)}
        milder = {each: rate for each, rate in self.measured.items() if _as_harsh(point, each)}
        if not harsher or not milder:
            side = "harsh" if not harsher else "mild"
            raise SurfaceError(
                f"{point} is outside what {self.source} measured ({_range(self.measured)}), where no point is as "
                f"{side}; scan it, or one on either side of it"
            )
        mild, harsh = max(milder, key=lambda each: milder[each].low), min(harsher, key=lambda each: harsher[each].high)
        low, high = milder[mild].low, harsher[harsh].high
        if low > high:
            raise SurfaceError(
                f"{self.source} fails more often at {mild} (BER {low:.2g} at least) than at the harsher {harsh} "
                f"({high:.2g} at most), so that nothing follows for {point} between them; scan this point"
            )
        if not all(rate.errors for rate in harsher.values()) and not any(rate.errors for rate in milder.values()):
            return SurfaceValue(point, 0.0, 0.0, high, False)
        return SurfaceValue(point, float(np.clip(self._between(point, milder, harsher), low, high)), low, high, False)

    def clean_limits(self) -> dict[int, tuple[int | None, int | None]]:
        """By measured tRCD (ps): the lowest VDD (mV) at and above which no read failed, and the highest that failed."""
        limits: dict[int, tuple[int | None, int | None]] = {}
        for trcd in {each.trcd_ps for each in self.measured}:
            here = {each.vdd_mv: rate for each, rate in self.measured.items() if each.trcd_ps == trcd}
            failing = max((vdd for vdd, rate in here.items() if rate.errors), default=None)
            clean = min((vdd for vdd in here if failing is None or vdd > failing), default=None)
            limits[trcd] = clean, failing
        return dict(sorted(limits.items(), reverse=True))

    def _between(
        self,
        point: OperatingPoint,
        milder: dict[OperatingPoint, BerEstimate],
        harsher: dict[OperatingPoint, BerEstimate],
    ) -> float:
        """Linear in log BER along one axis, between the neighbours on it; NaN without two that failed."""
        along = []
        for axis, other in (("vdd_mv", "trcd_ps"), ("trcd_ps", "vdd_mv")):

            def beside(each: OperatingPoint, other: str = other) -> bool:
                return bool(getattr(each, other) == getattr(point, other))

            up = min((each for each in milder if beside(each)), key=lambda each: getattr(each, axis), default=None)
            down = max((each for each in harsher if beside(each)), key=lambda each: getattr(each, axis), default=None)
            if up and down and self.measured[up].errors and self.measured[down].errors:
                span = getattr(up, axis) - getattr(down, axis)
                share = (getattr(point, axis) - getattr(down, axis)) / span
                logs = np.log([self.measured[down].ber, self.measured[up].ber])
                along.append((span / getattr(point, axis), float(logs[0] + share * (logs[1] - logs[0]))))
        return float(np.exp(min(along)[1])) if along else float("nan")


def _as_harsh(point: OperatingPoint, than: OperatingPoint) -> bool:
    return point.vdd_mv <= than.vdd_mv and point.trcd_ps <= than.trcd_ps


def _range(points: Iterable[OperatingPoint]) -> str:
    vdd, trcd = sorted(each.vdd_mv for each in points), sorted(each.trcd_ps / 1000 for each in points)
    return f"{vdd[0]}..{vdd[-1]} mV, {trcd[0]:g}..{trcd[-1]:g} ns"
