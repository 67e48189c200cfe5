"""How makes of bench supply are spoken to, as data: what is sent, and which identity answers to it.

Commands are of the makers' programming guides: Keysight E36300, E36100 and N6700 series, Rigol DP800 series, Siglent
SPD3000X series. They were checked against public drivers (PyMeasure's of the E36312A, labgrid's of the SPD3303X-E) and
excerpts of the guides (DP800, SPD3000X); E36100 and N6700 against nothing, and no supply was at hand. A setting that is
not taken cannot go unnoticed: the supply is asked for it each time.
"""

import re
from dataclasses import dataclass, replace


def _make(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """Commands of one make; ``{channel}`` and ``{volts}`` are filled in.

    Attributes:
        title: what it fits, for people.
        identity: pattern that the answer to ``*IDN?`` must hold.
        channels: outputs that can be set, from 1.
        set, ask_set: the output's voltage, and what it is set to (volts).
        measure_voltage, measure_current, measure_power: readings (volts, amperes, watts); None: it has no such command.
        ask_output: whether the output is on: 1 or ON, or a bit of a status word.
        ask_error: the oldest error in its queue; one that begins with 0 is none.
        first_output_bit: bit of that word, in hexadecimal, for output 1, the others follow; None: it is no such word.
        resolution_mv: what settings are multiples of.
    """

    title: str
    identity: re.Pattern[str]
    channels: int
    set: str
    ask_set: str
    measure_voltage: str
    measure_current: str
    measure_power: str | None
    ask_output: str
    ask_error: str = "SYST:ERR?"
    first_output_bit: int | None = None
    resolution_mv: int = 1

    def output_is_on(self, channel: int, answer: str) -> bool:
        """What the answer to ``ask_output`` says of an output. Raises ValueError where it is no such answer."""
        if self.first_output_bit is not None:
            return bool(int(answer, 16) >> (self.first_output_bit + channel - 1) & 1)
        return answer.strip().upper() in ("1", "+1", "ON")


_E36300 = Dialect(
    title="Keysight E36200 and E36300 series (E36231A … E36313A)",
    identity=_make(r"(keysight|agilent).*,E36[23]\d\dA"),
    channels=3,
    set="VOLT {volts},(@{channel})",
    ask_set="VOLT? (@{channel})",
    measure_voltage="MEAS:VOLT? (@{channel})",
    measure_current="MEAS:CURR? (@{channel})",
    measure_power=None,
    ask_output="OUTP? (@{channel})",
)
_DP800A = Dialect(
    title="Rigol DP800A series (DP811A … DP832A)",
    identity=_make(r"rigol.*,DP8\d\dA"),
    channels=3,
    set=":SOUR{channel}:VOLT {volts}",
    ask_set=":SOUR{channel}:VOLT?",
    measure_voltage=":MEAS:VOLT? CH{channel}",
    measure_current=":MEAS:CURR? CH{channel}",
    measure_power=":MEAS:POWE? CH{channel}",
    ask_output=":OUTP? CH{channel}",
    ask_error=":SYST:ERR?",
)
_SPD3303X = Dialect(
    title="Siglent SPD3303X (its third output cannot be set)",
    identity=_make(r"siglent.*,SPD3303X(?!-E)"),
    channels=2,
    set="CH{channel}:VOLT {volts}",
    ask_set="CH{channel}:VOLT?",
    measure_voltage="MEAS:VOLT? CH{channel}",
    measure_current="MEAS:CURR? CH{channel}",
    measure_power="MEAS:POWE? CH{channel}",
    ask_output="SYST:STAT?",
    first_output_bit=4,
)

DIALECTS = {
    "keysight-e36300": _E36300,
    "keysight-e36100": Dialect(
        title="Keysight E36100 series (E36102A … E36106B), one output",
        identity=_make(r"(keysight|agilent).*,E361\d\d[AB]"),
        channels=1,
        set="VOLT {volts}",
        ask_set="VOLT?",
        measure_voltage="MEAS:VOLT?",
        measure_current="MEAS:CURR?",
        measure_power=None,
        ask_output="OUTP?",
    ),
    "keysight-n6700": replace(
        _E36300,
        title="Keysight N6700 series mainframes (N6700C … N6705C)",
        identity=_make(r"(keysight|agilent).*,N67\d\d[ABC]"),
        channels=4,
    ),
    "rigol-dp800a": _DP800A,
    "rigol-dp800": replace(
        _DP800A,
        title="Rigol DP800 series (DP811 … DP832), which set 10 mV at a time without their high-resolution option",
        identity=_make(r"rigol.*,DP8\d\d(?!A)"),
        resolution_mv=10,
    ),
    "siglent-spd3303x": _SPD3303X,
    "siglent-spd3303x-e": replace(
        _SPD3303X,
        title="Siglent SPD3303X-E, which sets 10 mV at a time",
        identity=_make(r"siglent.*,SPD3303X-E"),
        resolution_mv=10,
    ),
}
