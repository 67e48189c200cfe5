"""Etherbone from the Ethernet PHY to a memory on the bus, under Verilator: LiteEth's own stack, and frames by hand.

The wire is 1 Gbit/s: a byte in each of its clocks, 125 MHz. Stack and bus have the clocks that they have on a board.
"""

import struct
from collections.abc import Sequence
from zlib import crc32

import numpy as np
from liteeth.common import eth_phy_description
from liteeth.core import LiteEthUDPIPCore
from litex.soc.interconnect import stream, wishbone
from migen import ClockDomainsRenamer, If, Memory, Module, Signal

from gateware.boards import BOARDS
from gateware.boards.ecp5 import STACK_FREQUENCY
from gateware.etherbone import IP_ADDRESS, MAC_ADDRESS, EtherboneBridge
from gateware.etherbone_protocol import PORT
from gateware.registers import BUS_ERRORS
from tests.gateware.verilated import Verilated

WORDS = 4096  # of memory, from address 0
TIMEOUT = 50  # clocks after which the bus answers where nobody else does
WIRE_HZ = 125_000_000
_ECP5 = ("ecpix5", "butterstick")  # their stack: 32 bits, a clock of its own; others': 8 bits, the wire's clock
_HOST_MAC, _HOST_IP = bytes.fromhex("020000000001"), bytes([192, 168, 1, 100])
_BOARD_MAC, _BOARD_IP = MAC_ADDRESS.to_bytes(6, "big"), bytes(map(int, IP_ADDRESS.split(".")))
_PREAMBLE = b"\x55" * 7 + b"\xd5"
_GAP = bytes(12)
_IPV4, _ARP = b"\x08\x00", b"\x08\x06"


class _Phy(Module):
    dw = 8

    def __init__(self) -> None:
        self.source, self.sink = stream.Endpoint(eth_phy_description(8)), stream.Endpoint(eth_phy_description(8))


class _Slave(Module):
    """A memory that waits ``clocks`` before it answers, and the bus's time-out with its count, as LiteX makes them."""

    def __init__(self, bus: wishbone.Interface) -> None:
        self.clocks = Signal(8)
        memory = Memory(32, WORDS)
        port = memory.get_port(write_capable=True)
        self.specials += memory, port
        waited, errors = Signal(max=TIMEOUT + 2), Signal(32)
        there, counts = bus.adr < WORDS, bus.adr == BUS_ERRORS // 4
        nobody = Signal()
        self.comb += [
            port.adr.eq(bus.adr),
            port.dat_w.eq(bus.dat_w),
            nobody.eq(~there & ~counts & (waited == TIMEOUT)),
            bus.ack.eq(((there | counts) & (waited == self.clocks)) | nobody),
            port.we.eq(bus.ack & there & bus.we),
            bus.dat_r.eq(port.dat_r),
            If(counts, bus.dat_r.eq(errors)),
            If(nobody, bus.dat_r.eq(2**32 - 1)),
        ]
        self.sync += [
            If(bus.cyc & bus.stb & ~bus.ack, waited.eq(waited + 1)).Else(waited.eq(0)),
            If(nobody, errors.eq(errors + 1)),
        ]
        self.writes, self.address, self.word = Signal(32), Signal(32), Signal(32)  # how many, and the last one
        self.sync += If(port.we, self.writes.eq(self.writes + 1), self.address.eq(bus.adr), self.word.eq(bus.dat_w))


class _Board(Module):
    def __init__(self, name: str) -> None:
        self.submodules.phy = phy = _Phy()
        ecp5 = name in _ECP5
        core = LiteEthUDPIPCore(phy, MAC_ADDRESS, IP_ADDRESS, 1e6, dw=32 if ecp5 else 8, with_sys_datapath=ecp5)
        domains = {"sys": "stack" if ecp5 else "wire", "eth_rx": "wire", "eth_tx": "wire", "bus": "sys"}
        self.submodules.core = ClockDomainsRenamer(domains)(core)
        self.submodules.bridge = EtherboneBridge(core, cd="bus")
        self.submodules.slave = _Slave(self.bridge.bus)


