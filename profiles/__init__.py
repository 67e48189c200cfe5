"""Error profiles of DRAM modules: geometry, patterns, storage, statistics, error models, exchange and plots.

The main names are here. `profiles.fit.fit` keeps its module's name free, and plots stay in `profiles.plots`, so that
matplotlib is only loaded where something is drawn. Names load on first use: scipy and Arrow take a second, which
`import profiles.errors` need not pay.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiles.cells import CellCounts, WeakCells
    from profiles.error_models import (
        BitlineModel,
        CrossedModel,
        DataDependentModel,
        ErrorModel,
        UniformModel,
        WordlineModel,
        load_error_model,
    )
    from profiles.exchange import export, import_profile
    from profiles.fit import FitReport, measured_weak_cells
    from profiles.geometry import Geometry
    from profiles.pattern import Pattern, PatternKind
    from profiles.schema import (
        AccessMode,
        ModuleIdentity,
        OperatingPoint,
        PointRecord,
        ProfileHeader,
        Region,
        WriteCondition,
    )
    from profiles.statistics import BerEstimate, ber, ber_by, ber_surface, clustered_ber, overlap, stability
    from profiles.storage import Profile

_HOMES = {
    "profiles.cells": "CellCounts WeakCells",
    "profiles.error_models": (
        "BitlineModel CrossedModel DataDependentModel ErrorModel UniformModel WordlineModel load_error_model"
    ),
    "profiles.exchange": "export import_profile",
    "profiles.fit": "FitReport measured_weak_cells",
    "profiles.geometry": "Geometry",
    "profiles.pattern": "Pattern PatternKind",
    "profiles.schema": "AccessMode ModuleIdentity OperatingPoint PointRecord ProfileHeader Region WriteCondition",
    "profiles.statistics": "BerEstimate ber ber_by ber_surface clustered_ber overlap stability",
    "profiles.storage": "Profile",
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names.split():
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'profiles' has no attribute '{name}'")


__all__ = [
    "AccessMode",
    "BerEstimate",
    "BitlineModel",
    "CellCounts",
    "CrossedModel",
    "DataDependentModel",
    "ErrorModel",
    "FitReport",
    "Geometry",
    "ModuleIdentity",
    "OperatingPoint",
    "Pattern",
    "PatternKind",
    "PointRecord",
    "Profile",
    "ProfileHeader",
    "Region",
    "UniformModel",
    "WeakCells",
    "WordlineModel",
    "WriteCondition",
    "ber",
    "ber_by",
    "ber_surface",
    "clustered_ber",
    "export",
    "import_profile",
    "load_error_model",
    "measured_weak_cells",
    "overlap",
    "stability",
]
