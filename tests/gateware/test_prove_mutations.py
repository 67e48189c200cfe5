"""Every bug of `mutations` that is seeded into the gateware is caught by the parity tests. Takes an hour or more."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateware.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parent.parent.parent
MUTANT = ROOT / "build" / "mutant"  # always there, or numba would compile everything anew for each
COPIED = ("gateware", "host", "profiles", "tests", "pyproject.toml")


def _python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": str(ROOT / "build" / "numba")}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200, check=False
    )


def _suite(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the small simulated board in ``folder`` and run its parity tests."""
    built = _python(folder, "-m", "gateware.sim.build", "--configuration", "small4")
    assert built.returncode == 0, built.stdout + built.stderr
    return _python(
        folder, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", "small4", "tests/host/test_parity.py"
    )


@pytest.mark.prove
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_seeded_bug_is_caught(mutation: Mutation) -> None:
    shutil.rmtree(MUTANT, ignore_errors=True)
    MUTANT.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, MUTANT / name)
    target = MUTANT / mutation.file
    text = target.read_text()
    assert text.count(mutation.right) == 1, f"{mutation.file} has {text.count(mutation.right)} of what is to be changed"
    target.write_text(text.replace(mutation.right, mutation.wrong))
    done = _suite(MUTANT)
    assert done.returncode == 1, done.stdout + done.stderr  # 1: tests ran and some failed


def test_the_seeds_fit_the_sources() -> None:
    for mutation in MUTATIONS:
        assert (ROOT / mutation.file).read_text().count(mutation.right) == 1, mutation.name
