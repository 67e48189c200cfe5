"""How long a test-engine program takes, to the clock, without running it.

The time of a program does not depend on what its reads find (`gateware.isa`, Time). Loops in which no refresh can fall
are counted by multiplication, the others pass by pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from gateware.isa import Instruction, Opcode, Setting

_WAIT, _YIELD, _REFRESH, _LOOP = range(4)
_Step = tuple[int, int, int, "tuple[_Step, ...]"]
"""Kind, its two numbers (clocks and reads; wait; interval and tRFC; passes), the steps of a loop."""


@dataclass(frozen=True)
class Duration:
    """Totals of a program.

    Attributes:
        clocks: system clocks of program time.
        refreshes: REF commands issued.
        reads: READs compared.
    """

    clocks: int
    refreshes: int
    reads: int


def duration(program: Sequence[Instruction]) -> Duration:
    """What a program takes from START to its END."""
    refresh = int(Setting.REFRESH)
    return _duration(
        tuple(
            (
                *(int(i.opcode), i.wait, i.loop_begin, i.loop_end, sum(slot.compare for slot in i.slots)),
                i.value if i.opcode == Opcode.SET and i.setting == refresh else None,
            )
            for i in program
        )
    )


@lru_cache(maxsize=256)
def _duration(lines: tuple[tuple[int, int, int, bool, int, int | None], ...]) -> Duration:
    blocks: list[tuple[int, list[_Step]]] = [(1, [])]  # passes and steps of the loops that are open
    for opcode, wait, loop_begin, loop_end, compared, refresh in lines:
        if loop_begin:
            blocks.append((loop_begin, []))
        steps = blocks[-1][1]
        if opcode == Opcode.YIELD:
            steps.append((_YIELD, wait, 0, ()))
        else:
            if refresh is not None:
                steps.append((_REFRESH, refresh & 0xFFFFFFFF, refresh >> 32, ()))
            _append_wait(steps, 1 + wait, compared)
        if loop_end:
            passes, body = blocks.pop()
            if all(kind == _WAIT for kind, *_ in body):
                _append_wait(blocks[-1][1], passes * sum(s[1] for s in body), passes * sum(s[2] for s in body))
            else:
                blocks[-1][1].append((_LOOP, passes, 0, tuple(body)))
    clock = _Clock()
    clock.run(tuple(blocks[0][1]))
    return Duration(clock.clocks, clock.refreshes, clock.reads)


def _append_wait(steps: list[_Step], clocks: int, reads: int) -> None:
    if steps and steps[-1][0] == _WAIT:
        _, before, compared, _ = steps.pop()
        clocks, reads = clocks + before, reads + compared
    steps.append((_WAIT, clocks, reads, ()))


class _Clock:
    """The engine's clock counter and refresh timer."""

    def __init__(self) -> None:
        self.clocks = self.refreshes = self.reads = 0
        self._interval = self._refresh_clocks = self._next = 0

    def run(self, steps: tuple[_Step, ...]) -> None:
        for kind, first, second, body in steps:
            if kind == _WAIT:
                self.clocks, self.reads = self.clocks + first, self.reads + second
            elif kind == _YIELD:
                self._pass_yield(first)
            elif kind == _REFRESH:
                self._interval, self._refresh_clocks, self._next = first, second, self.clocks + first
            else:
                for _ in range(first):
                    self.run(body)

    def _pass_yield(self, wait: int) -> None:
        self.clocks += 1
        while self._interval and self.clocks >= self._next:
            self.refreshes += 1
            self.clocks += self._refresh_clocks
            self._next += self._interval
        self.clocks += wait
