"""Goes on with a profile under a larger plan: more rounds, more points after those that are there, cliffs to find.

What is there is not tested again. New points get the places after the present ones, so that a profile's order stays
that of testing, and new rounds of a point are counted on top of its own: on chip models, whose draws follow the number
of a bank's activations within the point, N rounds and then M more are the N + M rounds of the larger plan, bit for bit
(but where a point is too large for memory and was cut into parts: there the later rounds draw anew).
"""

from collections.abc import Iterable
from itertools import zip_longest

from host.plan import ScanPlan
from profiles.errors import ProfileError
from profiles.schema import PointRecord, Session

_GROWING = ("rounds", "grid", "cliff")
_CONDITIONS = (
    *("epoch", "point", "trcd_clocks", "write_condition", "write_vdd_mv", "write_trcd_ps", "overwritten", "pattern"),
    *("access_mode", "rewritten_each_round", "refresh", "refresh_interval_ps", "region", "stored_ones", "cell_regions"),
    "temperature_sensor",
)


def check_larger(before: ScanPlan, after: ScanPlan) -> None:
    """Raises ProfileError, with what is in the way, unless ``after`` is ``before`` with more of the same."""
    for name in ScanPlan.model_fields:
        if name not in _GROWING and getattr(before, name) != getattr(after, name):
            raise ProfileError(
                f"the plan has other {name} than the profile, whose results would mix; --extend takes more rounds, "
                "more grid tables and more cliff tables: scan anything else into another folder"
            )
    if after.rounds < before.rounds:
        raise ProfileError(f"the plan has {after.rounds} rounds, the profile {before.rounds}; give as many or more")
    if after.rounds > before.rounds and not before.rewrite_each_round:
        raise ProfileError(
            "without rewrite_each_round, rounds go on from what the round before left in the cells, which is gone; "
            "scan into another folder"
        )
    for was, now in zip_longest(before.points(), after.points()):
        if was is not None and was != now:
            raise ProfileError(
                f"the plan's points do not begin with the profile's: {was.point}, {was.pattern} would come in another "
                "place; leave its grid tables as they are, and put what is new into grid tables after them"
            )
    if after.cliff[: len(before.cliff)] != before.cliff:
        raise ProfileError("the plan does not begin with the profile's cliff tables; put new ones after them")
    if before.cliff and (after.grid != before.grid or after.rounds != before.rounds):
        raise ProfileError(
            "the profile came of a search for cliffs, which follows the grid and takes its rounds for given; add cliff "
            "tables only, or scan into another folder"
        )


def with_earlier(before: PointRecord, record: PointRecord) -> PointRecord:
    """The record of a point to which rounds were added.

    Args:
        before: of the rounds that were there.
        record: of all rounds; but ranges, means, refreshes and times those of the new ones.

    Raises:
        ProfileError: they were measured under other conditions.
    """
    for name in _CONDITIONS:
        if getattr(before, name) != getattr(record, name):
            raise ProfileError(
                f"point {record.index} was measured with {name} {getattr(before, name)}, now it is "
                f"{getattr(record, name)}; its rounds would mix: scan into another folder"
            )
    added = record.rounds - before.rounds
    sessions = (*(before.sessions or (_session(before, before.rounds),)), _session(record, added))
    weights = (before.rounds, added)
    return record.model_copy(
        update={
            "vdd_range_mv": _widest(before.vdd_range_mv, record.vdd_range_mv),
            "temperature_range_c": _widest(before.temperature_range_c, record.temperature_range_c),
            "current_ma": _mean((before.current_ma, record.current_ma), weights),
            "power_mw": _mean((before.power_mw, record.power_mw), weights),
            "refreshes": None if None in (before.refreshes, record.refreshes) else _sum(before, record),
            "started": before.started,
            "duration_s": before.duration_s + record.duration_s,
            "sessions": sessions,
        }
    )


def _session(record: PointRecord, rounds: int) -> Session:
    return Session(
        rounds=rounds,
        started=record.started,
        duration_s=record.duration_s,
        vdd_measured_mv=record.vdd_measured_mv,
        vdd_uncertainty_mv=record.vdd_uncertainty_mv,
        temperature_c=record.temperature_c,
    )


def _widest(*ranges: tuple[float, float] | None) -> tuple[float, float] | None:
    known = [each for each in ranges if each is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def _mean(values: Iterable[float | None], weights: Iterable[int]) -> float | None:
    """Of those that were measured."""
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None


def _sum(*records: PointRecord) -> int:
    return sum(record.refreshes or 0 for record in records)
