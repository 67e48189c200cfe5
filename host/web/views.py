"""What the page shows, as JSON: finite numbers, and text of bounded length that nobody here vouches for."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from host.scan_status import ScanStatus, planned_points, when
from host.web.folder import Folder, Found, MissingError
from profiles.bank_map import BankMap
from profiles.errors import ProfileError
from profiles.schema import OperatingPoint, PointRecord, ProfileHeader, WriteCondition
from profiles.statistics import clopper_pearson, reads
from profiles.storage import Profile, is_growing

Json = dict[str, Any]
At = tuple[int, int, WriteCondition]  # VDD, tRCD, how it was written

MAX_TEXT = 200
LAST_TESTS = 12
TREND = 400  # tests of which rail and temperature are drawn
MAX_GRID = 4096  # operating points of a heat map


def overview(folder: Folder) -> Json:
    """Everything in the folder, running scans with how far they are."""
    listing = folder.listing()
    profiles = [_entry(folder, found) for found in listing.found.values() if found.kind == "profile"]
    reports = [
        {"key": found.key, "name": _text(found.name), "modified": found.modified}
        for found in listing.found.values()
        if found.kind == "report"
    ]
    return {"root": _text(str(folder.root)), "whole": listing.whole, "profiles": profiles, "reports": reports}


def _entry(folder: Folder, found: Found) -> Json:
    entry: Json = {"key": found.key, "name": _text(found.name), "modified": found.modified}
    try:
        header, done = folder.glance(found)
        state = _state(found, done, header)
        entry |= {"state": state, "done": done, "planned": header.planned_points, **_about(header)}
        if state == "running":
            entry |= _live(folder.profile(found.key))
    except (ProfileError, OSError) as error:
        entry |= {"state": "damaged", "error": _text(str(error), 1000)}
    return entry


def detail(folder: Folder, key: str) -> Json:
    """One profile: what it is, its heat map, its last tests, and rail and temperature over all of them.

    Raises:
        MissingError: there is none of that key.
    """
    found = folder.find(key, "profile")
    entry: Json = {"key": key, "name": _text(found.name), "modified": found.modified}
    try:
        profile = folder.profile(key)
    except MissingError:
        raise
    except (ProfileError, OSError) as error:
        return entry | {"state": "damaged", "error": _text(str(error), 1000)}
    header, geometry, records = profile.header, profile.geometry, profile.points
    in_order = sorted(records, key=when)
    entry |= {
        "state": _state(found, len(records), header),
        "created": header.created.isoformat(),
        "licence": _text(header.licence),
        "geometry": {name: getattr(geometry, name) for name in ("banks", "rows", "columns", "data_width", "row_bits")},
        "tck_ps": header.tck_ps,
        **_about(header),
        **_live(profile),
        "tests": [_test(profile, record) for record in in_order[: -LAST_TESTS - 1 : -1]],
        "trend": [
            [record.index, record.point.vdd_mv, *_finite(record.vdd_measured_mv, record.temperature_c)]
            for record in in_order[-TREND:]
        ],
        "banks": sorted({bank for record in records for bank in record.region.banks}),
        "version": len(records),
    }
    return entry


def bank(found: BankMap) -> Json:
    """A bank's blocks, row by row."""
    return {
        "bank": found.bank,
        "rows": found.rows,
        "bitlines": found.bitlines,
        "block_rows": found.block_rows,
        "block_bitlines": found.block_bitlines,
        "down": found.errors.shape[0],
        "across": found.errors.shape[1],
        "errors": found.errors.ravel().tolist(),
        "trials": found.trials.ravel().tolist(),
    }


def chosen(profile: Profile, point: OperatingPoint, write: WriteCondition) -> list[PointRecord]:
    """Records of one operating point. Raises ProfileError where it was not measured."""
    records = profile.find(point, write)
    if not records:
        raise ProfileError(f"nothing was measured at {point}, written at {write.value.replace('_', ' ')}")
    return records


def _state(found: Found, done: int, header: ProfileHeader) -> str:
    if is_growing(found.path):
        return "running"
    return "complete" if done >= header.planned_points else "stopped"


def _about(header: ProfileHeader) -> Json:
    module = header.module
    return {
        "board": _text(header.board),
        "module": {
            "manufacturer": _text(module.manufacturer),
            "part_number": _text(module.part_number),
            "serial_number": _text(module.serial_number),
            "dram_type": module.dram_type,
            "nominal_vdd_mv": module.nominal_vdd_mv,
            "nominal_trcd_ps": module.nominal_trcd_ps,
        },
    }


def _live(profile: Profile) -> Json:
    planned = planned_points(profile)
    status = ScanStatus.of(profile, planned)
    errors_per_s, seconds_left = _finite(status.errors_per_s, status.seconds_left)
    now = None
    if status.next is not None:
        at = status.next
        now = {"at": _at(at.point, at.write), "pattern": str(at.pattern), "index": at.index}
    return {
        "done": status.done,
        "planned": status.planned,
        "errors": status.errors,
        "errors_per_s": errors_per_s,
        "seconds_left": seconds_left,
        "last": None if status.last is None else _test(profile, status.last),
        "next": now,
        "grid": _grid(profile, [(each.point, each.write) for each in planned]),
    }


def _test(profile: Profile, record: PointRecord) -> Json:
    measured, uncertainty, warmth, power = _finite(
        record.vdd_measured_mv, record.vdd_uncertainty_mv, record.temperature_c, record.power_mw
    )
    return {
        "index": record.index,
        "at": _at(record.point, record.write_condition),
        "pattern": str(record.pattern),
        "errors": record.errors,
        "trials": reads(profile, record),
        "measured_mv": measured,
        "uncertainty_mv": uncertainty,
        "temperature_c": warmth,
        "power_mw": power,
        "seconds": _finite(record.duration_s)[0],
        "finished": _finite(when(record).timestamp() + record.duration_s)[0],
    }


def _grid(profile: Profile, planned: Iterable[tuple[OperatingPoint, WriteCondition]]) -> Json:
    """The heat map: errors and reads of each operating point, patterns together, with the exact 95 % interval."""
    counts: dict[At, list[int]] = {}
    for record in profile.points:
        total = counts.setdefault(_place(record.point, record.write_condition), [0, 0])
        total[0] += record.errors
        total[1] += reads(profile, record)
    places = list(counts)[:MAX_GRID]
    untested = {_place(*each) for each in planned} - set(places)
    errors, trials = (np.array([counts[place][k] for place in places], np.float64) for k in (0, 1))
    low, high = clopper_pearson(errors, trials)
    return {
        "cells": [
            {"at": list(place), "errors": counts[place][0], "trials": counts[place][1], "low": a, "high": b}
            for place, a, b in zip(places, low.tolist(), high.tolist(), strict=True)
        ],
        "planned": sorted(untested)[: MAX_GRID - len(places)],
    }


def _place(point: OperatingPoint, write: WriteCondition) -> At:
    return point.vdd_mv, point.trcd_ps, write


def _at(point: OperatingPoint, write: WriteCondition) -> list[int | str]:
    return [point.vdd_mv, point.trcd_ps, write.value]


def _finite(*values: float | None) -> Sequence[float | None]:
    """JSON has no infinities, and no NaN."""
    return [value if value is not None and math.isfinite(value) else None for value in values]


def _text(text: str, length: int = MAX_TEXT) -> str:
    """Text of bounded length that can be shown: no half of a character, and none that turns what follows around."""
    shown = "".join(each if each.isprintable() else "\ufffd" for each in text[: length + 1])
    return shown if len(shown) <= length else f"{shown[:length]}…"
