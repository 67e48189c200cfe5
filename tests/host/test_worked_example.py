"""Worked examples do what they say: every command, and then every line of Python, of these pages of docs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(("page", "made"), [("profiles.md", "example/plots"), ("own-network.md", "own/dimm")])
def test_the_page_runs_as_it_stands(tmp_path: Path, page: str, made: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    commands, python = ("".join(text for language, text in blocks if language == each) for each in ("sh", "python"))
    environment = tmp_path / ".venv" / "bin"
    environment.mkdir(parents=True)
    (environment / "eden").symlink_to(Path(sys.executable).parent / "eden")
    _run(tmp_path, "bash", "-e", "-c", commands)
    _run(tmp_path, sys.executable, "-c", python)
    assert (tmp_path / "build" / made).exists()


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
