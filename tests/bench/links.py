"""Benchmark: the links to a board.

Etherbone: the host's side, over UDP on loopback, to the least that answers like LiteEth's core, in a process of its
own; beside it datagrams of the same size and number that are only sent there and back. Both processes share what
processors there are; bytes a second of the host's own CPU time say what it would do on one of its own. The gateware's
side: LiteEth's own stack and our master under Verilator, with the clocks that each board is built with, in clocks.

Serial: SerialBus through a pseudo-terminal into the UART of the simulated board, in simulated time, against the line's
baud / 10 bytes a second. How long the host and a USB adapter take is not in it; while the host lets the line rest,
time stands still. The line has `SERIAL_CLOCKS` clocks a bit, fewer than any real one, so that the gateware's own clocks
weigh most.

What the host adds to a scan is in `tests.bench.scan_host`; bytes of the log are in the gateware's own benchmark.
"""

import logging
import multiprocessing
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from gateware.boards import BOARDS
from gateware.etherbone_protocol import (
    HEADER_WORDS,
    MAGIC,
    MAX_WORDS,
    PACKET_WORDS,
    RECEIVE_PACKETS,
    probe,
    read_requests,
    write_requests,
)
from gateware.registers import memory_bases
from gateware.sim.build import build as build_library
from gateware.sim.configurations import SERIAL_CLOCKS
from host.chip_presets import PRESETS
from host.etherbone_bus import EtherboneBus
from host.serial_bus import SerialBus
from host.simulation import SimulatedBoard
from host.timings import DDR3_1600K
from tests.bench import scan_host
from tests.gateware.etherboned import WIRE_HZ, EtherbonedMemory
from tests.host.etherbone_peer import EtherboneServer, Memory
from tests.host.serial_peer import SerialLine
from tests.host.simulated_line import SimulatedPeer

REPEATS = 5
WORDS = 1 << 20  # of memory behind Etherbone, all of it moved each time
SERIAL_WORDS = 1 << 12
ETHERBONE_BYTES_PER_S, OF_WIRE, OF_BAUD = 20e6, 0.8, 0.9
WINDOW_CLOCKS = {False: 2, True: 1}  # that windows wait, by look_ahead, word after word, before they answer
ETHERBONE_BOARDS = ("kc705", "ecpix5", "butterstick")
# of data on 1 Gbit/s, beside the longest request's own words, preamble, Ethernet, IP, UDP, FCS and gap
WIRE_BYTES_PER_S = WIRE_HZ * 4 * MAX_WORDS / (4 * PACKET_WORDS + 8 + 14 + 20 + 8 + 4 + 12)
SIMULATED = ("kc705", DDR3_1600K)


def figures() -> Iterator[dict[str, Any]]:
    """Medians over `REPEATS`, by wall clock; builds the simulated KC705 first if it is not built."""
    logging.disable(logging.WARNING)  # LiteX tells at length what it puts together
    yield from _etherbone_host()
    yield from _etherbone_gateware()
    yield from _serial()
    yield from scan_host.figures()


def _figure(
    name: str, value: float, unit: str, bound: float | None, goal: float | None, ratio_goal: bool
) -> dict[str, Any]:
    ratio = None if bound is None else value / bound
    reached = ratio if ratio_goal else value
    met = None if goal is None or reached is None else reached >= goal
    head = {"bench": "links", "name": name, "value": value, "unit": unit, "bound": bound, "ratio": ratio}
    return {**head, "goal": goal, "met": met}


# ---- Etherbone, the host's side -------------------------------------------------------------------------------------


class _LightCore:
    """Big-endian memory that answers consecutive addresses alone: as little work as Python allows."""

    def __init__(self) -> None:
        self._memory = np.zeros(WORDS, ">u4")

    def answer(self, datagram: bytes) -> bytes:
        words = np.frombuffer(datagram, ">u4")
        if words[0] != MAGIC:
            return probe(reply=True)
        writes, reads = datagram[10], datagram[11]
        if writes:
            at = int(words[HEADER_WORDS]) // 4
            self._memory[at : at + writes] = words[HEADER_WORDS + 1 :][:writes]
        at = int(words[-reads]) // 4
        head = datagram[:8] + bytes((0, 0x0F, reads, 0)) + datagram[-4 * reads - 4 : -4 * reads]
        return head + self._memory[at : at + reads - 1].tobytes() + bytes(4)


def _far_end(pipe: Connection) -> None:
    """The stand-in, and an echo, until told to stop."""
    echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    echo.bind(("127.0.0.2", 0))
    with EtherboneServer(Memory(0)) as server:
        server.core = _LightCore()  # type: ignore[assignment]
        pipe.send((server.host, server.port, echo.getsockname()))
        datagram = bytearray(2048)
        while (size_and_peer := echo.recvfrom_into(datagram))[0] > 1:
            echo.sendto(memoryview(datagram)[: size_and_peer[0]], size_and_peer[1])
        pipe.recv()


@contextmanager
def _apart() -> Iterator[tuple[str, int, tuple[str, int]]]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_far_end, args=(there,))
    process.start()
    host, port, echo = here.recv()
    try:
        yield host, port, echo
    finally:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stop:
            stop.sendto(b".", echo)
        here.send(None)
        process.join()


