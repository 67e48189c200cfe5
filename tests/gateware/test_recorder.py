"""The recorder keeps log and counters as the contract says (`gateware.errorlog`, `gateware.registers`), bit for bit.

It runs in Verilator beside a model in plain Python; the host's own decoder reads its blocks.
"""

import zlib
from dataclasses import dataclass, field
from functools import cache
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from migen import If, Module, ResetInserter, Signal

from gateware import errorlog, isa
from gateware.engine.counters import ErrorCounters
from gateware.engine.parameters import EngineParameters
from gateware.engine.recorder import Recorder
from host.errorlog import check_blocks, unpack
from profiles.geometry import Geometry
from tests.gateware.verilated import Values, Verilated

LOG_BLOCKS, BACKLOG, ROW_COUNTERS = 16, 1024, 16
NARROW = Geometry(banks=4, rows=64, columns=64, data_width=8)
WIDE = Geometry(banks=8, rows=64, columns=64, data_width=64)
LOG, ALL = isa.COUNT_LOG, isa.COUNT_LOG | isa.COUNT_ROWS | isa.COUNT_BITLINES | isa.COUNT_DQ
FAR = 1 << errorlog.DELTA_BITS
SATURATED = (1 << 32) - 1


@dataclass(frozen=True)
class Burst:
    """A compared burst; it comes after ``wait`` idle clocks, and after ``unseen`` reads that did not fail."""

    flips: int
    expected: int = 0
    bank: int = 0
    row: int = 0
    burst: int = 0
    counters: int = LOG
    row_base: int = 0
    wait: int = 0
    unseen: int = 0


