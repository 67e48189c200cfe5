"""How long work reports itself: called with (steps done, steps in all) after each step."""

from collections.abc import Callable

Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Report nothing."""
