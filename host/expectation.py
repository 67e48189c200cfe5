"""What a profile expects of tensors in DRAM: how many of their bits read wrong, and what is no longer chance.

A scan counted, cell by cell and by stored bit, how many reads of how many were wrong. From these counts and from the
bits that really lie in a tensor's cells follows how many of them a read returns wrong:

Cells that failed when they were written at nominal fail by being *read*, in errors / trials of the bit that they hold.
Cells that failed only when written at the operating point fail by being *written*: such a WRITE leaves what was there,
which shows where the new bit differs. What was there is the tensor's last content, or in turn what was there before.

What is expected is uncertain, since each cell was read a few times only. The sum over cells of errors / trials is
unbiased, those that never failed in the scan included; it is a weighted sum of Poisson counts, and what is expected
follows the gamma distribution of its mean and variance, for the upper limit with one more error of the largest weight
(Fay and Feuer, Statistics in Medicine 16, 1997). Flips given that are Poisson; taken together they are negative
binomial. Errors of an estimate are shared by all reads, and Poisson is wider than the binomial of a cell that fails
often: an interval of 95 % holds at least so often.

What no count tells is in `MODEL_TOLERANCE`: a network's data give cells other neighbours than the scan's patterns do.
And a read may restore its flip into the cell, which then stays until it is written again; a scan that writes before
each read does not see it. A cell read over and over then settles between its two values, wrong in read(held) /
(read(0) + read(1)) of the reads; an interval begins there where that is lower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from host.tensor_memory import Bytes, Stretch
from profiles.population import Population

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

MODEL_TOLERANCE = 0.10  # of what is expected
CONFIDENCE = 0.95


@dataclass(frozen=True)
class CellRates:
    """Cells of one place that may fail, numbered by the tensor's bits.

    Attributes:
        cell: int64[n], ascending.
        read, read_variance: float64[2, n], chance that a read of a stored 0, and of a stored 1, is wrong, as estimated.
        write, write_variance: float64[n], chance that a WRITE at the operating point leaves what was there.
        step: by how much one error more in the scan would raise a chance.
    """

    cell: Integers
    read: Floats
    read_variance: Floats
    write: Floats
    write_variance: Floats
    step: float

    @classmethod
    def of(
        cls,
        pieces: Sequence[Stretch],
        nominal: Sequence[Population],
        at_point: Sequence[Population] | None,
    ) -> "CellRates":
        """What was counted in the cells of a place.

        Args:
            pieces: of the place, each in the cell numbering of its own module.
            nominal: of each piece, its module's reads at its operating point of what was written at nominal.
            at_point: the same of what was written at the point; None for a tensor that is written at nominal.
        """
        parts, start = [], 0
        others: Sequence[Population | None] = at_point or [None] * len(pieces)
        for piece, read, written in zip(pieces, nominal, others, strict=True):
            parts.append(_counted(piece.first_cell, piece.cells, start, read, written))
            start += piece.cells
        return cls(
            np.concatenate([part.cell for part in parts]),
            np.concatenate([part.read for part in parts], axis=1),
            np.concatenate([part.read_variance for part in parts], axis=1),
            np.concatenate([part.write for part in parts]),
            np.concatenate([part.write_variance for part in parts]),
            max(part.step for part in parts),
        )


def _counted(first: int, cells: int, start: int, nominal: Population, at_point: Population | None) -> CellRates:
    """Rates of ``cells`` cells from ``first``, which hold a tensor's bits from ``start`` on."""
    here = slice(*np.searchsorted(nominal.cell, (first, first + cells)))
    cell, errors, trials = _columns(nominal, here)
    own = np.where(trials > 0, errors, errors[::-1])  # where a bit was never tested, the other one's count serves
    tested = np.where(trials > 0, trials, trials[::-1])
    read, read_variance = own / tested, own / tested.astype(np.float64) ** 2
    step = 1 / max(1, sum(record.rounds for record in nominal.records) // 2)
    write, write_variance = np.zeros(cell.size), np.zeros(cell.size)
    if at_point is not None:
        there = slice(*np.searchsorted(at_point.cell, (first, first + cells)))
        others, failed, asked = _columns(at_point, there)
        new = ~np.isin(others, cell)
        rate = (failed.sum(axis=0) / asked.sum(axis=0))[new]
        order = np.argsort(np.concatenate([cell, others[new]]), kind="stable")
        none = np.zeros((2, rate.size))
        read, read_variance = (np.hstack([values, none])[:, order] for values in (read, read_variance))
        write = np.concatenate([write, rate])[order]
        write_variance = np.concatenate([write_variance, rate / asked.sum(axis=0)[new]])[order]
        cell = np.concatenate([cell, others[new]])[order]
    return CellRates(cell - first + start, read, read_variance, write, write_variance, step)


def _columns(data: Population, here: slice) -> tuple[Integers, Integers, Integers]:
    """Cells, and int64[2, n] errors and trials by stored bit."""
    errors = np.stack([data.errors_zero[here], data.errors_one[here]])
    return data.cell[here], errors, np.stack([data.trials_zero[here], data.trials_one[here]])


@dataclass(frozen=True)
class Expected:
    """Flips expected of some reads.

    Attributes:
        mean: by the profile's counts.
        settled: where reads leave their flips in the cells.
        deviation: standard deviation of ``mean`` as an estimate.
        weight: what one error more in the scan would add.
    """

    mean: float = 0.0
    settled: float = 0.0
    deviation: float = 0.0
    weight: float = 0.0

    def plus(self, other: "Expected") -> "Expected":
        """Of these reads and ``other``; deviations add up, as reads share the estimates."""
        return Expected(
            self.mean + other.mean,
            self.settled + other.settled,
            self.deviation + other.deviation,
            self.weight + other.weight,
        )

    @property
    def interval(self) -> tuple[int, int]:
        """Where at least 95 % of counts of flips are expected, both ends included."""
        tail = (1 - CONFIDENCE) / 2
        low = min(self.mean, self.settled) * (1 - MODEL_TOLERANCE)
        shape = _shape(low, self.deviation)
        lowest = stats.nbinom.ppf(tail, shape, shape / (shape + low)) if low else 0
        shape, high = self._upper()
        return int(lowest), int(stats.nbinom.ppf(1 - tail, shape, shape / (shape + high))) if high else 0

    def chance_of(self, flips: int) -> float:
        """How likely ``flips`` flips or more are, at most."""
        shape, high = self._upper()
        if not flips:
            return 1.0
        return float(special.betainc(flips, shape, high / (shape + high))) if high else 0.0

    def _upper(self) -> tuple[float, float]:
        """Shape and mean of the gamma distribution for the upper limit."""
        high, spread = self.mean * (1 + MODEL_TOLERANCE) + self.weight, np.hypot(self.deviation, self.weight)
        return _shape(high, float(spread)), high


def _shape(mean: float, deviation: float) -> float:
    """Of a gamma distribution; so large where nothing is uncertain that it is that value."""
    return min((mean / deviation) ** 2, 1e12) if deviation else 1e12


class FlipExpectation:
    """Follows what is stored and read, and says what flips were to be expected; a `host.tensor_memory.Listener`.

    Places are taken to hold zeros at first (`BoardMemory.clear`).

    Args:
        rates: of each tensor's place.

    Attributes:
        expected: flips expected of the reads since the last `begin`, by tensor.
        flips: those that were observed in them.
    """

    def __init__(self, rates: Mapping[str, CellRates]) -> None:
        self._rates = rates
        self._held = {tensor: np.zeros(rate.cell.size, np.intp) for tensor, rate in rates.items()}
        self._stale = {tensor: np.zeros(rate.cell.size) for tensor, rate in rates.items()}
        self._first_read: dict[str, Expected] = {}  # of what is stored now
        self._later_read: dict[str, Expected] = {}
        self._read_before: set[str] = set()
        self.expected: dict[str, Expected] = {}
        self.flips: dict[str, int] = {}
        self.begin()

    def begin(self) -> None:
        """Count from here on; what is stored stays known."""
        self.expected = dict.fromkeys(self._rates, Expected())
        self.flips = dict.fromkeys(self._rates, 0)

    def stored(self, tensor: str, data: Bytes) -> None:
        """See `Listener.stored`."""
        rates = self._rates[tensor]
        count = int(np.searchsorted(rates.cell, 8 * data.size))
        cell, held, stale = rates.cell[:count], self._held[tensor][:count], self._stale[tensor][:count]
        bits = (data[cell >> 3] >> (cell & 7).astype(np.uint8) & 1).astype(np.intp)
        stale[:] = np.where(held != bits, 1 - stale, stale) * rates.write[:count]
        held[:] = bits
        at = np.arange(count)
        read, both = rates.read[bits, at], rates.read[:, :count].sum(axis=0)
        settled = np.divide(read, both, out=np.zeros(count), where=both > 0)
        write_share = np.divide(stale, rates.write[:count], out=np.zeros(count), where=rates.write[:count] > 0)
        variance = rates.read_variance[bits, at].sum() + (write_share**2 * rates.write_variance[:count]).sum()
        mean = float(read.sum() + stale.sum())
        first = Expected(mean, mean, float(np.sqrt(variance)), rates.step)
        self._first_read[tensor] = first
        self._later_read[tensor] = replace(first, settled=float(settled.sum() + stale.sum()))
        self._read_before.discard(tensor)

    def loaded(self, tensor: str, data: Bytes, wrong: int) -> None:
        """See `Listener.loaded`."""
        read = self._later_read if tensor in self._read_before else self._first_read
        self._read_before.add(tensor)
        self.expected[tensor] = self.expected[tensor].plus(read[tensor])
        self.flips[tensor] += wrong

    def least_likely(self) -> tuple[str, float]:
        """The tensor with the least likely excess of flips, and how likely that is by chance."""
        chances = {tensor: self.expected[tensor].chance_of(self.flips[tensor]) for tensor in self._rates}
        tensor = min(chances, key=lambda name: chances[name])
        return tensor, chances[tensor]
