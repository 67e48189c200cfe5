"""Brings the DRAM of a real board up: PHY and DRAM reset, JEDEC's power-up sequence, levelling, hand-over."""

import time
from collections.abc import Mapping

from host.bringup.ecp5 import Ecp5Phy
from host.bringup.initialisation import Pause, PowerUp
from host.bringup.injector import Control, Injector
from host.bringup.levelling import Levelling, Levels
from host.bringup.phy import Phy, PhyRegisters
from host.bringup.series7 import Series7Phy
from host.bringup.ultrascale import UltraScalePhy
from host.bus import Bus
from host.identity import Description
from profiles.errors import BoardError, UnacknowledgedError
from profiles.progress import Progress, silent

PHYS: dict[str, type[Series7Phy | Ecp5Phy]] = {
    **{"A7DDRPHY": Series7Phy, "K7DDRPHY": Series7Phy, "V7DDRPHY": Series7Phy},
    **{"USDDRPHY": UltraScalePhy, "USPDDRPHY": UltraScalePhy},
    "ECP5DDRPHY": Ecp5Phy,
}
SIMULATED = "SimulatedPHY"  # has no delays
ATTEMPTS = 3  # of all of it, over a link that loses acknowledges


def bring_up(
    bus: Bus, description: Description, progress: Progress = silent, pause: Pause = time.sleep
) -> Levels | None:
    """Initialise the DRAM behind ``bus`` and level its PHY. What the DRAM held is lost; a second call does it again.

    Args:
        bus: link to the board, whose engine must not be running.
        description: of its build.
        progress: told of steps done, and of all.
        pause: waits so many seconds.

    Returns:
        What was found; None for a simulated board, whose PHY leaves nothing to find.

    Raises:
        BoardError: the build is not one that can be brought up, or a lane cannot be levelled. LiteDRAM's controller
            does not get the DRAM then.
        LinkError: the link failed.
    """
    addresses = description.registers()
    for attempt in range(ATTEMPTS):
        try:
            return _once(bus, description, addresses, progress, pause)
        except UnacknowledgedError:  # nobody knows what that write did: from the start
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError


def _once(
    bus: Bus, description: Description, addresses: Mapping[str, int], progress: Progress, pause: Pause
) -> Levels | None:
    engine, about = description.engine, description.about
    injector = Injector(bus, addresses, engine)
    phy = _phy(bus, description, addresses)
    power_up = PowerUp(about["dram_init"], about["phy"]["memtype"], engine.tck_ps, about["sys_clk_hz"])
    power_up.run(injector, phy.reset if phy else lambda: None, pause)
    levels = None
    if phy is not None:
        levelling = Levelling(injector, phy, lambda on: power_up.level_writes(injector, on, pause), progress)
        levels = levelling.run()
    injector.control(Control.SEL)
    return levels


def _phy(bus: Bus, description: Description, addresses: Mapping[str, int]) -> Phy | None:
    try:
        phy = description.about["phy"]
        kind, delays, bitslips = phy["phytype"], phy["delays"], phy["bitslips"]
    except (KeyError, TypeError) as error:
        raise BoardError(
            f"{description.path} does not describe its PHY ({error!r}); build the gateware anew"
        ) from error
    if kind == SIMULATED:
        return None
    if kind not in PHYS:
        raise BoardError(f"bring-up knows {', '.join(PHYS)}, not {kind}; use a board with one of these")
    if not all(isinstance(count, int) and 1 < count <= 1024 for count in (delays, bitslips)):
        raise BoardError(f"{description.path} gives {delays} delays and {bitslips} bitslips; build the gateware anew")
    return PHYS[kind](PhyRegisters(bus, addresses), description.engine.geometry.data_width // 8, delays, bitslips)
