"""The temperature sensor of a board's FPGA, read through LiteX's registers of its system monitor.

It tells the die of the FPGA, which is warmer than the board around it: how a DRAM's temperature drifts, not what it is.
A sensor at the DRAM, of a temperature controller (`host.modbus`), is used instead where there is one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from host.bus import Bus
from profiles.errors import TemperatureError


@dataclass(frozen=True)
class SystemMonitor:
    """A family's sensor.

    Attributes:
        name: what it is.
        bits: of a reading.
        span, offset: Celsius of a reading = span * reading / 2^bits - offset.
    """

    name: str
    bits: int
    span: float
    offset: float


# As LiteX documents its registers, by the names that csr.json has for them: UG480 for the 7 series' XADC; UG580 for
# UltraScale+'s SYSMONE4 with an external reference (with its own it reads some 0.2 °C less). Both are good to ±4 °C.
MONITORS = {
    "xadc_temperature": SystemMonitor("FPGA die (XADC)", 12, 503.975, 273.15),
    "sysmon_temperature": SystemMonitor("FPGA die (SYSMONE4)", 10, 507.5921310, 279.42657680),
}


class DieSensor:
    """The sensor of one board.

    Args:
        bus: link to it.
        address: of the register.
        monitor: what is behind it.

    Attributes:
        name: what it is.
    """

    def __init__(self, bus: Bus, address: int, monitor: SystemMonitor) -> None:
        self._bus, self._address, self._monitor, self.name = bus, address, monitor, monitor.name

    def celsius(self) -> float:
        """The die's temperature, degrees Celsius.

        Raises:
            TemperatureError: the monitor does not convert.
            LinkError: the link failed.
        """
        monitor, reading = self._monitor, int(self._bus.read(self._address, 1)[0])
        if not 0 < reading < (1 << monitor.bits) - 1:
            raise TemperatureError(
                f"{monitor.name} reads {reading:#x}, which is no temperature; load the bitstream again, and check the "
                "supply of the FPGA's analogue part"
            )
        return monitor.span * reading / (1 << monitor.bits) - monitor.offset

    @property
    def converts(self) -> bool:
        """Whether it tells a temperature now."""
        try:
            self.celsius()
        except TemperatureError:
            return False
        return True


def find_sensor(bus: Bus, addresses: Mapping[str, int]) -> DieSensor | None:
    """The sensor of a build with these registers; None if it has none."""
    for register, monitor in MONITORS.items():
        if register in addresses:
            return DieSensor(bus, addresses[register], monitor)
    return None
