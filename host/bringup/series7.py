"""The knobs of LiteDRAM's PHY for Xilinx 7-series (``litedram/phy/s7ddrphy.py``).

With output delays (Kintex, Virtex: K7DDRPHY, V7DDRPHY) writes are levelled, their latency calibrated and DQ centred on
DQS. Without (Artix: A7DDRPHY) DQS is 90 degrees late by its clock, and only reads are levelled.
"""

from host.bringup.phy import Knob, Lanes, PhyRegisters, WriteKnobs, mask_of


class Series7Phy:
    """A `host.bringup.phy.Phy`.

    Args:
        registers: of the PHY.
        lanes: byte lanes.
        delays, bitslips: positions, from the build's board.json.
    """

    def __init__(self, registers: PhyRegisters, lanes: int, delays: int, bitslips: int) -> None:
        self.lanes: Lanes = tuple(range(lanes))
        self._registers = registers
        self._selected: int | None = None
        self.read_delay = self._knob("read delay", delays, "rdly_dq_rst", "rdly_dq_inc")
        self.read_bitslip = self._knob("read bitslip", bitslips, "rdly_dq_bitslip_rst", "rdly_dq_bitslip")
        self.write: WriteKnobs | None = None
        if "wdly_dqs_inc" in registers:
            self.write = WriteKnobs(
                delay=Knob("write delay", delays, self._restart_write_delay, self._advance_write_delay),
                bitslip=self._knob("write bitslip", bitslips, "wdly_dq_bitslip_rst", "wdly_dq_bitslip"),
                dq_delay=self._knob("write DQ delay", delays, "wdly_dq_rst", "wdly_dq_inc"),
                clock_delay=self._knob("clock delay", delays, "cdly_rst", "cdly_inc"),
                tck_taps=self._tck_taps,
                enable=self._enable,
                strobe=self._strobe,
            )

    def reset(self) -> None:
        """See `Phy.reset`."""
        self._selected = None
        self._registers["rst"] = 1
        self._registers["rst"] = 0

    def begin(self) -> None:
        """See `Phy.begin`."""

    def end(self) -> None:
        """See `Phy.end`."""
        self._select(())

    def expect_burst(self) -> None:
        """See `Phy.expect_burst`: this PHY does not look."""

    def burst_seen(self) -> Lanes:
        """See `Phy.burst_seen`."""
        return self.lanes

    def _select(self, lanes: Lanes) -> None:
        if (mask := mask_of(lanes)) != self._selected:
            self._registers["dly_sel"] = mask
            self._selected = mask

    def _pulse(self, lanes: Lanes, register: str) -> None:
        self._select(lanes)
        self._registers[register] = 1

    def _knob(self, name: str, positions: int, restart: str, advance: str) -> Knob:
        return Knob(
            name, positions, lambda lanes: self._pulse(lanes, restart), lambda lanes: self._pulse(lanes, advance)
        )

    def _restart_write_delay(self, lanes: Lanes) -> None:
        self._pulse(lanes, "wdly_dq_rst")
        self._pulse(lanes, "wdly_dqs_rst")

    def _advance_write_delay(self, lanes: Lanes) -> None:
        self._pulse(lanes, "wdly_dq_inc")
        self._pulse(lanes, "wdly_dqs_inc")

    def _tck_taps(self) -> int:
        return 4 * self._registers["half_sys8x_taps"]

    def _enable(self, on: bool) -> None:
        self._registers["wlevel_en"] = int(on)

    def _strobe(self) -> None:
        self._registers["wlevel_strobe"] = 1
