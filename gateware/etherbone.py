"""The board's end of the Ethernet cable: LiteEth's Etherbone, with what it needs to be safe and fast.

See `gateware.etherbone_protocol` for the datagrams. LiteX's own ``add_etherbone`` would give the core FIFOs of 16
words, in which a longer packet gets stuck for good, and packets with a wrong FCS.
"""

from typing import Any

from liteeth.common import eth_udp_user_description
from liteeth.core import LiteEthUDPIPCore
from liteeth.core.udp import LiteEthUDPUserPort
from liteeth.frontend.etherbone import LiteEthEtherbonePacket, LiteEthEtherboneProbe, LiteEthEtherboneRecord
from litex.gen import LiteXModule
from litex.soc.interconnect.packet import Arbiter, Dispatcher
from migen import ClockDomain, ClockSignal, ResetSignal

from gateware.etherbone_master import EtherboneMaster
from gateware.etherbone_protocol import PACKET_WORDS, PORT, RECEIVE_PACKETS
from gateware.packet_guard import PacketGuard
from gateware.soc import EdenSoC

MAC_ADDRESS, IP_ADDRESS = 0x10E2D5000000, "192.168.1.50"  # LiteX's own defaults


class _GuardedPorts:
    """LiteEth's UDP crossbar, whose ports give away nothing that a `PacketGuard` drops."""

    def __init__(self, udp: Any, module: LiteXModule) -> None:
        self.crossbar, self.dw = self, udp.crossbar.dw
        self._udp, self._module = udp, module

    def get_port(self, udp_port: int, dw: int, cd: str) -> LiteEthUDPUserPort:
        bare, guarded = self._udp.crossbar.get_port(udp_port, dw=dw, cd=cd), LiteEthUDPUserPort(dw)
        self._module.guard = guard = PacketGuard(
            eth_udp_user_description(dw), PACKET_WORDS * RECEIVE_PACKETS, 2 * RECEIVE_PACKETS
        )
        self._module.comb += [
            bare.source.connect(guard.sink),
            guard.source.connect(guarded.source),
            guarded.sink.connect(bare.sink),
        ]
        return guarded


class EtherboneBridge(LiteXModule):
    """Executes the host's requests on the bus: LiteEth's Etherbone with an `EtherboneMaster`.

    Args:
        core: the network stack.
        cd: the clock domain that this is in, by a name that is not renamed inside the stack.

    Attributes:
        bus: the bus master.
    """

    def __init__(self, core: LiteEthUDPIPCore, cd: str) -> None:
        self.packet = packet = LiteEthEtherbonePacket(_GuardedPorts(core.udp, self), PORT, cd)
        self.probe = probe = LiteEthEtherboneProbe()
        self.record = record = LiteEthEtherboneRecord(buffer_depth=PACKET_WORDS)
        self.master = master = EtherboneMaster()
        self.bus = master.bus
        self.dispatcher = Dispatcher(packet.source, [probe.sink, record.sink])
        self.arbiter = Arbiter([probe.source, record.source], packet.sink)
        self.comb += [
            self.dispatcher.sel.eq(~packet.source.pf),
            record.receiver.source.connect(master.sink),
            master.source.connect(record.sender.sink),
        ]
        self._mend()

    def _mend(self) -> None:
        """What LiteEth and LiteX 2024.12 do wrong, and ``tests/gateware/test_etherbone.py`` shows."""
        receiver, sender = self.record.receiver, self.record.sender
        # the tag of a record with writes and reads stays in the FIFO, and is read as an address
        receiver.fsm.act("RECEIVE_BASE_RET_ADDR", receiver.fifo.source.ready.eq(1))
        # a packet whose last word waits for room in the FIFO is counted in every clock that it waits
        for fifo in (receiver.fifo, sender.fifo, self.probe.fifo):
            sink, room = fifo.sink, fifo.payload_fifo.sink.ready
            fifo.comb += fifo.param_fifo.sink.valid.eq(sink.valid & sink.last & room)


def add_etherbone(soc: EdenSoC, core: LiteEthUDPIPCore) -> None:
    """Let the host in by Etherbone, through a network stack that is in the SoC already; see `EtherboneBridge`."""
    soc.cd_sys_bus = ClockDomain("sys_bus")  # the system clock
    soc.comb += [soc.cd_sys_bus.clk.eq(ClockSignal("sys")), soc.cd_sys_bus.rst.eq(ResetSignal("sys"))]
    soc.etherbone = EtherboneBridge(core, cd="sys_bus")
    soc.bus.add_master("etherbone", soc.etherbone.bus)
