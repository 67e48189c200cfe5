"""Etherbone's bus master: every access once and in order, every answer to the record that asked, others get the bus."""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from liteeth.common import eth_etherbone_mmap_description
from litex.soc.interconnect import stream, wishbone
from migen import If, Module, Signal

from gateware.engine.memories import BusWindow, LaneMemory
from gateware.etherbone_master import TURN_CLOCKS, EtherboneMaster
from gateware.soc import BUS_TIMEOUT
from tests.gateware.verilated import Values, Verilated

_MMAP = eth_etherbone_mmap_description(32)
_FIELDS = ("addr", "data", "we", "be", "base_addr", "count", "last")
_QUEUE = 1024
_WINDOW_WORDS = 128


class Access(NamedTuple):
    """One access of a record, as LiteEth's receiver has it: ``addr`` counts words."""

    addr: int
    data: int
    we: int
    be: int
    base_addr: int
    count: int
    last: int


def records(random: Random, number: int, words: int) -> list[Access]:
    """Accesses of records with writes, reads or both, below ``words``, often to the word after that of the last one."""
    accesses, addr = list[Access](), 0
    for _ in range(number):
        tag, be = random.getrandbits(32), random.choice((0b1111, 0b1111, 0b0110))
        for we in random.choice(((1,), (0,), (1, 0))):
            count = random.choice((1, 1, 2, 3, 7, 40))
            for k in range(count):
                data = random.getrandbits(32) if we else 0
                addr = (addr + 1) % words if random.random() < 0.7 else random.randrange(words)
                accesses.append(Access(addr, data, we, be, 0 if we else tag, count, k == count - 1))
    return accesses


class _Offer(Module):
    """A queue of accesses before a master's sink; what it offers stays offered until it is taken, as LiteEth's does."""

    def __init__(self, master: EtherboneMaster) -> None:
        self.submodules.queue = queue = stream.SyncFIFO(_MMAP, _QUEUE, buffered=True)
        self.offer, self.push = Signal(), queue.sink.valid
        pending = Signal()
        self.comb += [
            queue.source.connect(master.sink, omit={"valid", "ready"}),
            master.sink.valid.eq(queue.source.valid & (self.offer | pending)),
            queue.source.ready.eq(master.sink.valid & master.sink.ready),
        ]
        self.sync += pending.eq(master.sink.valid & ~master.sink.ready)
        self.inputs = {"push": self.push, "offer": self.offer} | {name: getattr(queue.sink, name) for name in _FIELDS}


def _offered(accesses: Sequence[Access], clocks: int) -> dict[str, Values]:
    """Values of `_Offer`'s inputs that put all into its queue."""
    driven = {name: np.zeros(clocks, np.uint64) for name in ("push", *_FIELDS)}
    driven["push"][: len(accesses)] = 1
    for name in _FIELDS:
        driven[name][: len(accesses)] = [getattr(access, name) for access in accesses]
    return driven


class _Counted(Module):
    """A master before a slave whose k-th answer is k and whose data lines are nonsense before and after that."""

    def __init__(self) -> None:
        self.submodules.master = master = EtherboneMaster()
        self.submodules.offer = _Offer(master)
        self.patience, self.bus = Signal(12), master.bus
        bus, waited, answers, nonsense = self.bus, Signal(12), Signal(32), Signal(32, reset=0xDEADBEEF)
        self.comb += [
            bus.ack.eq(bus.cyc & bus.stb & (waited >= self.patience)),
            bus.dat_r.eq(nonsense),
            If(bus.ack, bus.dat_r.eq(answers)),
        ]
        self.sync += [
            nonsense.eq(nonsense * 5 + 1),
            If(bus.cyc & bus.stb & ~bus.ack, waited.eq(waited + 1)).Else(waited.eq(0)),
            If(bus.ack, answers.eq(answers + 1)),
        ]


class _Run:
    """A new `_Counted`, clocked once: ``seen`` has what its bus and its source did in each clock."""

    def __init__(
        self,
        accesses: Sequence[Access],
        offer: npt.ArrayLike,
        patience: npt.ArrayLike,
        takes: npt.ArrayLike,
        clocks: int,
    ) -> None:
        dut = _Counted()
        source, bus = dut.master.source, dut.bus
        simulation = Verilated(
            dut,
            dut.offer.inputs | {"patience": dut.patience, "takes": source.ready},
            {"cyc": bus.cyc, "stb": bus.stb, "ack": bus.ack, "adr": bus.adr, "dat_w": bus.dat_w, "writes": bus.we}
            | {"sel": bus.sel, "valid": source.valid}
            | {f"answer_{name}": getattr(source, name) for name in (*_FIELDS, "last_be")},
        )
        driven = _offered(accesses, clocks) | {"offer": offer, "patience": patience, "takes": takes}
        self.seen = simulation.clock(clocks, **driven)
        self.asking = (self.seen["cyc"] & self.seen["stb"]).astype(bool)
        self.acked = np.flatnonzero(self.asking & self.seen["ack"].astype(bool))
        self.taken = np.flatnonzero(self.seen["valid"].astype(bool) & np.broadcast_to(takes, clocks).astype(bool))

    def column(self, name: str, rows: npt.NDArray[np.intp]) -> list[int]:
        return [int(value) for value in self.seen[name][rows]]


