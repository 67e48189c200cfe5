"""Runs benchmarks: ``python -m tests.bench [all]``, or the names of some in `BENCHES`.

Every figure is one line of JSON, printed and appended to ``build/bench/NAME.jsonl``: ``bench, name, value, unit,
bound, ratio, goal, met``. ``ratio`` is value over bound, measured in the same run, and ``goal`` what it must reach (or
not exceed, where smaller is better); where ``bound`` is null the goal is one for the value.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

FOLDER = Path("build/bench")


def _mock() -> Iterable[Mapping[str, Any]]:
    from tests.bench.mock import figures

    return figures()


def _injection() -> Iterable[Mapping[str, Any]]:
    from tests.bench.injection import figures

    return figures()


def _gateware() -> Iterable[Mapping[str, Any]]:
    from tests.bench.gateware import figures

    return figures()


def _profiles() -> Iterable[Mapping[str, Any]]:
    from tests.bench.profiles import figures

    return figures()


def _fits() -> Iterable[Mapping[str, Any]]:
    from tests.bench.fits import figures

    return figures()


def _links() -> Iterable[Mapping[str, Any]]:
    from tests.bench.links import figures

    return figures()


def _inference() -> Iterable[Mapping[str, Any]]:
    from tests.bench import energy, inference

    return chain(energy.figures(), inference.figures())


BENCHES: dict[str, Callable[[], Iterable[Mapping[str, Any]]]] = {
    "mock": _mock,
    "injection": _injection,
    "gateware": _gateware,
    "profiles": _profiles,
    "fits": _fits,
    "links": _links,
    "inference": _inference,
}


def main(arguments: list[str]) -> int:
    """Run what is named; exit status 2 if nothing of that name exists. A missed goal is a figure, not a failure."""
    names = arguments or ["all"]
    wanted = list(BENCHES) if names == ["all"] else names
    if unknown := [name for name in wanted if name not in BENCHES]:
        print(f"no benchmark is named {unknown[0]}; there are {', '.join(BENCHES)}, all", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        with (FOLDER / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            for figure in BENCHES[name]():
                line = json.dumps(figure)
                print(line, flush=True)
                file.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
