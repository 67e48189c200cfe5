"""The register slice: every access goes through once, in order, however long the bus takes."""

from collections.abc import Iterator
from random import Random
from typing import Any

from litex.soc.interconnect import wishbone
from migen import Module, run_simulation

from gateware.register_slice import RegisterSlice


class _Sliced(Module):
    """A memory behind a slice that acknowledges an access ``patience[k]`` clocks after it is asked."""

    def __init__(self) -> None:
        self.submodules.slice = RegisterSlice()
        self.memory: dict[int, int] = {}
        self.accesses: list[tuple[bool, int]] = []

    def serve(self, patience: list[int]) -> Iterator[Any]:
        bus = self.slice.bus
        for clocks in patience:
            while not ((yield bus.cyc) and (yield bus.stb)):
                yield
            for _ in range(clocks):
                yield
            address, writes = (yield bus.adr), bool((yield bus.we))
            assert (yield bus.sel) == 0b1111
            if writes:
                self.memory[address] = yield bus.dat_w
            else:
                yield bus.dat_r.eq(self.memory.get(address, 0))
            self.accesses.append((writes, address))
            yield bus.ack.eq(1)
            yield
            yield bus.ack.eq(0)
            yield


def test_accesses_go_through_once_and_in_order() -> None:
    random, dut = Random(1), _Sliced()
    wanted = [(random.random() < 0.5, random.randrange(8), random.getrandbits(32)) for _ in range(200)]
    expected: dict[int, int] = {}

    def master() -> Iterator[Any]:
        bus: wishbone.Interface = dut.slice.master
        for writes, address, value in wanted:
            if writes:
                yield from bus.write(address, value)
                expected[address] = value
            else:
                assert (yield from bus.read(address)) == expected.get(address, 0)
            for _ in range(random.randrange(3)):
                yield

    run_simulation(dut, [master(), dut.serve([random.randrange(4) for _ in wanted])])
    assert dut.accesses == [(writes, address) for writes, address, _ in wanted]
    assert dut.memory == expected


def test_an_access_takes_two_clocks_more() -> None:
    """::

    master stb  _/```````````````\\_
    bus stb     ____/```````````\\___
    bus ack     ________/```\\_______
    master ack  ____________/```\\___
    """
    dut, waited = _Sliced(), []

    def master() -> Iterator[Any]:
        bus = dut.slice.master
        yield bus.cyc.eq(1)
        yield bus.stb.eq(1)
        yield
        while not (yield bus.ack):
            waited.append((yield dut.slice.bus.ack))
            yield

    def answer() -> Iterator[Any]:
        yield dut.slice.bus.ack.eq(1)  # a slave that answers at once
        yield

    run_simulation(dut, [master(), answer()])
    assert len(waited) == 2