class EtherbonedMemory:
    """Give it datagrams, get the datagrams that it answers.

    Args:
        name: of the board whose stack and clocks it has, of `gateware.boards.BOARDS`.

    Attributes:
        sys_clk_hz: of the bus.
        clocks: that the memory waits before it answers, at least 1; may be changed.
        line_clocks: clocks of the wire that a byte of an answer takes; more for a slower wire.
        written: (address, word) of every write on the bus, in order, since `forget`.
        dropped: packets that the guard has dropped since `forget`.
        answered_at: clocks of the wire in the last call in which a byte was answered.
    """

    def __init__(self, name: str) -> None:
        board = _Board(name)
        phy, slave = board.phy, board.slave
        self.sys_clk_hz = round(BOARDS[name].sys_clk_freq)
        domains = {"wire": WIRE_HZ, "sys": self.sys_clk_hz} | ({"stack": STACK_FREQUENCY} if name in _ECP5 else {})
        self._dut = Verilated(
            board,
            {"valid": phy.source.valid, "last": phy.source.last, "last_be": phy.source.last_be}
            | {"data": phy.source.data, "ready": phy.sink.ready, "patience": slave.clocks},
            {"answers": phy.sink.valid, "answer": phy.sink.data, "ends": phy.sink.last}
            | {"writes": slave.writes, "address": slave.address, "word": slave.word}
            | {"dropped": board.bridge.guard._dropped.status},
            domains,
        )
        self.clocks = self.line_clocks = 1
        self._writes = self._dropped = 0
        self.written: list[tuple[int, int]] = []
        self.dropped, self.answered_at = 0, np.zeros(0, np.int64)
        self._pending = b""

    def forget(self) -> None:
        """Let `written` and `dropped` begin anew."""
        self.written.clear()
        self.dropped = 0

    def send(self, datagrams: Sequence[bytes], afterwards: int = 6000) -> list[bytes]:
        """Datagrams as fast as the wire takes them, then ``afterwards`` of its clocks; returns what is answered."""
        return self.send_frames([frame(_IPV4, ipv4(datagram)) for datagram in datagrams], afterwards)

    def send_frames(self, frames: Sequence[bytes], afterwards: int = 6000) -> list[bytes]:
        """As `send`, whole frames from preamble to FCS."""
        answers = []
        for got in self._wire(frames, afterwards):
            kind, content = got[12:14], got[14:-4]
            assert crc32(got[:-4]) == int.from_bytes(got[-4:], "little")
            if kind == _ARP:  # it asks who we are
                reply = content[:6] + b"\x00\x02" + _HOST_MAC + _HOST_IP + content[8:18]
                answers += self.send_frames([frame(_ARP, reply)], afterwards)
            else:
                assert got[:6] == _HOST_MAC
                answers.append(self._payload(content))
        return answers

    def clocks_for(self, datagrams: Sequence[bytes], afterwards: int = 40_000) -> int:
        """The wire's clocks from the first byte of the first datagram to the last byte of the last answer."""
        answers = self.send(datagrams, afterwards)
        assert len(answers) == len(datagrams)
        return int(self.answered_at[-1]) + 1

    def _payload(self, packet: bytes) -> bytes:
        """Of a UDP datagram from board to host."""
        assert packet[9] == 17
        assert (packet[12:16], packet[16:20]) == (_BOARD_IP, _HOST_IP)
        source, target, length, _ = struct.unpack_from(">HHHH", packet, 20)
        assert (source, target) == (PORT, PORT)
        return packet[28 : 20 + length]

    def _wire(self, frames: Sequence[bytes], afterwards: int) -> list[bytes]:
        line = b"".join(each + _GAP for each in frames)
        clocks = len(line) + afterwards
        valid, last, data = (np.zeros(clocks, np.uint64) for _ in range(3))
        data[: len(line)] = np.frombuffer(line, np.uint8)
        at = 0
        for each in frames:
            valid[at : at + len(each)] = 1
            last[at + len(each) - 1] = 1
            at += len(each) + len(_GAP)
        ready = np.arange(clocks) % self.line_clocks == 0
        seen = self._dut.clock(
            clocks, valid=valid, last=last, last_be=last, data=data, ready=ready, patience=self.clocks
        )
        self.dropped += int(seen["dropped"][-1]) - self._dropped
        self._dropped = int(seen["dropped"][-1])
        counts = seen["writes"].astype(np.int64)
        writes = np.flatnonzero(np.diff(counts, prepend=self._writes))
        self._writes = int(counts[-1])
        self.written += zip((4 * seen["address"][writes]).tolist(), seen["word"][writes].tolist(), strict=True)
        sent = np.flatnonzero(seen["answers"].astype(bool) & ready)
        self.answered_at = sent
        out = self._pending + seen["answer"][sent].astype(np.uint8).tobytes()
        ends = np.flatnonzero(seen["ends"][sent]) + 1 + len(self._pending)
        found = [out[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=False)]
        self._pending = out[int(ends[-1]) if ends.size else 0 :]
        assert all(each.startswith(_PREAMBLE) for each in found)
        return [each[len(_PREAMBLE) :] for each in found]


def frame(kind: bytes, content: bytes) -> bytes:
    """An Ethernet frame to the board, from preamble to FCS."""
    body = (_BOARD_MAC + _HOST_MAC + kind + content).ljust(60, b"\0")
    return _PREAMBLE + body + crc32(body).to_bytes(4, "little")


def ipv4(datagram: bytes) -> bytes:
    """An IPv4 packet to the board's Etherbone; without UDP checksum, which LiteEth does not look at."""
    udp = struct.pack(">HHHH", 40000, PORT, 8 + len(datagram), 0) + datagram
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0, _HOST_IP, _BOARD_IP)
    total = sum(struct.unpack(">10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return header[:10] + (~total & 0xFFFF).to_bytes(2, "big") + header[12:] + udp
