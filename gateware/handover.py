"""Hands the DFI from LiteDRAM's controller to the test engine and back, at a refresh, when every bank is closed.

The controller believes what its bank machines remember. Whoever drives the DFI behind its back must therefore take it
when all rows are closed and give it back the same way, or later reads go to the wrong row without any sign of it.
"""

from litedram.common import cmd_request_rw_layout
from litedram.core.controller import ControllerSettings
from litedram.core.refresher import RefreshPostponer, RefreshSequencer, RefreshTimer, ZQCSExecuter
from litex.gen import LiteXModule
from litex.gen.genlib.misc import WaitTimer
from litex.soc.interconnect import stream
from migen import FSM, If, NextState, Signal, log2_int


class HandoverRefresher(LiteXModule):
    """LiteDRAM's refresher, which also lends the DFI; give it as ``ControllerSettings(refresh_cls=...)``.

    A refresh is the one moment when the controller has closed every bank and waits. While ``hold`` asks for the DFI,
    the refresher goes through a refresh at once and then stays there: its request keeps bank machines closed and ports
    waiting, and no controller command leaves. When ``hold`` falls, it goes through a whole refresh (PREA, tRP, REF,
    tRFC) before the controller goes on. Refreshing meanwhile is up to whoever holds the DFI, who also must be idle
    (tWR and tRTP over) when ``hold`` falls.

    Latency: ``held`` rises tRP + tRFC + about 5 clocks after ``hold`` when the controller is idle, and not before the
    data of its last READ are back; it falls one clock after ``hold``.

    Attributes:
        cmd: commands to the multiplexer, as in LiteDRAM's refresher.
        hold: in, someone wants the DFI.
        held: out, the DFI is theirs: all banks closed, tRP and tRFC over, nothing of the controller's under way.
    """

    def __init__(
        self, settings: ControllerSettings, clk_freq: float, zqcs_freq: float = 1e0, postponing: int = 1
    ) -> None:
        bank_bits = settings.geom.bankbits + log2_int(settings.phy.nranks)
        self.cmd = cmd = stream.Endpoint(cmd_request_rw_layout(a=settings.geom.addressbits, ba=bank_bits))
        self.hold = hold = Signal()
        self.held = Signal()

        # # #

        timing = settings.timing
        self.timer = RefreshTimer(timing.tREFI)
        self.postponer = RefreshPostponer(postponing)
        self.sequencer = sequencer = RefreshSequencer(cmd, timing.tRP, timing.tRFC, postponing)
        self.comb += [
            self.timer.wait.eq(~self.timer.done),
            self.postponer.req_i.eq(self.timer.done & int(settings.with_refresh)),
        ]

        # The multiplexer answers with ready as long as it sends the refresher's commands and no others.
        self.drained = WaitTimer(max(settings.phy.read_latency + 1, timing.tRAS))
        self.comb += self.drained.wait.eq(cmd.ready)

        self.fsm = fsm = FSM(reset_state="IDLE")
        after_refresh = If(hold, NextState("HELD")).Else(cmd.valid.eq(0), cmd.last.eq(1), NextState("IDLE"))
        fsm.act("IDLE", If(self.postponer.req_o | hold, NextState("WAIT-BANK-MACHINES")))
        fsm.act(
            "WAIT-BANK-MACHINES",
            cmd.valid.eq(1),
            # LiteDRAM's bank machines grant a refresh before tRAS of a row that has just been opened is over
            If(self.drained.done, sequencer.start.eq(1), NextState("DO-REFRESH")),
        )
        if timing.tZQCS is None:
            fsm.act("DO-REFRESH", cmd.valid.eq(1), If(sequencer.done, after_refresh))
        else:
            self._add_zqcs(settings, int(clk_freq / zqcs_freq), after_refresh)
        fsm.act(
            "HELD",
            cmd.valid.eq(1),
            self.held.eq(self.drained.done),
            If(~hold, sequencer.start.eq(1), NextState("DO-REFRESH")),
        )

    def _add_zqcs(self, settings: ControllerSettings, period: int, after_refresh: If) -> None:
        """A short ZQ calibration follows the first refresh after every ``period`` clocks."""
        due = Signal()
        self.zqcs_timer = timer = RefreshTimer(period)
        self.zqcs_executer = executer = ZQCSExecuter(self.cmd, settings.timing.tRP, settings.timing.tZQCS)
        self.comb += timer.wait.eq(1)
        self.sync += If(timer.done, due.eq(1)).Elif(executer.start, due.eq(0))
        self.fsm.act(
            "DO-REFRESH",
            self.cmd.valid.eq(1),
            If(self.sequencer.done, If(due, executer.start.eq(1), NextState("DO-ZQCS")).Else(after_refresh)),
        )
        self.fsm.act("DO-ZQCS", self.cmd.valid.eq(1), If(executer.done, after_refresh))