def _phases(random: Random, clocks: int, *choices: float) -> npt.NDArray[np.bool_]:
    """A bit a clock, true with one of the probabilities for a while, then with another."""
    rng, out = np.random.default_rng(random.getrandbits(64)), np.zeros(clocks, bool)
    at = 0
    while at < clocks:
        length = random.randrange(1, 400)
        out[at : at + length] = rng.random(out[at : at + length].size) < random.choice(choices)
        at += length
    return out


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_every_access_is_done_once_in_order_and_every_read_answered(seed: int) -> None:
    random, clocks = Random(seed), 40_000
    accesses = records(random, 60, 1 << 30)
    assert len(accesses) <= _QUEUE
    patience = np.random.default_rng(seed).choice([0, 0, 1, 2, 2, 2, 9], clocks)
    for _ in range(10):  # as long as a bus's time-out
        at = random.randrange(8000)
        patience[at : at + 3 * TURN_CLOCKS] = 3 * TURN_CLOCKS - 1
    takes = _phases(random, clocks, 1, 1, 0.5, 0.1, 0)
    run = _Run(accesses, _phases(random, clocks, 1, 1, 0.3, 0.05), patience, takes, clocks)
    done = (run.column(name, run.acked) for name in ("adr", "writes", "sel"))
    assert list(zip(*done, strict=True)) == [(access.addr, access.we, access.be) for access in accesses]
    written = [
        word for word, we in zip(run.column("dat_w", run.acked), run.column("writes", run.acked), strict=True) if we
    ]
    assert written == [access.data for access in accesses if access.we]

    reads = [(k, access) for k, access in enumerate(accesses) if not access.we]
    assert run.column("answer_data", run.taken) == [k for k, _ in reads]
    assert run.column("answer_last", run.taken) == [access.last for _, access in reads]
    assert run.column("answer_last_be", run.taken) == [8 * access.last for _, access in reads]
    assert set(run.column("answer_we", run.taken)) == {1}
    for name in ("base_addr", "count", "be"):
        assert run.column(f"answer_{name}", run.taken) == [getattr(access, name) for _, access in reads]

    waits = run.asking[:-1] & ~run.seen["ack"][:-1].astype(bool)  # until it is answered, an access stays as it is
    for name in ("cyc", "stb", "adr", "dat_w", "writes", "sel"):
        assert np.array_equal(run.seen[name][1:][waits], run.seen[name][:-1][waits])
    assert np.array_equal(run.seen["cyc"], run.seen["stb"])


@pytest.mark.slow
def test_accesses_follow_each_other_without_a_gap_until_the_turn_is_over() -> None:
    """A slave that takes three clocks, as the engine's counters do, is all that there is to wait for."""
    reads = [Access(k, 0, 0, 0b1111, 7, 250, k == 249) for k in range(250)]
    run = _Run(reads, 1, 2, 1, 2000)
    asking = run.asking[run.acked[0] : run.acked[-1]]
    steps = np.diff(run.acked)
    assert set(steps.tolist()) == {3, 4}
    assert np.count_nonzero(~asking) == np.count_nonzero(steps == 4) == 250 * 3 // (TURN_CLOCKS + 2)


