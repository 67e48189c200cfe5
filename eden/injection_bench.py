"""Benchmark: flipping bits in 25 million elements, against the floor: an exclusive-or with a mask made beforehand."""

import statistics
import time
from collections.abc import Callable
from typing import TypedDict

import numpy as np

from eden.injection import flip_uniform, warm_up

ELEMENTS = 25_000_000
REPEATS = 7
GOALS = {1e-6: 1.2, 1e-4: 1.2, 1e-2: 3.0}  # ratio to the exclusive-or, by bit error rate


class Figure(TypedDict):
    """One line of a benchmark: ``ratio`` is value over bound, ``goal`` what the ratio must not exceed."""

    bench: str
    name: str
    value: float
    unit: str
    bound: float
    ratio: float
    goal: float
    met: bool


def figures(elements: int = ELEMENTS, repeats: int = REPEATS) -> list[Figure]:
    """Median times of copy-and-flip and of the exclusive-or (out of place both), measured in turn in one run."""
    warm_up()
    return [
        _figure(name, elements * width, ber, goal, repeats)
        for name, width in (("fp32", 4), ("int8", 1))
        for ber, goal in GOALS.items()
    ]


def _figure(name: str, size: int, ber: float, goal: float, repeats: int) -> Figure:
    source = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    target = np.zeros_like(source)
    mask = np.zeros_like(source)
    flip_uniform(mask, ber, ber, 0)

    def exclusive_or() -> None:
        np.bitwise_xor(source, mask, out=target)

    def inject(seed: int) -> None:
        np.copyto(target, source)
        flip_uniform(target, ber, ber, seed)

    inject(0)
    values, bounds = [], []
    for turn in range(repeats):
        bounds.append(_milliseconds(exclusive_or))
        values.append(_milliseconds(lambda turn=turn: inject(turn)))  # type: ignore[misc]
    value, bound = statistics.median(values), statistics.median(bounds)
    ratio = value / bound
    return Figure(
        bench="injection",
        name=f"{name}, BER {ber:g}, {size} bytes",
        value=value,
        unit="ms",
        bound=bound,
        ratio=ratio,
        goal=goal,
        met=ratio <= goal,
    )


def _milliseconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e3
