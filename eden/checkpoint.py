"""How far a training has come: kept after each epoch, so that one that is stopped goes on from there."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from profiles.files import atomic_file

State = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Tensors by name, and whatever else JSON has."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a training keeps its state.

    Attributes:
        file: safetensors; what is no tensor stands in its metadata, as JSON.
        key: all that the training follows from, besides the code; the state of another training is not gone on with.
    """

    file: Path
    key: str

    def keep(self, state: State) -> None:
        """Replace what was kept. Raises ProfileError where the disk is full or cannot be written."""
        tensors, notes = state
        own = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.file) as file:
            file.write(save(own, {"made_from": self.key, "notes": json.dumps(notes)}))

    def kept(self) -> State | None:
        """What was kept last; None where nothing was, where it is damaged, or of another training."""
        try:
            with safe_open(self.file, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("made_from") != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return tensors, json.loads(metadata["notes"])
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def remove(self) -> None:
        """Once the training has ended."""
        self.file.unlink(missing_ok=True)


def prefixed(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``tensors``, their names after ``prefix``."""
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of ``tensors`` that `prefixed` named so, with the names they had."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
