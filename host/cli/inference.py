"""Inference on boards: errors are held against the profiles, and where they leave them, a milder point is taken.

Drift shows as more wrong bits than the profile's cells explain, given the bits that were stored
(`host.expectation`). Each tensor is tested after each batch, on all reads of the window of `WINDOW_BATCHES` that the
batch belongs to; all tests of a run together raise a false alarm in one run of 1 / `FALSE_ALARMS` at most. Fewer wrong
bits than expected are reported, and are no alarm.
On an alarm every tensor stays where it is and moves to the next milder operating point that its module's profile knows,
the window runs again, and so on until errors are no more than the profile promised for the mapping as it was made.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from eden.approximate import ApproximateNetwork
from eden.datasets import Split
from eden.inference import Accuracy, clopper_pearson, correct_images
from eden.mapping import DramMapping, MappedModule
from eden.placement import Piece
from eden.significance import SignificancePlan
from host.board import Board
from host.bus import TimedBus
from host.cli.modules import Modules, in_order_of, is_ifm, module_names
from host.expectation import Expected, FlipExpectation
from host.tensor_memory import BoardMemory, Bytes
from profiles.errors import BoardError, NetworkError
from profiles.progress import Progress, silent
from profiles.schema import OperatingPoint

WINDOW_BATCHES = 20
FALSE_ALARMS = 1e-3


@dataclass(frozen=True)
class Fallback:
    """An alarm, and what was done.

    Attributes:
        tensor: whose errors left the interval.
        flips: its wrong bits in the window.
        expected: what the profile promised.
        image: the first image that was run again.
        moved: where each operating point in use went, by module (from 0) and point.
    """

    tensor: str
    flips: int
    expected: Expected
    image: int
    moved: Mapping[tuple[int, OperatingPoint], OperatingPoint]


@dataclass(frozen=True)
class Costs:
    """What a run took, batches that ran again included.

    Attributes:
        wall_s: seconds by the clock.
        bus_s: of these, inside bus calls: the link, and the DRAM wherever the host waited for it.
        bus_bytes: moved over the link.
        dram_s: program time of the test engines, by their own clocks; one board works at a time.
        programs: programs run.
    """

    wall_s: float
    bus_s: float
    bus_bytes: int
    dram_s: float
    programs: int


@dataclass(frozen=True)
class Inference:
    """A finished run.

    Attributes:
        accuracy: over all images.
        mapping: as it was at the end.
        plan: how tensors were laid out there, by significance; None as they come.
        flips, bits_read: bits that the DRAM returned wrong, and that it returned, by tensor; of batches that ran again,
            the last time.
        expected: flips that the profile expects of these reads, at the points where they were made; None without one.
        fallbacks: in order.
        costs: time and traffic.
    """

    accuracy: Accuracy
    mapping: DramMapping
    plan: SignificancePlan | None
    flips: Mapping[str, int]
    bits_read: Mapping[str, int]
    expected: Mapping[str, Expected] | None
    fallbacks: tuple[Fallback, ...]
    costs: Costs

    @property
    def total_flips(self) -> int:
        return sum(self.flips.values())

    @property
    def total_bits_read(self) -> int:
        return sum(self.bits_read.values())


def infer_on_boards(
    boards: Sequence[Board],
    network: ApproximateNetwork,
    mapping: DramMapping,
    test: Split,
    epoch: int,
    progress: Progress = silent,
    modules: Modules | None = None,
    weight_reuse: int = 1,
    plan: SignificancePlan | None = None,
) -> Inference:
    """Classify ``test`` with every weight and IFM stored in and read back from the boards' DRAM.

    Starts from zeros at every place and in an ``epoch`` of its own: a WRITE that fails leaves what was there, so that
    the result would depend on what ran before.

    Args:
        boards: one for each module of the mapping, in any order; where it was made for none in particular, of
            ``modules``, or as places are numbered.
        network, mapping, test: what runs, and where.
        epoch: tag of the reads.
        progress: told of images done.
        modules: what the mapping was made from; without it errors are counted, and not judged.
        weight_reuse: batches that one read of a weight serves (`BoardMemory`).
        plan: how tensors are laid out, of a mapping that is placed by significance: the `Footprint`'s.

    Raises:
        BoardError: the mapping or the profiles are of other modules than the boards carry, or errors leave the interval
            and the profiles hold no milder point.
        NetworkError: no images, a ``weight_reuse`` below 1, or a plan that is not the mapping's.
    """
    if mapping != (plan.mapping if plan else mapping.model_copy(update={"significance": None})):
        raise NetworkError(
            "a mapping that is placed by significance takes its own plan, any other none; give that of its footprint "
            "(Modules.footprint), or None"
        )
    modules = modules.of(mapping) if modules else None
    if wanted := mapping.modules or (modules.mapped if modules else ()):
        carried = [(MappedModule(identity=board.module, geometry=board.geometry), board) for board in boards]
        boards = in_order_of(wanted, "board", carried)
    run = _Run(boards, network, mapping, modules, weight_reuse, plan)
    links, before = [TimedBus(board.bus) for board in boards], [replace(board.usage) for board in boards]
    kept, begun = network.memory, time.perf_counter()
    try:
        with ExitStack() as guards:
            for board, link in zip(boards, links, strict=True):
                board.bus = link
                guards.enter_context(board.rail.guarded())
                board.environment.begin_epoch(epoch)
            correct = run.all_of(test, progress)
    finally:
        network.memory = kept
        for board, link in zip(boards, links, strict=True):
            board.bus = link.bus
    used = list(zip(boards, before, strict=True))
    return Inference(
        accuracy=Accuracy(int(correct.sum()), len(test), *clopper_pearson(int(correct.sum()), len(test)), correct),
        mapping=run.mapping,
        plan=run.plan,
        flips=run.flips,
        bits_read=run.bits_read,
        expected=run.expected if modules else None,
        fallbacks=tuple(run.fallbacks),
        costs=Costs(
            wall_s=time.perf_counter() - begun,
            bus_s=sum(link.seconds for link in links),
            bus_bytes=4 * sum(link.words for link in links),
            dram_s=sum(_program_s(board, board.usage.clocks - then.clocks) for board, then in used),
            programs=sum(board.usage.programs - then.programs for board, then in used),
        ),
    )


def _program_s(board: Board, clocks: int) -> float:
    return clocks * board.build.nphases * board.timings.tck_ps * 1e-12


class _Listeners:
    """Tells several `FlipExpectation`s the same."""

    def __init__(self, listeners: Sequence[FlipExpectation]) -> None:
        self._listeners = listeners

    def stored(self, tensor: str, data: Bytes) -> None:
        """See `host.tensor_memory.Listener`."""
        for listener in self._listeners:
            listener.stored(tensor, data)

    def loaded(self, tensor: str, data: Bytes, wrong: int) -> None:
        """See `host.tensor_memory.Listener`."""
        for listener in self._listeners:
            listener.loaded(tensor, data, wrong)


class _Run:
    """The windows of one run, and the operating points that they are at."""

    def __init__(
        self,
        boards: Sequence[Board],
        network: ApproximateNetwork,
        mapping: DramMapping,
        modules: Modules | None,
        reuse: int,
        plan: SignificancePlan | None,
    ) -> None:
        self._boards, self._network, self._modules, self._reuse = boards, network, modules, reuse
        self.plan = plan
        self.mapping = mapping
        self.flips = dict.fromkeys(mapping.placements, 0)
        self.bits_read = dict.fromkeys(mapping.placements, 0)
        self.expected = dict.fromkeys(mapping.placements, Expected())
        self.fallbacks: list[Fallback] = []
        self._promised = self._here = None if modules is None else modules.cell_rates(mapping)

    def all_of(self, test: Split, progress: Progress) -> torch.Tensor:
        """Which images are classified right: bool[n]."""
        size = self.mapping.images
        if not len(test):
            raise NetworkError("there are no images to classify; give at least one")
        tests = math.ceil(len(test) / size) * len(self.mapping.placements)
        found: list[torch.Tensor] = []
        self._occupy()
        first = 0
        while first < len(test):
            last = min(first + WINDOW_BATCHES * size, len(test))
            window = self._window(test, first, last, FALSE_ALARMS / tests, progress)
            if window is not None:
                found.append(window)
                first = last
        return torch.cat(found)

    def _occupy(self) -> None:
        """Begin at the present points, from zeros at every place.

        Flips are followed for what the profile promised of the first mapping, which is the limit, and of the present
        one, which is reported.
        """
        rates = [self._promised] if self._promised is self._here else [self._promised, self._here]
        self._follow = [FlipExpectation(each) for each in rates if each is not None]
        ifms = frozenset(name for name in self.mapping.placements if is_ifm(name))
        listener = _Listeners(self._follow)
        self._memory = BoardMemory(self._boards, self.mapping.placements, ifms, self._reuse, listener)
        self._memory.clear()
        self._network.memory = self._memory if self.plan is None else self.plan.memory(self._memory)

    def _window(self, test: Split, first: int, last: int, level: float, progress: Progress) -> torch.Tensor | None:
        """Which images of a window are classified right; None after an alarm, when its batches are to run again."""
        found, size = [], self.mapping.images
        for follow in self._follow:
            follow.begin()
        before = (dict(self._memory.flips), dict(self._memory.bits_read))
        for start in range(first, last, size):
            images, labels = test.images[start : min(start + size, last)], test.labels[start : min(start + size, last)]
            found.append(correct_images(self._network, images, labels, size))
            progress(start + len(labels), len(test))
            if self._follow:
                limit = self._follow[0]
                tensor, chance = limit.least_likely()
                if chance < level:
                    self._fall_back(tensor, limit, first)
                    return None
        for total, now, then in zip(
            (self.flips, self.bits_read), (self._memory.flips, self._memory.bits_read), before, strict=True
        ):
            for tensor, count in now.items():
                total[tensor] += count - then.get(tensor, 0)
        if self._follow:
            here = self._follow[-1]
            self.expected = {name: self.expected[name].plus(each) for name, each in here.expected.items()}
        return torch.cat(found)

    def _fall_back(self, tensor: str, limit: FlipExpectation, image: int) -> None:
        assert self._modules is not None
        flips, expected = limit.flips[tensor], limit.expected[tensor]
        modules = self._modules
        moved = {
            (module, point): milder(modules.points_of(module), point)
            for point, users in modules.users(self.mapping).items()
            for module in sorted(users)
        }
        here = {(modules.located(piece)[0], piece.point) for piece in self.mapping.placements[tensor].pieces}
        if all(moved[each] == each[1] for each in here):
            raise BoardError(
                f"{tensor} read {flips} bits wrong where the profile expects {expected.interval[1]} at most, and holds "
                f"no milder point than {'; '.join(sorted({str(point) for _, point in here}))}; scan module "
                f"{module_names([modules.mapped[each] for each in sorted({module for module, _ in here})])} again as "
                "it is now"
            )
        self.fallbacks.append(Fallback(tensor, flips, expected, image, moved))
        self.mapping = moved_to(self.mapping, lambda piece: moved[modules.located(piece)[0], piece.point])
        self._here = modules.cell_rates(self.mapping)
        if self.plan is not None:  # with the weak cells of before, which drift has made more of, not fewer
            self.plan = replace(self.plan, mapping=self.mapping)
        self._occupy()


def milder(tested: Collection[OperatingPoint], point: OperatingPoint) -> OperatingPoint:
    """The next milder of the tested points: the next higher VDD at this tRCD, else at the next longer one.

    ``point`` itself where there is none.
    """
    safer = [p for p in tested if p.vdd_mv >= point.vdd_mv and p.trcd_ps >= point.trcd_ps and p != point]
    return min(safer, key=lambda p: (p.trcd_ps, p.vdd_mv), default=point)


def moved_to(mapping: DramMapping, where: Callable[[Piece], OperatingPoint]) -> DramMapping:
    """Every tensor in the same cells, each piece read at the operating point ``where`` says."""
    placements = {
        name: place.model_copy(
            update={
                "point": where(place),
                "more": tuple(piece.model_copy(update={"point": where(piece)}) for piece in place.more),
            }
        )
        for name, place in mapping.placements.items()
    }
    lowest = min(piece.point.vdd_mv for place in placements.values() for piece in place.pieces)
    return mapping.model_copy(update={"placements": placements, "vdd_mv": lowest})
