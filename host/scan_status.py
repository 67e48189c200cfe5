"""How far a scan is, read from the profile that it writes, in this process or in another one."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from pydantic import ValidationError

from host.plan import PlannedPoint, ScanPlan
from profiles.schema import PointRecord
from profiles.statistics import reads
from profiles.storage import Profile

LIMIT = 100_000  # of planned points that are looked at: a profile may come from anywhere


@dataclass(frozen=True)
class ScanStatus:
    """A scan at one moment.

    Attributes:
        done, planned: tests that are finished, and all.
        errors: failed reads of the finished ones.
        errors_per_s: over the time that they took; None without one.
        seconds_left: if the others take as long as the finished ones did on average; None without one.
        last, last_ber: the test that was finished last, and its bit error rate.
        next: the first that is not finished; None where the plan does not tell, or all are.
    """

    done: int
    planned: int
    errors: int
    errors_per_s: float | None
    seconds_left: float | None
    last: PointRecord | None
    last_ber: float | None
    next: PlannedPoint | None

    @classmethod
    def of(cls, profile: Profile, points: Sequence[PlannedPoint] = ()) -> "ScanStatus":
        """What ``profile`` says by now; ``points`` are all that its scan will measure (`planned_points`)."""
        records, planned = profile.points, profile.header.planned_points
        finished = {record.index for record in records}
        seconds = sum(record.duration_s for record in records)
        errors = sum(record.errors for record in records)
        last = max(records, key=when, default=None)
        return cls(
            done=len(records),
            planned=planned,
            errors=errors,
            errors_per_s=errors / seconds if seconds else None,
            seconds_left=seconds / len(records) * (planned - len(records)) if records else None,
            last=last,
            last_ber=None if last is None else last.errors / reads(profile, last),
            next=next((each for each in points if each.index not in finished), None),
        )


def planned_points(profile: Profile) -> list[PlannedPoint]:
    """What the scan behind ``profile`` will measure; nothing where its plan is not one of this release's."""
    try:
        plan = ScanPlan.model_validate(profile.header.plan)
    except ValidationError:
        return []
    return list(islice(plan.points(), min(profile.header.planned_points, LIMIT)))


def when(record: PointRecord) -> datetime:
    """When a test was begun, comparable with all others: a profile from elsewhere may not say in which time zone."""
    return record.started if record.started.tzinfo else record.started.replace(tzinfo=UTC)