@dataclass
class Model:
    """What the recorder must hold after some bursts."""

    geometry: Geometry
    reads: int = 0
    blocks: list[list[int]] = field(default_factory=list)
    logged: list[tuple[int, int]] = field(default_factory=list)
    payload: list[int] | None = None
    base: int = 0
    last: int = 0

    def __post_init__(self) -> None:
        g = self.geometry
        places = {"bank": g.banks, "row": ROW_COUNTERS, "bitline": g.row_bits, "dq": g.data_width}
        self.counters = {f"{name}_errors": [[0, 0] for _ in range(count)] for name, count in places.items()}

    def see(self, b: Burst) -> None:
        """Count and log one burst."""
        g = self.geometry
        self.reads += b.unseen
        bits = [bit for bit in range(g.burst_bits) if b.flips >> bit & 1]
        row = b.row - b.row_base
        for bit in bits:
            should_be, cell = b.expected >> bit & 1, b.burst * g.burst_bits + bit
            self.counters["bank_errors"][b.bank][should_be] += 1
            if b.counters & isa.COUNT_ROWS and 0 <= row < ROW_COUNTERS:
                self.counters["row_errors"][row][should_be] += 1
            if b.counters & isa.COUNT_BITLINES:
                self.counters["bitline_errors"][cell][should_be] += 1
            if b.counters & isa.COUNT_DQ:
                self.counters["dq_errors"][cell % g.data_width][should_be] += 1
        if bits and b.counters & LOG:
            self._log(b.flips, bits)
            self.logged += [(self.reads, bit) for bit in bits]
        self.reads += 1

    def _log(self, flips: int, bits: list[int]) -> None:
        burst_words = self.geometry.burst_bits // 32
        size = len(bits) if len(bits) <= burst_words else 1 + burst_words
        skips = self.reads - self.last >= FAR
        if self.payload is not None and len(self.payload) + size + skips > errorlog.PAYLOAD_WORDS:
            self.seal()
        if self.payload is None:
            self.payload, self.base, self.last = [], self.reads, self.reads
        delta = self.reads - self.last
        if delta >= FAR:
            self.payload.append(errorlog.SKIP << errorlog.KIND_SHIFT | delta // FAR)
        placed = delta % FAR << errorlog.DELTA_SHIFT
        if len(bits) > burst_words:
            self.payload.append(errorlog.MASK << errorlog.KIND_SHIFT | placed)
            self.payload += [flips >> 32 * w & 0xFFFFFFFF for w in range(burst_words)]
        else:
            self.payload += [placed | bits[0], *bits[1:]]
        self.last = self.reads

    def seal(self) -> None:
        """Close the open block, if there is one."""
        if self.payload is None:
            return
        unused = [0] * (errorlog.PAYLOAD_WORDS - len(self.payload))
        head = [errorlog.MAGIC << errorlog.SEQUENCE_BITS | len(self.blocks), len(self.payload)]
        words = [*head, self.base & 0xFFFFFFFF, self.base >> 32, *self.payload, *unused]
        self.blocks.append([*words, zlib.crc32(np.array(words, "<u4").tobytes())])
        self.payload = None


class _Settable(Module):
    """A recorder whose read index can be set, so that no test need wait for 2^20 reads."""

    def __init__(self, parameters: EngineParameters) -> None:
        self.submodules.recorder = recorder = Recorder(parameters)
        self.set_reads, self.next_read = Signal(), Signal(64)
        self.sync += If(self.set_reads, recorder.reads.eq(self.next_read))


@cache
def _verilated(data_width: int) -> Verilated:
    top = _Settable(_parameters(NARROW if data_width == NARROW.data_width else WIDE))
    recorder = top.recorder
    names = ("begin", "finish", "read", "flips", "expected", "bank", "row", "burst", "counters", "row_base")
    inputs = {name: getattr(recorder, name) for name in (*names, "log_consumed")}
    inputs |= {"set_reads": top.set_reads, "next_read": top.next_read}
    names = ("reads", "log_produced", "busy", "backlog", "free_blocks", "overflow")
    outputs = {name: getattr(recorder, name) for name in names}
    for name, window in recorder.windows.items():
        inputs |= {f"{name}_address": window.address, f"{name}_read": window.read}
        outputs[f"{name}_data"] = window.data
    return Verilated(top, inputs, outputs)


def _parameters(geometry: Geometry) -> EngineParameters:
    return EngineParameters(
        geometry, tck_ps=2500, nphases=4, read_phase=2, write_phase=3, read_latency=8, write_latency=2,
        cas_latency=6, cas_write_latency=5, log_blocks=LOG_BLOCKS, row_counters=ROW_COUNTERS, backlog=BACKLOG,
    )  # fmt: skip


class Rig:
    """A recorder at the start of a program, and the model beside it. Its host has drained ``blocks`` so far."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry, self.dut = geometry, _verilated(geometry.data_width)
        self.begin()

    def begin(self) -> int:
        """Start a program; returns the clocks that clearing took."""
        self.model, self.blocks = Model(self.geometry), np.zeros((0, errorlog.BLOCK_WORDS), np.uint32)
        self.idle(begin=1)
        return self.settle()

    def idle(self, clocks: int = 1, **driven: npt.ArrayLike) -> dict[str, Values]:
        return self.dut.clock(clocks, log_consumed=len(self.blocks), **driven)

    def settle(self) -> int:
        """Let it finish what it has; returns the clocks that took."""
        clocks = 0
        while clocks < 1 << 20:
            busy = self.idle(256)["busy"]
            clocks += int(busy.sum())
            if not busy[-1]:
                return clocks
        raise AssertionError("the recorder stays busy")

    def play(self, bursts: list[Burst], **driven: npt.ArrayLike) -> dict[str, Values]:
        """Send bursts to the recorder and its model; one that comes after unseen reads comes a clock later for it."""
        clocks = sum(1 + b.wait + (b.unseen > 0) for b in bursts)
        names = ("read", "bank", "row", "burst", "counters", "row_base", "set_reads", "next_read")
        given = {name: np.zeros(clocks, np.uint64) for name in names}
        words = self.geometry.burst_bits // 32
        flips, expected = np.zeros((clocks, words), np.uint32), np.zeros((clocks, words), np.uint32)
        t = -1
        for b in bursts:
            t += 1 + b.wait
            if b.unseen:
                given["set_reads"][t], given["next_read"][t] = 1, self.model.reads + b.unseen
                t += 1
            given["read"][t] = 1
            for name in ("bank", "row", "burst", "counters", "row_base"):
                given[name][t] = getattr(b, name)
            flips[t], expected[t] = (_words(bits, words) for bits in (b.flips, b.expected))
            self.model.see(b)
        return self.idle(clocks, flips=_as(flips), expected=_as(expected), **given, **driven)

    def finish(self) -> None:
        """End the program, and let it be recorded."""
        self.idle(finish=1)
        self.model.seal()
        self.settle()

    def window(self, name: str, start: int, count: int) -> Values:
        """Words of a memory window, one a clock."""
        driven = {f"{name}_address": np.append(np.arange(start, start + count), 0), f"{name}_read": 1}
        return self.idle(count + 1, **driven)[f"{name}_data"][1:]

    def counted(self, name: str) -> Values:
        """A window's counters: [places, should have been]."""
        wide = name == "bank_errors"
        words = self.window(name, 0, len(self.model.counters[name]) * (4 if wide else 2))
        return (words[0::2] | words[1::2] << np.uint64(32) if wide else words).reshape(-1, 2)

    def drain(self) -> None:
        """Take the blocks that are new."""
        produced = int(self.idle()["log_produced"][-1])
        starts = [number % LOG_BLOCKS * errorlog.BLOCK_WORDS for number in range(len(self.blocks), produced)]
        new = [self.window("log", start, errorlog.BLOCK_WORDS).astype(np.uint32) for start in starts]
        self.blocks = np.vstack([self.blocks, *new])

    def check(self) -> None:
        """Everything is as in the model, and the host's decoder reads it so."""
        model = self.model
        self.drain()
        np.testing.assert_array_equal(self.blocks, np.array(model.blocks).reshape(-1, errorlog.BLOCK_WORDS))
        for name, expected in model.counters.items():
            np.testing.assert_array_equal(self.counted(name), expected, name)
        now = {name: int(values[-1]) for name, values in self.idle(3).items()}
        assert (now["busy"], now["overflow"], now["backlog"], now["reads"]) == (0, 0, 0, model.reads)
        assert now["free_blocks"] == LOG_BLOCKS - (model.payload is not None)
        check_blocks(self.blocks, 0)
        if model.payload is None:
            reads, bits = unpack(self.blocks, self.geometry.burst_bits)
            assert list(zip(reads.tolist(), bits.tolist(), strict=True)) == model.logged


def _words(bits: int, words: int) -> list[int]:
    return [bits >> 32 * w & 0xFFFFFFFF for w in range(words)]


def _as(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.unsignedinteger]:
    """Bursts as an input takes them: of up to 64 bits as one number, wider ones as words."""
    return words.view(np.uint64)[:, 0] if words.shape[1] == 2 else words


def _of(*bits: int) -> int:
    return sum(1 << bit for bit in bits)


def _stream(geometry: Geometry, rng: Random, bursts: int) -> list[Burst]:
    """Bursts with no error, with few and with many, of which few places come again and again."""
    size = geometry.burst_bits
    words = size // 32
    failing = rng.choice([(0, 1), (0, 1, words, words + 1, 2 * words), (size // 2, size)])
    counters = rng.choice([(LOG,), (ALL,), range(ALL + 1)])
    gaps = rng.choice([(0,), (0, 0, 0, 1, FAR - 2, FAR - 1, FAR, 5 * FAR + 3, 1 << 32, 1 << 40)])
    waits = rng.choice([(0,), (0, 0, 1, 40)])

    return [
        Burst(
            _of(*rng.sample(range(size), rng.choice(failing))),
            rng.getrandbits(size),
            bank=rng.randrange(geometry.banks),
            row=rng.choice([0, 1, 15, 16, 40, geometry.rows - 1]),
            burst=rng.choice([0, 1, geometry.bursts_per_row - 1]),
            counters=rng.choice(counters),
            row_base=rng.choice([0, 0, 1, 30]),
            wait=rng.choice(waits),
            unseen=rng.choice(gaps),
        )
        for _ in range(bursts)
    ]


@pytest.mark.parametrize("geometry", [NARROW, WIDE], ids=["64-bit bursts", "512-bit bursts"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, (1 << 32) - 1), parts=st.lists(st.integers(0, 80), min_size=1, max_size=3))
def test_log_and_counters_are_the_models(geometry: Geometry, seed: int, parts: list[int]) -> None:
    rig, rng = Rig(geometry), Random(seed)
    for bursts in parts:
        rig.play(_stream(geometry, rng, bursts))
        rig.settle()
        rig.check()
    rig.finish()
    rig.check()


@pytest.mark.parametrize("unseen", [0, FAR - 2, FAR - 1, FAR, (1 << 50) - 2])
@pytest.mark.parametrize("payload", range(errorlog.PAYLOAD_WORDS - 18, errorlog.PAYLOAD_WORDS + 1))
def test_a_burst_goes_into_the_next_block_exactly_if_it_does_not_fit(payload: int, unseen: int) -> None:
    """With 512-bit bursts a MASK takes 17 words and its SKIP one."""
    rig = Rig(WIDE)
    rig.play([Burst(_of(k % 512)) for k in range(payload)])
    rig.play([Burst((1 << 512) - 2, unseen=unseen)])
    rig.finish()
    assert len(rig.model.blocks) == (1 if payload + 17 + (unseen + 1 >= FAR) <= errorlog.PAYLOAD_WORDS else 2)
    rig.check()


def test_as_many_bits_as_a_burst_has_words_are_bits_and_one_more_is_a_mask() -> None:
    rig = Rig(WIDE)
    rig.play([Burst(_of(*range(0, 512, 32))), Burst(_of(*range(17))), Burst(1 << 511), Burst(_of(*range(494, 511)))])
    rig.finish()
    assert rig.model.blocks[0][1] == 16 + 17 + 1 + 17
    rig.check()


def test_the_ring_goes_round_and_a_program_without_errors_has_no_block() -> None:
    rig = Rig(NARROW)
    for _ in range(2 * LOG_BLOCKS + 1):
        rig.play([Burst(_of(k % 64)) for k in range(errorlog.PAYLOAD_WORDS)])
        rig.settle()
        rig.check()
    rig.finish()
    rig.check()
    assert rig.blocks.shape[0] == 2 * LOG_BLOCKS + 1
    rig.begin()
    rig.play([Burst(0)] * 10)
    rig.finish()
    rig.check()
    assert rig.blocks.shape[0] == 0


def test_a_full_ring_is_told_and_what_it_holds_stays() -> None:
    rig = Rig(NARROW)
    for _ in range(LOG_BLOCKS):
        rig.play([Burst(_of(k % 64)) for k in range(errorlog.PAYLOAD_WORDS)])
        rig.settle()
    rig.model.seal()
    assert not rig.idle()["overflow"][-1]
    rig.idle(errorlog.PAYLOAD_WORDS * 3, read=1, flips=1, counters=LOG)
    rig.settle()
    assert rig.idle()["overflow"][-1]
    rig.idle(finish=1)
    rig.settle()
    now = rig.idle()
    assert (now["overflow"][-1], now["log_produced"][-1], now["free_blocks"][-1]) == (1, LOG_BLOCKS, 0)
    rig.drain()
    np.testing.assert_array_equal(rig.blocks, np.array(rig.model.blocks))
    rig.begin()
    rig.check()


def test_a_full_backlog_is_told() -> None:
    rig = Rig(NARROW)
    slow = dict(flips=(1 << 64) - 1, counters=isa.COUNT_DQ, read=1)
    taken = BACKLOG + BACKLOG // 64
    assert not rig.idle(taken - 1, **slow)["overflow"][-1]
    assert rig.idle(40, **slow)["overflow"][-1]
    assert rig.idle()["overflow"][-1]
    rig.settle()
    counted = rig.counted("dq_errors")
    assert counted[0, 0] == counted[7, 0] >= 8 * taken
    rig.begin()
    rig.check()


@pytest.mark.parametrize("clocks", [0, 1, 2, 3, 5, 8, 13, 30, 400])
def test_begin_forgets_what_is_under_way(clocks: int) -> None:
    rig = Rig(NARROW)
    rig.play([Burst((1 << 64) - 1, k, bank=k % 4, row=k % 16, burst=k % 8, counters=ALL) for k in range(20)])
    rig.idle(finish=1)
    rig.idle(clocks + 1)
    rig.begin()
    rig.check()
    rig.play([Burst(_of(3, 4, 60), 8, counters=ALL)] * 5)
    rig.finish()
    rig.check()


def test_only_used_counters_are_cleared() -> None:
    rig = Rig(NARROW)
    rig.begin()
    assert rig.begin() < 4
    rig.play([Burst(1, counters=isa.COUNT_DQ)])
    rig.settle()
    assert 8 <= rig.begin() < 16
    rig.play([Burst(1, counters=isa.COUNT_BITLINES)])
    rig.settle()
    assert NARROW.bursts_per_row * 32 <= rig.begin() < NARROW.bursts_per_row * 32 + 8
    rig.check()


def test_single_errors_are_recorded_as_fast_as_they_come() -> None:
    """One word of log a clock, but for 8 clocks at the end of each block."""
    rig = Rig(WIDE)
    blocks = 4
    last = rig.play([Burst(_of(k % 512), 1, counters=ALL) for k in range(blocks * errorlog.PAYLOAD_WORDS)])
    assert last["backlog"].max() <= 9 * blocks
    assert rig.settle() < 9 * blocks + 20
    rig.finish()
    rig.check()


@pytest.mark.parametrize(
    ("flips", "counters", "clocks"),
    [(_of(*range(16)), ALL, 16), ((1 << 512) - 1, LOG, 17)],
    ids=["16 bits", "MASK"],
)
def test_a_burst_takes_a_clock_a_word_of_log(flips: int, counters: int, clocks: int) -> None:
    rig = Rig(WIDE)
    rig.play([Burst(flips, counters=counters)] * 40)
    first, each_block = 17 + 30, 8 + clocks  # a burst goes into the log when its last word has been seen
    assert rig.settle() < first + 40 * (clocks - 1) + len(rig.model.blocks) * each_block
    rig.finish()
    rig.check()


def test_counting_bit_by_bit_takes_a_clock_a_bit() -> None:
    rig = Rig(WIDE)
    rig.play([Burst((1 << 512) - 1, 5, counters=ALL)] * 4)
    assert rig.settle() < 4 * 512 + 20
    rig.check()


def test_at_a_rate_of_1e_3_a_burst_comes_every_clock_and_the_backlog_stays_short() -> None:
    rig, clocks = Rig(WIDE), 2000
    rng = np.random.default_rng(1)
    flips = np.packbits(rng.random((clocks, 512)) < 1e-3, axis=1, bitorder="little").view("<u4")
    seen = rig.idle(clocks, read=1, flips=flips, counters=LOG)
    assert seen["backlog"].max() < 24
    assert rig.settle() < 60
    rig.idle(finish=1)
    rig.settle()
    rig.drain()
    _, bits = unpack(rig.blocks, 512)
    assert len(bits) == np.bitwise_count(flips).sum() > 800


def test_the_host_may_read_counters_while_they_count() -> None:
    """It sees what has been counted by then, and nothing that is counted goes astray."""
    rig = Rig(NARROW)
    bursts = [Burst(_of(5, k % 64), 1 << 5, row=3, counters=ALL) for k in range(400)]
    host = {f"{name}_read": np.arange(400) % 3 != 0 for name in rig.model.counters}
    seen = rig.play(bursts, dq_errors_address=11, row_errors_address=6, **host)
    rig.settle()
    rig.check()
    for name in ("dq_errors", "row_errors"):
        told = seen[f"{name}_data"][1:][host[f"{name}_read"][:-1]]
        assert np.all(np.diff(told.astype(np.int64)) >= 0)
        assert told[0] == 0
        assert 0 < told[-1] <= 400


_PLACES = 128


@cache
def _verilated_counters() -> Verilated:
    """Counters of 32 bits that take 32 bits at once: they saturate soon."""
    top = ResetInserter()(ErrorCounters(_PLACES, amount_bits=32, lanes=2))
    addition, window = top.addition, top.window
    inputs = {"restart": top.reset, "put": top.put, "address": window.address, "read": window.read}
    inputs |= {"place": addition.place, "amount_0": addition.amount_0, "amount_1": addition.amount_1}
    return Verilated(top, inputs, {"room": top.room, "busy": top.busy, "data": window.data})


_AMOUNTS = st.sampled_from([0, 1, 2, 1 << 30, (1 << 31) - 1, SATURATED])
_ADDITIONS = st.lists(st.tuples(st.sampled_from([0, 1, 31, 32, 64, 127]), _AMOUNTS, _AMOUNTS, st.booleans()))


@settings(max_examples=60, deadline=None)
@given(additions=_ADDITIONS)
def test_counters_take_additions_to_one_place_behind_each_other_and_saturate(
    additions: list[tuple[int, int, int, bool]],
) -> None:
    dut, model = _verilated_counters(), np.zeros((_PLACES, 2), np.uint64)
    dut.clock(1, restart=1)
    dut.clock(_PLACES // 2 + 2)
    for place, *amounts, read in additions:
        addition = {"put": 1, "place": place, "amount_0": amounts[0], "amount_1": amounts[1]}
        assert dut.clock(1, **addition, read=read)["room"][0]
        if read:  # which kept the queue waiting: it catches up
            dut.clock(1)
        model[place] = np.minimum(model[place] + np.array(amounts, np.uint64), SATURATED)
    assert not dut.clock(12)["busy"][-1]
    counted = dut.clock(2 * _PLACES + 1, read=1, address=np.arange(2 * _PLACES + 1) % (2 * _PLACES))["data"][1:]
    np.testing.assert_array_equal(counted.reshape(-1, 2), model)
