"""A command imports what it needs, and the help of a group, which imports none of its commands, says what they say."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from host.cli.deferred import Deferred
from host.cli.main import app

LISTING = """
import sys
from host.cli.main import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
METHOD = {"torch", "matplotlib", "scipy.stats"}  # seconds of every start
PLAN = """
board = "mock:B:1"
output = "unused"
[scan]
banks = [0]
rows = { start = 0, count = 2 }
patterns = ["0x00"]
rounds = 1
write = ["nominal"]
[[scan.grid]]
trcd_ps = 10000
vdd_mv = [1100]
[network]
precisions = ["int8"]
"""


def imported(folder: Path, *arguments: str) -> set[str]:
    command = [sys.executable, "-c", LISTING, *arguments]
    done = subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(Path.cwd())}, capture_output=True, check=True)
    return set(done.stderr.decode().splitlines()[-1].split())


@pytest.mark.slow
def test_what_a_command_does_not_need_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    alone = {"numpy", "scipy", "numba", "pyarrow", "pymodbus", "pyvisa"} | METHOD
    for arguments, unneeded in (
        (("--help",), alone),
        (("study", "--help"), alone),
        (("rail", "dialects"), METHOD | {"numba", "pyarrow"}),
        (("scan", "plan.toml", "--out", "profile"), METHOD),
        (("profile", "show", "profile"), METHOD),
        (("profile", "cliffs", "profile", "--help"), METHOD),
    ):
        found = imported(tmp_path, *arguments)
        assert "typer" in found
        assert not found & unneeded, arguments


def deferred(group: TyperGroup) -> Iterator[Deferred]:
    for command in group.commands.values():
        if isinstance(command, Deferred):
            yield command
            command = command.fetched()
        if isinstance(command, TyperGroup):
            yield from deferred(command)


def test_the_help_of_a_group_says_what_its_commands_say() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    found = list(deferred(group))
    assert {"scan", "profile", "plot", "sweep"} <= {command.name for command in found}
    for command in found:
        fetched = command.fetched()
        assert (fetched.name, fetched.help.split("\n\n")[0].replace("\n", " ")) == (command.name, command.help)
