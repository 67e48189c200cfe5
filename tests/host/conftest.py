"""Hypothesis without a deadline: the first example of a test may wait for numba's compiler. And the command line."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from host.cli import main

settings.register_profile("eden", deadline=None)
settings.load_profile("eden")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would children


@pytest.fixture
def run_eden(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command line in this process; returns what it printed."""

    def call(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["eden", *map(str, arguments)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        main.main()
        return capsys.readouterr().out

    return call