class _Window(Module):
    """A master before a window."""

    def __init__(self, look_ahead: bool) -> None:
        self.submodules.master = master = EtherboneMaster()
        self.submodules.offer = _Offer(master)
        self.submodules.memory = memory = LaneMemory(2, _WINDOW_WORDS // 2)
        self.submodules.window = window = BusWindow(memory.window, look_ahead, memory.write, memory.write_data)
        self.comb += master.bus.connect(window.bus)


@pytest.mark.slow
@pytest.mark.parametrize(("look_ahead", "after_the_last"), [(True, 2), (False, 3)])
def test_a_window_takes_three_clocks_and_looking_ahead_two_for_the_word_after_the_last_one(
    look_ahead: bool, after_the_last: int
) -> None:
    """Either way what is read was written last. `tests.bench.links` reckons with these clocks."""
    ahead, back = list(range(_WINDOW_WORDS)), [0, 1, 2, 2, 1, 2, 3]
    writes = [Access(k, 1000 + k, 1, 0b1111, 0, 128, k == ahead[-1]) for k in ahead]
    reads = [Access(k, 0, 0, 0b1111, 7, 128, k == ahead[-1]) for k in ahead]
    again = [Access(k, 2000 + n, n % 2, 0b1111, 7, 1, 1) for n, k in enumerate(back)]
    dut = _Window(look_ahead)
    bus, source = dut.master.bus, dut.master.source
    inputs = dut.offer.inputs | {"takes": source.ready}
    simulation = Verilated(dut, inputs, {"ack": bus.ack, "valid": source.valid, "answer": source.data})
    seen, later = (
        simulation.clock(1000, **_offered(accesses, 1000), offer=1, takes=1) for accesses in (writes + reads, again)
    )
    steps = np.diff(np.flatnonzero(seen["ack"]))
    assert steps.min() == after_the_last
    turns = 2 * _WINDOW_WORDS // (TURN_CLOCKS // after_the_last)
    assert np.count_nonzero(steps > after_the_last) <= turns + 1  # and the first read
    near = after_the_last
    assert np.diff(np.flatnonzero(later["ack"])).tolist() == [near, near, 3, 3, near, near]
    answered = [each["answer"][each["valid"].astype(bool)].tolist() for each in (seen, later)]
    assert answered == [[1000 + k for k in ahead], [1000, 1002, 2001, 1003]]


class _Shared(Module):
    """A master on the SoC's kind of bus: LiteX's interconnect and time-out, a window, and another master that reads."""

    def __init__(self) -> None:
        self.submodules.master = master = EtherboneMaster()
        self.submodules.offer = _Offer(master)
        self.submodules.memory = memory = LaneMemory(2, _WINDOW_WORDS // 2)
        self.submodules.window = window = BusWindow(memory.window, True, memory.write, memory.write_data)
        self.other = other = wishbone.Interface(data_width=32, address_width=32, addressing="word")
        self.submodules.shared = shared = wishbone.InterconnectShared(
            [master.bus, other], [(lambda address: address[20:] == 0, window.bus)], True, BUS_TIMEOUT
        )
        self.errors, self.wants = Signal(32), Signal()
        self.comb += [other.cyc.eq(self.wants), other.stb.eq(self.wants)]
        self.sync += [
            If(shared.timeout.error, self.errors.eq(self.errors + 1)),
            self.wants.eq(~(self.wants & (other.ack | other.err))),
        ]


@pytest.mark.slow
def test_on_the_bus_with_another_master_and_addresses_where_nobody_answers() -> None:
    """Accesses beyond the window's end, in the middle of records, end with the bus's time-out, and harm no other."""
    random, clocks = Random(1), 250_000
    accesses = [
        access._replace(addr=random.choice((_WINDOW_WORDS, 2 * _WINDOW_WORDS + access.addr)), be=0b1111)
        if random.random() < 0.05
        else access._replace(be=0b1111)
        for access in records(random, 50, _WINDOW_WORDS - 1)
    ]
    dut = _Shared()
    source, other = dut.master.source, dut.other
    simulation = Verilated(
        dut,
        dut.offer.inputs | {"takes": source.ready, "where": other.adr},
        {"valid": source.valid, "answer": source.data, "errors": dut.errors}
        | {"wants": dut.wants, "ack": other.ack, "err": other.err, "other_data": other.dat_r},
    )
    takes = _phases(random, clocks, 1, 1, 0.3)
    driven = _offered(accesses, clocks)
    seen = simulation.clock(
        clocks, offer=_phases(random, clocks, 1, 0.2), takes=takes, where=_WINDOW_WORDS - 1, **driven
    )

    memory, expected = [0] * _WINDOW_WORDS, []
    for access in accesses:
        there = access.addr < _WINDOW_WORDS
        if there and access.we:
            memory[access.addr] = access.data
        elif not access.we:
            expected.append(memory[access.addr] if there else 0xFFFFFFFF)
    taken = seen["valid"].astype(bool) & takes
    assert seen["answer"][taken].tolist() == expected
    nobody = sum(access.addr >= _WINDOW_WORDS for access in accesses)
    assert seen["errors"][-1] == nobody > 10

    answered = np.flatnonzero(seen["ack"])
    assert not seen["err"].any()
    assert set(seen["other_data"][answered].tolist()) == {0}  # a word that nobody writes
    waited = np.diff(answered)
    assert waited.max() < BUS_TIMEOUT + TURN_CLOCKS + 10
    assert np.count_nonzero(waited > TURN_CLOCKS + 10) <= nobody
