"""The board's end of the Ethernet cable: LiteEth's Etherbone, with what it needs to be safe and fast.

See `gateware.etherbone_protocol` for the datagrams. LiteX's own ``add_etherbone`` would give the core FIFOs of 16
words, in which a longer packet gets stuck for good, and packets with a wrong FCS.
"""

from typing import Any

from liteeth.common import eth_udp_user_description
from liteeth.core import LiteEthUDPIPCore
from liteeth.core.udp import LiteEthUDPUserPort
from liteeth.frontend.etherbone import LiteEthEtherbone
from litex.gen import LiteXModule
from migen import ClockDomain, ClockSignal, ResetSignal

from gateware.etherbone_protocol import PACKET_WORDS, PORT, RECEIVE_PACKETS
from gateware.packet_guard import PacketGuard
from gateware.register_slice import RegisterSlice
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
    """Executes the host's requests on the bus.

    Args:
        core: the network stack.
        cd: the clock domain that this is in, by a name that is not renamed inside the stack.
        registered: put a `RegisterSlice` before the bus, for FPGAs that are slow.

    Attributes:
        bus: the bus master.
    """

    def __init__(self, core: LiteEthUDPIPCore, cd: str, registered: bool) -> None:
        self.etherbone = LiteEthEtherbone(_GuardedPorts(core.udp, self), PORT, buffer_depth=PACKET_WORDS, cd=cd)
        _mend(self.etherbone)
        self.bus = self.etherbone.wishbone.bus
        if registered:
            self.slice = RegisterSlice()
            self.comb += self.bus.connect(self.slice.master)
            self.bus = self.slice.bus


def _mend(core: LiteEthEtherbone) -> None:
    """What LiteEth and LiteX 2024.12 do wrong, and ``tests/gateware/test_etherbone.py`` shows."""
    receiver = core.record.receiver
    # the tag of a record with writes and reads stays in the FIFO, and is read as an address
    receiver.fsm.act("RECEIVE_BASE_RET_ADDR", receiver.fifo.source.ready.eq(1))
    # a packet whose last word waits for room in the FIFO is counted in every clock that it waits
    for fifo in (receiver.fifo, core.record.sender.fifo, core.probe.fifo):
        sink, room = fifo.sink, fifo.payload_fifo.sink.ready
        fifo.comb += fifo.param_fifo.sink.valid.eq(sink.valid & sink.last & room)


def add_etherbone(soc: EdenSoC, core: LiteEthUDPIPCore, registered: bool) -> None:
    """Let the host in by Etherbone, through a network stack that is in the SoC already; see `EtherboneBridge`."""
    soc.cd_sys_bus = ClockDomain("sys_bus")  # the system clock
    soc.comb += [soc.cd_sys_bus.clk.eq(ClockSignal("sys")), soc.cd_sys_bus.rst.eq(ResetSignal("sys"))]
    soc.etherbone = EtherboneBridge(core, cd="sys_bus", registered=registered)
    soc.bus.add_master("etherbone", soc.etherbone.bus)
