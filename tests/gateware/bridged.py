"""The serial bridge under Verilator, with a memory on its bus; for tests of either end of the line."""

import numpy as np
from litex.soc.interconnect import stream, wishbone
from migen import If, Memory, Module, ResetInserter, Signal

from gateware.bridge import SerialBridge
from gateware.serial_protocol import SILENCE_MS
from tests.gateware.verilated import Verilated

SILENCE = 400  # clocks that stand for SILENCE_MS
PATIENCE = 20
WORDS = 4096  # of memory, from address 0
REFUSED = 0x00100000  # an address that answers with an error
NOBODY = 0x00200000  # one where nobody answers


class _Phy(Module):
    def __init__(self) -> None:
        self.source, self.sink = stream.Endpoint([("data", 8)]), stream.Endpoint([("data", 8)])


class _Slave(Module):
    def __init__(self, bus: wishbone.Interface) -> None:
        memory = Memory(32, WORDS)
        port = memory.get_port(write_capable=True)
        self.specials += memory, port
        access, late = Signal(), Signal()
        there, refused = bus.adr < WORDS, bus.adr == REFUSED // 4
        self.comb += [
            access.eq(bus.cyc & bus.stb & there & ~late),
            port.adr.eq(bus.adr),
            port.dat_w.eq(bus.dat_w),
            port.we.eq(access & bus.we),
            bus.dat_r.eq(port.dat_r),
            bus.ack.eq(late),
            bus.err.eq(bus.cyc & bus.stb & refused),
        ]
        self.sync += If(access, late.eq(1)).Else(late.eq(0))
        self.written = port.we


class _Board(Module):
    def __init__(self) -> None:
        self.submodules.phy = phy = _Phy()
        self.submodules.bridge = SerialBridge(phy, clk_freq=1e3 * SILENCE / SILENCE_MS, bus_timeout=PATIENCE)
        self.submodules.slave = _Slave(self.bridge.wishbone)


class BridgedMemory:
    """Give it the bytes of a line, get the bytes it answers.

    Attributes:
        written: (address, word) of every write on the bus, in order.
    """

    busy = False

    def __init__(self) -> None:
        board = _Board()
        bridge, phy, bus = board.bridge, board.phy, board.bridge.wishbone
        resettable = ResetInserter()(board)
        inputs = {
            "reset": resettable.reset,
            "valid": phy.source.valid,
            "data": phy.source.data,
            "ready": phy.sink.ready,
        }
        outputs = {
            "answers": phy.sink.valid,
            "answer": phy.sink.data,
            "writes": board.slave.written,
            "address": bus.adr,
            "word": bus.dat_w,
            "damaged": bridge._damaged.status,
            "lost_bytes": bridge._lost_bytes.status,
        }
        self._dut = Verilated(resettable, inputs, outputs)
        self.reset()

    def reset(self) -> None:
        """As after power-up, but for the memory."""
        self._dut.clock(1, reset=1)
        self.written: list[tuple[int, int]] = []
        self.damaged = self.lost_bytes = 0

    def silence(self) -> bytes:
        """As `send`, when nothing came for SILENCE_MS."""
        return self.send(b"", afterwards=SILENCE + 10)

    def send(self, line: bytes, clocks_a_byte: int = 4, afterwards: int = 10) -> bytes:
        """Bytes one after the other, then that many clocks of silence; returns what is answered meanwhile."""
        valid = np.zeros(len(line) * clocks_a_byte + afterwards, np.uint64)
        data = np.zeros_like(valid)
        sent = slice(0, len(line) * clocks_a_byte, clocks_a_byte)
        valid[sent], data[sent] = 1, np.frombuffer(line, np.uint8)
        if not valid.size:
            return b""
        seen = self._dut.clock(len(valid), valid=valid, data=data, ready=1)
        writes = np.flatnonzero(seen["writes"])
        self.written += zip((4 * seen["address"][writes]).tolist(), seen["word"][writes].tolist(), strict=True)
        self.damaged, self.lost_bytes = int(seen["damaged"][-1]), int(seen["lost_bytes"][-1])
        return seen["answer"][seen["answers"] == 1].astype(np.uint8).tobytes()
