"""The plan of a whole run, as TOML: board, scan and network."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field

from eden.precision import Precision
from host.plan import ScanPlan
from host.toml_file import load_toml
from profiles.errors import PlanError

PlanPath = Annotated[Path, typer.Argument(help="Plan (TOML), e.g. plans/default.toml.")]


class NetworkPlan(BaseModel):
    """What to run from the DRAM.

    Attributes:
        name: a network of `eden.networks`.
        precisions: stored number formats, each a run of its own.
        seed: of training, error draws and maps.
        target_drop_pct: accuracy that may be lost against the unboosted network in reliable memory, percent of images.
        selection_margin_pct: how much more than the target the validation accuracy at an operating point must be, in
            points: the test split is another sample of images.
        batch: images in DRAM at a time.
        draws: error draws behind each accuracy while searching.
        significance: whether bits that matter are placed on cells that hold, as of `eden map --significance`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "lenet"
    precisions: tuple[Precision, ...] = (Precision.INT8, Precision.FP32)
    seed: int = 1
    target_drop_pct: float = Field(default=1.0, gt=0, le=100)
    selection_margin_pct: float = Field(default=0.0, ge=0, le=100)
    batch: int = Field(default=50, gt=0, le=10_000)
    draws: int = Field(default=5, ge=2, le=1000)
    significance: bool = False


class RunPlan(BaseModel):
    """One run of all stages.

    Attributes:
        board: as for ``--board``, which comes before it.
        output: folder of everything the run makes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    board: str | None = None
    output: Path
    scan: ScanPlan
    network: NetworkPlan = NetworkPlan()


def load_plan(path: Path) -> RunPlan:
    """Read a plan. Raises PlanError (see `host.toml_file.load_toml`)."""
    return load_toml(path, RunPlan)


def named_board(given: str | None, plan: RunPlan) -> str:
    """The board that the command line or else the plan names. Raises PlanError where neither does."""
    board = given or plan.board
    if board is None:
        raise PlanError('no board is named; give --board, e.g. mock:B:1, or write board = "mock:B:1" into the plan')
    return board
