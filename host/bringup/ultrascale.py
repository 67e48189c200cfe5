"""The knobs of LiteDRAM's PHY for Xilinx UltraScale and UltraScale+ (``litedram/phy/usddrphy.py``).

DQS's output delay has no reset: it goes back to its start by going once round, which a counter tells. DQ is kept in
step with it. Delays are taken off their compensation for voltage and temperature while they are moved.
"""

from host.bringup.phy import Knob, Lanes, PhyRegisters, WriteKnobs
from host.bringup.series7 import Series7Phy


class UltraScalePhy(Series7Phy):
    """A `host.bringup.phy.Phy`; see `Series7Phy`."""

    def __init__(self, registers: PhyRegisters, lanes: int, delays: int, bitslips: int) -> None:
        super().__init__(registers, lanes, delays, bitslips)
        self._delays = delays
        self.write = WriteKnobs(
            delay=Knob("write delay", delays, self._restart_write_delay, self._advance_write_delay),
            bitslip=self._knob("write bitslip", bitslips, "wdly_dq_bitslip_rst", "wdly_dq_bitslip"),
            dq_delay=None,
            clock_delay=self._knob("clock delay", delays, "cdly_rst", "cdly_inc"),
            tck_taps=self._tck_taps,
            enable=self._enable,
            strobe=self._strobe,
        )

    def reset(self) -> None:
        """See `Phy.reset`. The reset takes DQ back but not DQS, which goes first: else they would be out of step."""
        self.begin()
        self._selected = None
        for lane in self.lanes:
            for _ in range(self._to_start(lane)):
                self._registers["wdly_dqs_inc"] = 1
        super().reset()

    def begin(self) -> None:
        """See `Phy.begin`."""
        self._registers["en_vtc"] = 0

    def end(self) -> None:
        """See `Phy.end`."""
        super().end()
        self._registers["en_vtc"] = 1

    def _to_start(self, lane: int) -> int:
        """Steps that take the write delay of ``lane`` to its start; selects the lane."""
        self._select((lane,))
        return -self._registers["wdly_dqs_inc_count"] % self._delays

    def _restart_write_delay(self, lanes: Lanes) -> None:
        steps = {lane: self._to_start(lane) for lane in lanes}
        for step in range(max(steps.values())):
            self._advance_write_delay(tuple(lane for lane in lanes if steps[lane] > step))
