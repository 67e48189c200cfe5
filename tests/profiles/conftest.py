"""Shared fixtures. Test modules are imported without packages, so the helper module reaches them as a fixture."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load_planted() -> ModuleType:
    name = "profiles_tests_planted"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("planted.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def planted() -> ModuleType:
    """The module `planted.py`: synthetic profiles with known weak cells."""
    return _load_planted()
