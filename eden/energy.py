"""DRAM energy of an activity by the IDD equations (Micron's power method, TN-41-01, as in DRAMPower).

    activate    VDD (IDD0 - IDD3N) tRAS        each ACT
    precharge   VDD (IDD0 - IDD2N) tRP         each bank closed
    read        VDD (IDD4R - IDD3N) burst      each RD
    write       VDD (IDD4W - IDD3N) burst      each WR
    refresh     VDD (IDD5B - IDD3N) tRFC       each REF
    standby     VDD IDD3N t, VDD IDD2N t       any bank open, or none

for every rail of a device, and the power of its pins while they transfer. tRC = tRAS + tRP, so that an ACT with its PRE
takes what IDD0 says above standby.

How these scale with a lower VDD is no datasheet's business, and decides the answer: it is a `VddLaw`, always chosen,
and `savings` gives what all of them say.
"""

import itertools
from dataclasses import dataclass, fields
from enum import StrEnum

from eden.commands import Activity
from eden.dram_specs import DramSpec, Rail
from profiles.errors import ModelError


class CoreLaw(StrEnum):
    """What a lower VDD does to the energy of the rails that it lowers, at V times the nominal voltage.

    LINEAR: currents stay, everything falls as V. DYNAMIC_SQUARE: commands fall as V^2, standby as V.
    SQUARE: everything falls as V^2.
    """

    LINEAR = "linear"
    DYNAMIC_SQUARE = "dynamic-square"
    SQUARE = "square"


@dataclass(frozen=True)
class VddLaw:
    """A `CoreLaw`, and whether the pins' supply (VDDQ) is lowered too, then falling as the commands do."""

    core: CoreLaw
    io_scaled: bool

    def __str__(self) -> str:
        return f"{self.core}, I/O {'scaled' if self.io_scaled else 'unscaled'}"


LAWS = tuple(VddLaw(core, io_scaled) for core, io_scaled in itertools.product(CoreLaw, (False, True)))


@dataclass(frozen=True)
class Energy:
    """Energy of a channel by what took it, in joules."""

    activate: float
    precharge: float
    read: float
    write: float
    refresh: float
    active_standby: float
    precharge_standby: float
    read_io: float
    write_io: float

    @property
    def total(self) -> float:
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """By name, in the order above."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Saving:
    """Share of the energy saved, under one law, and the least and most that any law gives."""

    law: VddLaw
    share: float
    low: float
    high: float


def energy(activity: Activity, spec: DramSpec, law: VddLaw | None = None, voltage: float = 1.0) -> Energy:
    """Energy of one channel at ``voltage`` times the nominal VDD, by ``law``; None only at the nominal voltage.

    Raises:
        ModelError: a voltage outside 0..1, or a reduced one without a law.
    """
    if not 0 < voltage <= 1:
        raise ModelError(
            f"{voltage} times nominal VDD is outside 0..1; give the share of the nominal voltage that is left"
        )
    if voltage < 1 and law is None:
        raise ModelError(
            f"VDD at {voltage:g} of nominal has no energy without a law; choose one of {', '.join(map(str, LAWS))}"
        )
    parts: dict[str, float] = dict.fromkeys((field.name for field in fields(Energy)), 0.0)
    for rail in spec.rails:
        command, standby = _factors(law, voltage) if rail.scaled else (1.0, 1.0)
        for name, joules in _rail(activity, spec, rail).items():
            parts[name] += joules * (standby if name.endswith("standby") else command)
    pins = _factors(law, voltage)[0] if law is not None and law.io_scaled else 1.0
    seconds = spec.burst_clocks * spec.tck_ps * 1e-12 * spec.devices
    parts["read_io"] = activity.reads * spec.io.read_pins * spec.io.read_mw * 1e-3 * seconds * pins
    parts["write_io"] = activity.writes * spec.io.write_pins * spec.io.write_mw * 1e-3 * seconds * pins
    return Energy(**parts)


def savings(nominal: Activity, reduced: Activity, spec: DramSpec, voltage: float) -> dict[VddLaw, float]:
    """Share of the nominal energy that ``reduced`` saves at ``voltage`` times the nominal VDD, under every law.

    Raises:
        ModelError: a voltage outside 0..1.
    """
    before = energy(nominal, spec).total
    return {law: 1 - energy(reduced, spec, law, voltage).total / before for law in LAWS}


def saving(shares: dict[VddLaw, float], law: VddLaw) -> Saving:
    """One law's share among all."""
    return Saving(law, shares[law], min(shares.values()), max(shares.values()))


def _factors(law: VddLaw | None, voltage: float) -> tuple[float, float]:
    """Of commands, and of standby."""
    if law is None or law.core is CoreLaw.LINEAR:
        return voltage, voltage
    return voltage**2, voltage if law.core is CoreLaw.DYNAMIC_SQUARE else voltage**2


def _rail(activity: Activity, spec: DramSpec, rail: Rail) -> dict[str, float]:
    clocks, burst = spec.clocks, spec.burst_clocks
    milliampere_clocks = {
        "activate": activity.activates * (rail.idd0 - rail.idd3n) * clocks.tras,
        "precharge": activity.precharges * (rail.idd0 - rail.idd2n) * clocks.trp,
        "read": activity.reads * (rail.idd4r - rail.idd3n) * burst,
        "write": activity.writes * (rail.idd4w - rail.idd3n) * burst,
        "refresh": activity.refreshes * (rail.idd5b - rail.idd3n) * clocks.trfc,
        "active_standby": activity.active_clocks * rail.idd3n,
        "precharge_standby": activity.precharged_clocks * rail.idd2n,
    }
    joules = rail.mv * 1e-3 * 1e-3 * spec.tck_ps * 1e-12 * spec.devices
    return {name: value * joules for name, value in milliampere_clocks.items()}
