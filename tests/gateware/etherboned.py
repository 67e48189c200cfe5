"""Etherbone from the Ethernet PHY to a memory on the bus, under Verilator: LiteEth's own stack, and frames by hand."""

import struct
from collections.abc import Sequence
from zlib import crc32

import numpy as np
from liteeth.common import eth_phy_description
from liteeth.core import LiteEthUDPIPCore
from litex.soc.interconnect import stream, wishbone
from migen import ClockDomainsRenamer, If, Memory, Module, Signal

from gateware.etherbone import IP_ADDRESS, MAC_ADDRESS, EtherboneBridge
from gateware.etherbone_protocol import PORT
from gateware.registers import BUS_ERRORS
from tests.gateware.verilated import Verilated

WORDS = 4096  # of memory, from address 0
TIMEOUT = 50  # clocks after which the bus answers where nobody else does
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
    """A memory that takes ``clocks`` for a word, and the bus's time-out with its count, as LiteX makes them."""

    def __init__(self, bus: wishbone.Interface, clocks: int) -> None:
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
            bus.ack.eq(((there | counts) & (waited == clocks)) | nobody),
            port.we.eq(bus.ack & there & bus.we),
            bus.dat_r.eq(port.dat_r),
            If(counts, bus.dat_r.eq(errors)),
            If(nobody, bus.dat_r.eq(2**32 - 1)),
        ]
        self.sync += [
            If(bus.cyc & bus.stb & ~bus.ack, waited.eq(waited + 1)).Else(waited.eq(0)),
            If(nobody, errors.eq(errors + 1)),
        ]
        self.written = port.we


class _Board(Module):
    def __init__(self, data_width: int, clocks: int) -> None:
        self.submodules.phy = phy = _Phy()
        whole_word = data_width == 32
        core = LiteEthUDPIPCore(phy, MAC_ADDRESS, IP_ADDRESS, 1e6, dw=data_width, with_sys_datapath=whole_word)
        self.submodules.core = ClockDomainsRenamer(dict.fromkeys(("eth_rx", "eth_tx", "bus"), "sys"))(core)
        self.submodules.bridge = EtherboneBridge(core, cd="bus", registered=whole_word)
        self.submodules.slave = _Slave(self.bridge.bus, clocks)


class EtherbonedMemory:
    """Give it datagrams, get the datagrams that it answers.

    Args:
        data_width: of the network stack: 8 bits, as on Xilinx boards, or 32 and a registered bus, as on ECP5 boards.
        clocks: that the memory takes for a word.

    Attributes:
        written: (address, word) of every write on the bus, in order.
        dropped: packets that the guard has dropped.
        answered_at: clocks of the last call in which a byte was answered.
    """

    def __init__(self, data_width: int, clocks: int = 1) -> None:
        board = _Board(data_width, clocks)
        phy, bus = board.phy, board.bridge.bus
        self._dut = Verilated(
            board,
            {"valid": phy.source.valid, "last": phy.source.last, "last_be": phy.source.last_be}
            | {"data": phy.source.data, "ready": phy.sink.ready},
            {"answers": phy.sink.valid, "answer": phy.sink.data, "ends": phy.sink.last}
            | {"writes": board.slave.written, "address": bus.adr, "word": bus.dat_w}
            | {"dropped": board.bridge.guard._dropped.status},
        )
        self.written: list[tuple[int, int]] = []
        self.dropped, self.answered_at = 0, np.zeros(0, np.int64)
        self._pending = b""

    def send(self, datagrams: Sequence[bytes], afterwards: int = 6000) -> list[bytes]:
        """Datagrams as fast as the wire takes them, then ``afterwards`` clocks; returns what is answered meanwhile."""
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
        """Clocks from the first byte of the first datagram to the last byte of the last answer."""
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
        seen = self._dut.clock(clocks, valid=valid, last=last, last_be=last, data=data, ready=1)
        self.dropped = int(seen["dropped"][-1])
        writes = np.flatnonzero(seen["writes"])
        self.written += zip((4 * seen["address"][writes]).tolist(), seen["word"][writes].tolist(), strict=True)
        sent = np.flatnonzero(seen["answers"])
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
