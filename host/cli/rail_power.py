"""Power that the DRAM's rail really took, where its supply measures it: no law of VDD is needed then."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from profiles.schema import OperatingPoint, PointRecord
from profiles.storage import Profile


@dataclass(frozen=True)
class RailPower:
    """Mean power of the module's rail while a scan read the same cells in the same way and time, milliwatts.

    Attributes:
        nominal_mw: at nominal VDD.
        reduced_mw: at the operating point; the same tRCD.
    """

    nominal_mw: float
    reduced_mw: float


def rail_power(profile: Profile, point: OperatingPoint) -> RailPower | None:
    """What the scan measured at ``point`` and at nominal VDD with its tRCD; None where it measured not both."""
    nominal = point.model_copy(update={"vdd_mv": profile.header.module.nominal_vdd_mv})
    before, after = (_by_reads(record for record in profile.points if record.point == at) for at in (nominal, point))
    both = before.keys() & after.keys()
    if not both or nominal == point:
        return None
    return RailPower(fmean(before[reads] for reads in both), fmean(after[reads] for reads in both))


def _by_reads(records: Iterable[PointRecord]) -> dict[str, float]:
    """Power by what was read: pattern and region, however it had been written."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record.power_mw is not None:
            found.setdefault(f"{record.pattern} {record.region}", []).append(record.power_mw)
    return {reads: fmean(powers) for reads, powers in found.items()}