def _etherbone_host() -> Iterator[dict[str, Any]]:
    words = np.random.default_rng(1).integers(0, 1 << 32, WORDS, dtype=np.uint32)
    rates: dict[str, list[float]] = {name: [] for name in ("raw", "write", "read", "write_cpu", "read_cpu")}
    with _apart() as (host, port, echo):
        bus = EtherboneBus(host, port)
        for _ in range(REPEATS):
            rates["raw"].append(_raw_rate(echo))
            for name, work in (("write", lambda: bus.write(0, words)), ("read", lambda: bus.read(0, WORDS))):
                begun, begun_cpu = time.perf_counter(), time.process_time()
                got = work()
                rates[name].append(4 * WORDS / (time.perf_counter() - begun))
                rates[f"{name}_cpu"].append(4 * WORDS / (time.process_time() - begun_cpu))
            if not np.array_equal(got, words):
                raise AssertionError("what was read is not what was written")
        latencies = [_seconds(bus, 0) for _ in range(1000)]
        repeats = bus.repeats
        bus.close()
    raw = statistics.median(rates["raw"])
    yield _figure("etherbone_raw_udp", raw, "bytes/s", None, None, False)
    for name in ("read", "write"):
        yield _figure(f"etherbone_{name}", statistics.median(rates[name]), "bytes/s", raw, ETHERBONE_BYTES_PER_S, False)
        cpu = statistics.median(rates[f"{name}_cpu"])
        yield _figure(f"etherbone_{name}_host_cpu", cpu, "bytes/CPU-s", None, ETHERBONE_BYTES_PER_S, False)
    yield _figure("etherbone_register_read", 1e6 * statistics.median(latencies), "us", None, None, False)
    yield _figure("etherbone_repeats", repeats, "requests", None, None, False)


def _raw_rate(echo: tuple[str, int]) -> float:
    """Bytes of data a second if datagrams as large as requests only go there and back, as many ahead."""
    packet, back = bytes(4 * PACKET_WORDS), bytearray(2048)
    number = WORDS // MAX_WORDS
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.connect(echo)
        line.settimeout(1.0)
        begun = time.perf_counter()
        for _ in range(RECEIVE_PACKETS):
            line.send(packet)
        for k in range(number):
            line.recv_into(back)
            if k < number - RECEIVE_PACKETS:
                line.send(packet)
        return 4 * MAX_WORDS * number / (time.perf_counter() - begun)


def _seconds(bus: EtherboneBus, address: int) -> float:
    begun = time.perf_counter()
    bus.read(address, 1)
    return time.perf_counter() - begun


# ---- Etherbone, the gateware's side ---------------------------------------------------------------------------------


def _etherbone_gateware() -> Iterator[dict[str, Any]]:
    """An engine's memory through a wire of 1 Gbit/s, requests as close together as it has them.

    Each board with the clocks that it is built with: the system clock as a figure, what a word takes of it, and the
    bytes a second that these make.
    """
    for name in ETHERBONE_BOARDS:
        board = EtherbonedMemory(name)
        board.clocks = WINDOW_CLOCKS[bool(BOARDS[name].sizes.get("look_ahead", True))]
        board.send([read_requests(0, 1, 1)[0].tobytes()])
        yield _figure(f"etherbone_{name}_sys_clk", board.sys_clk_hz / 1e6, "MHz", None, None, False)
        for way, packets in (
            ("read", read_requests(0, RECEIVE_PACKETS, MAX_WORDS)),
            ("write", write_requests(0, np.ones((RECEIVE_PACKETS, MAX_WORDS), np.uint32))),
        ):
            two, whole = (board.clocks_for([each.tobytes() for each in packets[:k]]) for k in (2, RECEIVE_PACKETS))
            word_s = (whole - two) / WIRE_HZ / MAX_WORDS / (RECEIVE_PACKETS - 2)
            yield _figure(f"etherbone_{name}_{way}_word", word_s * board.sys_clk_hz, "clocks", None, None, False)
            yield _figure(f"etherbone_{name}_{way}", 4 / word_s, "bytes/s", WIRE_BYTES_PER_S, OF_WIRE, True)


# ---- serial ---------------------------------------------------------------------------------------------------------


def _serial() -> Iterator[dict[str, Any]]:
    configuration, jedec = SIMULATED
    build_library(configuration)
    board = SimulatedBoard(configuration, PRESETS["B"], 1, jedec)
    board.set_environment(1_350_000, 20.0)
    base = memory_bases()["write_buffer"]
    words = np.random.default_rng(1).integers(0, 1 << 32, SERIAL_WORDS, dtype=np.uint32)
    with SerialLine(SimulatedPeer(board)) as line:
        bus = SerialBus(line.port, 9600, answer_s=60.0)  # the rate says nothing on a pseudo-terminal
        for name, work in (("write", lambda: bus.write(base, words)), ("read", lambda: bus.read(base, SERIAL_WORDS))):
            begun = board.clocks
            got = work()
            clocks = board.clocks - begun
            share = 4 * SERIAL_WORDS * 10 * SERIAL_CLOCKS / clocks
            baud = board.about["sys_clk_hz"] / SERIAL_CLOCKS
            yield _figure(f"serial_{name}", share * baud / 10, "bytes/s", baud / 10, OF_BAUD, True)
        if not np.array_equal(got, words):
            raise AssertionError("what was read is not what was written")
        if bus.repeats:
            raise AssertionError(f"{bus.repeats} requests had to be repeated on a line without faults")
        bus.close()
