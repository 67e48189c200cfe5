"""Whatever stands in a plan, it is one that the board can do, within its limits, or one line says what is wrong."""

import copy
import json
import math
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.board import Board
from host.boards import open_mock
from host.plan import ScanPlan
from host.scan import header
from host.toml_file import load_toml
from profiles.errors import PlanError, RailError
from profiles.geometry import Geometry
from profiles.schema import ProfileHeader

GEOMETRY = Geometry(banks=4, rows=64, columns=256, data_width=64, subarray_rows=16)
PLAN: dict[str, Any] = {
    "grid": [
        {"trcd_ps": 6000, "vdd_mv": {"from": 1350, "to": 1150, "step": 100}},
        {"trcd_ps": 10000, "vdd_mv": [1040]},
    ],
    "patterns": ["0x00", "random:3/invert"],
    "rounds": 2,
    "banks": [0, 2, 3],
    "rows": {"start": 3, "count": 5},
    "cells": [{"banks": [2], "rows": {"start": 4, "count": 1}}],
    "write": ["nominal", "operating_point"],
    "access_mode": "burst_per_activation",
    "refresh": "kept",
    "rewrite_each_round": True,
    "licence": "CC-BY-4.0",
}
PLAUSIBLE = (0, 1, -1, 2, 31, 32, 63, 64, 899, 900, 1350, 1425, 1426, 14000, 65535, 65536, 1 << 31, 1 << 64, True, 2.0)
WORDS = (
    "nominal",
    "0x00",
    "0x1FF",
    "random:1",
    "random:-1",
    "walking/invert",
    "linear",
    "withheld",
    "buffer",
    "\n",
    "",
)
leaves = st.one_of(
    st.sampled_from(PLAUSIBLE), st.sampled_from(WORDS), st.integers(), st.floats(), st.text(max_size=6), st.booleans()
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*PLAN, "from", "to", "step"]), inner),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested tables and arrays."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """The plan with a few places changed, left out or added to."""
    plan = copy.deepcopy(PLAN)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(places(plan)[1:]))
        at: Any = plan
        for key in path:
            at = at[key]
        match draw(st.sampled_from(("change", "leave out", "add"))):
            case "leave out":
                del at[last]
            case "add" if isinstance(at, dict):
                at[draw(st.text(max_size=4))] = draw(values)
            case "add":
                at.append(draw(values))
            case _:
                at[last] = draw(values)
    return plan


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)


@cache
def board() -> Board:
    """Checking a plan touches nothing, so that one board serves all."""
    return open_mock("B", 5, GEOMETRY)


def accepted(text: str) -> ScanPlan | str:
    """The plan, or why not."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.toml"
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
        try:
            plan = load_toml(file, ScanPlan)
            plan.check(board())
        except (PlanError, RailError) as error:
            return str(error)
    return plan


def check(text: str) -> None:
    plan = accepted(text)
    if isinstance(plan, str):
        assert "\n" not in plan
        return
    points = list(plan.points())
    assert [point.index for point in points] == list(range(len(points)))
    for point in points:
        assert board().rail.lowest_mv <= point.point.vdd_mv <= board().rail.highest_mv
        assert point.point.trcd_ps == board().timings.trcd_clocks(point.point.trcd_ps) * board().timings.tck_ps
    assert plan.region.row_end <= GEOMETRY.rows
    assert max(plan.region.banks) < GEOMETRY.banks
    made = header(board(), plan)
    assert ProfileHeader.model_validate_json(made.model_dump_json()) == made


@settings(max_examples=400)
@given(plans())
def test_any_plan_can_be_done_or_is_refused_in_one_line(plan: dict[str, Any]) -> None:
    check("\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in plan.items()))


@settings(max_examples=200)
@given(st.data())
def test_any_text_is_a_plan_or_is_refused_in_one_line(data: st.DataObject) -> None:
    """The plan's text with characters changed, left out and added."""
    text = "\n".join(f"{key} = {toml(value)}" for key, value in PLAN.items())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 3)) :]
    check(text)


@pytest.mark.parametrize("changed", [{"write": []}, {"patterns": ["\n"]}], ids=["nothing to do", "a line's end"])
def test_what_was_once_taken_or_said_in_two_lines_is_refused_in_one(changed: dict[str, Any]) -> None:
    said = accepted("\n".join(f"{key} = {toml(value)}" for key, value in {**PLAN, **changed}.items()))
    assert isinstance(said, str)
    assert next(iter(changed)) in said
    assert "\n" not in said
