"""The knobs of LiteDRAM's PHY for Lattice ECP5 (``litedram/phy/ecp5ddrphy.py``).

Reads only: DQSBUFM places the strobe of a WRITE. Selecting a lane pauses its DQSBUFM, so that no lane may stay selected
over a READ, and after any was, all of them are paused once more together: they lose step otherwise. What a READ returns
counts only where DQSBUFM has seen its strobe (BURSTDET).
"""

from host.bringup.phy import Knob, Lanes, PhyRegisters, WriteKnobs, mask_of


class Ecp5Phy:
    """A `host.bringup.phy.Phy`.

    Args:
        registers: of the PHY.
        lanes: byte lanes.
        delays, bitslips: positions, from the build's board.json.
    """

    def __init__(self, registers: PhyRegisters, lanes: int, delays: int, bitslips: int) -> None:
        self.lanes: Lanes = tuple(range(lanes))
        self._registers = registers
        self.read_delay = self._knob("read delay", delays, "rdly_dq_rst", "rdly_dq_inc")
        self.read_bitslip = self._knob("read bitslip", bitslips, "rdly_dq_bitslip_rst", "rdly_dq_bitslip")
        self.write: WriteKnobs | None = None

    def reset(self) -> None:
        """See `Phy.reset`: this PHY has none but its knobs' own."""
        for knob in (self.read_delay, self.read_bitslip):
            knob.restart(self.lanes)

    def begin(self) -> None:
        """See `Phy.begin`."""

    def end(self) -> None:
        """See `Phy.end`."""

    def expect_burst(self) -> None:
        """See `Phy.expect_burst`."""
        self._registers["burstdet_clr"] = 1

    def burst_seen(self) -> Lanes:
        """See `Phy.burst_seen`."""
        seen = self._registers["burstdet_seen"]
        return tuple(lane for lane in self.lanes if seen >> lane & 1)

    def _knob(self, name: str, positions: int, restart: str, advance: str) -> Knob:
        return Knob(
            name, positions, lambda lanes: self._pulse(lanes, restart), lambda lanes: self._pulse(lanes, advance)
        )

    def _pulse(self, lanes: Lanes, register: str) -> None:
        registers, every = self._registers, mask_of(self.lanes)
        registers["dly_sel"] = mask_of(lanes)
        registers[register] = 1
        for selected in (0, every, 0):
            registers["dly_sel"] = selected
