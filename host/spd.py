"""A module's SPD image, decoded: what it is, how large, how fast, and at which voltage.

DDR3 as JEDEC 21-C Annex K (release 6) has it, DDR4 as Annex L (release 3 and later). The annexes were not at hand:
byte offsets were held against public decoders (illumos' libjedec, coreboot's bincfg), and both against images of Micron
modules whose CRC comes out (`tests/host/test_spd.py`). Unbuffered modules only: nothing here drives a register.
"""

from dataclasses import dataclass

from gateware.engine.parameters import EngineParameters
from host.timings import JedecTimings
from profiles.errors import BoardError

DDR3_BYTES, DDR4_BYTES = 256, 512
DEVICE_TYPE = 2  # byte
DDR3_DEVICE, DDR4_DEVICE = 0x0B, 0x0C

_DDR3_UNBUFFERED = {2: "UDIMM", 3: "SO-DIMM", 4: "Micro-DIMM", 6: "Mini-UDIMM", 9: "72b-SO-UDIMM", 12: "16b-SO-DIMM"}
_DDR3_UNBUFFERED[13] = "32b-SO-DIMM"
_DDR4_UNBUFFERED = {2: "UDIMM", 3: "SO-DIMM", 6: "Mini-UDIMM", 9: "72b-SO-UDIMM", 12: "16b-SO-DIMM", 13: "32b-SO-DIMM"}
_DENSITY_MBIT = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 12288, 24576)  # of a die, by its code
_DDR4_MTB_PS, _DDR4_FTB_PS = 125, 1
_DDR4_TRTP_PS = 7500  # JESD79-4; its SPD has none
_TREFI_PS = 7_800_000  # both standards, up to 85 °C
# JEP106, of those whose modules one meets; (bank, code without parity)
_MAKERS = {
    **{(0, 0x2C): "Micron", (0, 0x2D): "SK hynix", (0, 0x4E): "Samsung", (1, 0x18): "Kingston"},
    **{(2, 0x7E): "Elpida", (3, 0x0B): "Nanya", (5, 0x1B): "Crucial"},
}


@dataclass(frozen=True)
class Spd:
    """What an SPD image says. Times are minima, picoseconds.

    Attributes:
        memtype: "DDR3" or "DDR4".
        form: module type, e.g. "SO-DIMM".
        maker, part_number, serial_number: of the module; the serial number as eight hexadecimal digits.
        ranks, banks, rows, columns: banks of a rank, over its groups; rows and columns of a bank.
        data_width, chip_width: data lines of module and chip, without ECC lanes.
        ecc: whether it has ECC lanes beside.
        voltages_mv: supplies at which it works, millivolts.
        tck_min_ps, tck_max_ps: clock period, the latter None where the standard does not say.
        cas_latencies: CL that it can be set to.
        taa_ps: from READ to data.
        jedec: the other timings, those for the same bank group where there are two.
        image: the bytes.
    """

    memtype: str
    form: str
    maker: str
    part_number: str
    serial_number: str
    ranks: int
    banks: int
    rows: int
    columns: int
    data_width: int
    chip_width: int
    ecc: bool
    voltages_mv: tuple[int, ...]
    tck_min_ps: int
    tck_max_ps: int | None
    cas_latencies: tuple[int, ...]
    taa_ps: int
    jedec: JedecTimings
    image: bytes

    @property
    def mib(self) -> int:
        """Capacity, without ECC lanes."""
        return self.ranks * self.banks * self.rows * self.columns * self.data_width // 8 >> 20

    @property
    def megatransfers(self) -> int:
        """Fastest data rate, MT/s, rounded as speed grades are named."""
        return round(2e6 / self.tck_min_ps)


def decode(image: bytes) -> Spd:
    """Decode an SPD image: at least 128 bytes of DDR3, 384 of DDR4 (a longer tail belongs to the user).

    Raises:
        BoardError: it is not whole, fails its CRC, or describes no module that this toolkit can drive.
    """
    if len(image) <= DEVICE_TYPE:
        raise BoardError(f"an SPD image of {len(image)} bytes is none; read it again")
    device = image[DEVICE_TYPE]
    if device == DDR3_DEVICE:
        return _ddr3(_whole(image, 176, DDR3_BYTES))
    if device == DDR4_DEVICE:
        return _ddr4(_whole(image, 384, DDR4_BYTES))
    if set(image) <= {0x00, 0xFF}:
        raise BoardError(f"the SPD reads {image[0]:#04x} throughout: an empty EEPROM, or none; check module and I2C")
    raise BoardError(f"the SPD's device type {device:#04x} is neither DDR3 (0x0b) nor DDR4 (0x0c); use such a module")


def crc16(data: bytes) -> int:
    """CRC-16 of SPD images: polynomial 0x1021, most significant bit first, from 0."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x1021 if crc & 0x8000 else 0)) & 0xFFFF
    return crc


def check_against_build(spd: Spd, build: EngineParameters, memtype: str) -> list[str]:
    """Hold a module against the gateware that is to drive it.

    Returns:
        What is out of the standard and may work all the same, in words.

    Raises:
        BoardError: the gateware would address what is not there, or leave out what is, or drive it too fast.
    """
    g = build.geometry
    wanted = {
        **{"memory type": memtype, "banks": g.banks, "rows": g.rows, "columns": g.columns},
        **{"data lines": g.data_width, "data lines a chip": g.chip_width},
    }
    found = {
        **{"memory type": spd.memtype, "banks": spd.ranks * spd.banks, "rows": spd.rows, "columns": spd.columns},
        **{"data lines": spd.data_width, "data lines a chip": spd.chip_width},
    }
    if wrong := [f"{name} {found[name]}, not {wanted[name]}" for name in wanted if found[name] != wanted[name]]:
        raise BoardError(
            f"{spd.maker} {spd.part_number} has {'; '.join(wrong)} as the gateware was built for; put in such a "
            "module, or set `module` and `chip_width` in the board's file under gateware/boards and build it anew"
        )
    if build.tck_ps < spd.tck_min_ps:
        raise BoardError(
            f"the gateware's tCK of {build.tck_ps} ps is below the {spd.tck_min_ps} ps of {spd.part_number}; build it "
            "with a lower SYS_CLK_MHZ"
        )
    if build.cas_latency * build.tck_ps < spd.taa_ps:
        raise BoardError(
            f"CL {build.cas_latency} at {build.tck_ps} ps is sooner than the {spd.taa_ps} ps (tAA) of "
            f"{spd.part_number}; build the gateware with a lower SYS_CLK_MHZ"
        )
    remarks = []
    if spd.tck_max_ps is not None and build.tck_ps > spd.tck_max_ps:
        remarks.append(f"tCK {build.tck_ps} ps is above its {spd.tck_max_ps} ps: slower than the standard has it")
    if build.cas_latency not in spd.cas_latencies:
        remarks.append(f"CL {build.cas_latency} is none of its {', '.join(map(str, spd.cas_latencies))}")
    return remarks


# ---- the two standards -----------------------------------------------------------------------------------------------


def _ddr3(image: bytes) -> Spd:
    covered = 117 if image[0] & 0x80 else 126
    _check_crc(image[:covered], image[126:128], f"bytes 0 to {covered - 1}")
    if image[11] == 0 or image[10] == 0:
        raise BoardError("the SPD gives no medium timebase (bytes 10 and 11); the module cannot be used")
    mtb = 1000 * image[10] / image[11]
    ftb = (image[9] >> 4) / (image[9] & 0xF) if image[9] & 0xF else 0.0

    def ps(coarse: int, fine: int | None = None) -> int:
        return round(coarse * mtb + (_signed(image[fine]) * ftb if fine is not None else 0))

    voltages = (
        *(() if image[6] & 1 else (1500,)),
        *((1350,) if image[6] & 2 else ()),
        *((1250,) if image[6] & 4 else ()),
    )
    return Spd(
        memtype="DDR3",
        form=_form(image[3] & 0xF, _DDR3_UNBUFFERED),
        maker=_maker(image[117], image[118]),
        part_number=_text(image[128:146]),
        serial_number=image[122:126].hex().upper(),
        ranks=_field(image[7] >> 3 & 7, (1, 2, 3, 4, 8), 7, "ranks"),
        banks=8 << _limited(image[4] >> 4 & 7, 3, 4, "banks"),
        rows=1 << 12 + _limited(image[5] >> 3 & 7, 4, 5, "rows"),
        columns=1 << 9 + _limited(image[5] & 7, 3, 5, "columns"),
        data_width=8 << _limited(image[8] & 7, 3, 8, "bus width"),
        chip_width=4 << _limited(image[7] & 7, 3, 7, "chip width"),
        ecc=bool(image[8] >> 3 & 3),
        voltages_mv=voltages,
        tck_min_ps=_positive(ps(image[12], 34), "tCKmin"),
        tck_max_ps=None,
        cas_latencies=_listed(image[14] | (image[15] & 0x7F) << 8, 4),
        taa_ps=_positive(ps(image[16], 35), "tAA"),
        jedec=JedecTimings(
            trcd_ps=_positive(ps(image[18], 36), "tRCD"),
            trp_ps=_positive(ps(image[20], 37), "tRP"),
            tras_ps=_positive(ps(image[22] | (image[21] & 0xF) << 8), "tRAS"),
            trrd_ps=_positive(ps(image[19]), "tRRD"),
            tfaw_ps=_positive(ps(image[29] | (image[28] & 0xF) << 8), "tFAW"),
            trtp_ps=_positive(ps(image[27]), "tRTP"),
            twr_ps=_positive(ps(image[17]), "tWR"),
            trfc_ps=_positive(ps(image[24] | image[25] << 8), "tRFC"),
            trefi_ps=_TREFI_PS,
        ),
        image=image,
    )


def _ddr4(image: bytes) -> Spd:
    _check_crc(image[:126], image[126:128], "bytes 0 to 125")
    _check_crc(image[128:254], image[254:256], "bytes 128 to 253")
    if image[17] & 0xF:
        raise BoardError(f"the SPD's timebases (byte 17: {image[17]:#04x}) are not 125 ps and 1 ps; use another module")

    def ps(coarse: int, fine: int | None = None) -> int:
        return coarse * _DDR4_MTB_PS + (_signed(image[fine]) * _DDR4_FTB_PS if fine is not None else 0)

    if image[12] >> 6 & 1:
        raise BoardError("the module's ranks differ from one another (SPD byte 12); use one whose ranks are alike")
    if image[6] & 3 == 2 and image[6] >> 4 & 7:
        raise BoardError("the module stacks dies behind one load (3DS, SPD byte 6); use one that does not")
    latencies = int.from_bytes(image[20:24], "little")
    return Spd(
        memtype="DDR4",
        form=_form(image[3] & 0xF, _DDR4_UNBUFFERED),
        maker=_maker(image[320], image[321]),
        part_number=_text(image[329:349]),
        serial_number=image[325:329].hex().upper(),
        ranks=1 + (image[12] >> 3 & 7),
        banks=(4 << _limited(image[4] >> 4 & 3, 1, 4, "banks")) << _limited(image[4] >> 6, 2, 4, "bank groups"),
        rows=1 << 12 + _limited(image[5] >> 3 & 7, 6, 5, "rows"),
        columns=1 << 9 + _limited(image[5] & 7, 3, 5, "columns"),
        data_width=8 << _limited(image[13] & 7, 3, 13, "bus width"),
        chip_width=4 << _limited(image[12] & 7, 3, 12, "chip width"),
        ecc=bool(image[13] >> 3 & 3),
        voltages_mv=(1200,) if image[11] & 1 else (),
        tck_min_ps=_positive(ps(image[18], 125), "tCKmin"),
        tck_max_ps=_positive(ps(image[19], 124), "tCKmax"),
        cas_latencies=_listed(latencies & (1 << 30) - 1, 23 if latencies >> 31 else 7),
        taa_ps=_positive(ps(image[24], 123), "tAA"),
        jedec=JedecTimings(
            trcd_ps=_positive(ps(image[25], 122), "tRCD"),
            trp_ps=_positive(ps(image[26], 121), "tRP"),
            tras_ps=_positive(ps(image[28] | (image[27] & 0xF) << 8), "tRAS"),
            trrd_ps=_positive(ps(image[39], 118), "tRRD_L"),
            tfaw_ps=_positive(ps(image[37] | (image[36] & 0xF) << 8), "tFAW"),
            trtp_ps=_DDR4_TRTP_PS,
            twr_ps=_positive(ps(image[42] | (image[41] & 0xF) << 8), "tWR"),
            trfc_ps=_positive(ps(image[30] | image[31] << 8), "tRFC1"),
            trefi_ps=_TREFI_PS,
            tccd_ps=_positive(ps(image[40], 117), "tCCD_L"),
        ),
        image=image,
    )


# ---- fields ----------------------------------------------------------------------------------------------------------


def _whole(image: bytes, least: int, most: int) -> bytes:
    if not least <= len(image) <= most:
        raise BoardError(f"the SPD image has {len(image)} bytes; one of this type has {least} to {most}: read it again")
    return image


def _check_crc(data: bytes, stored: bytes, what: str) -> None:
    says, is_ = int.from_bytes(stored, "little"), crc16(data)
    if says != is_:
        raise BoardError(f"the SPD's CRC of {what} is {says:#06x}, they have {is_:#06x}; read it again, or replace it")


def _form(code: int, unbuffered: dict[int, str]) -> str:
    if code not in unbuffered:
        raise BoardError(f"module type {code} of the SPD is not unbuffered; use a UDIMM or SO-DIMM")
    return unbuffered[code]


def _field(code: int, values: tuple[int, ...], byte: int, what: str) -> int:
    return values[_limited(code, len(values) - 1, byte, what)]


def _limited(code: int, most: int, byte: int, what: str) -> int:
    if code > most:
        raise BoardError(f"byte {byte} of the SPD has code {code} for {what}, which the standard does not define")
    return code


def _positive(picoseconds: int, what: str) -> int:
    if picoseconds <= 0:
        raise BoardError(f"the SPD gives {picoseconds} ps for {what}; the module cannot be used")
    return picoseconds


def _signed(byte: int) -> int:
    return byte - (byte >> 7 << 8)


def _listed(bits: int, first: int) -> tuple[int, ...]:
    return tuple(first + k for k in range(bits.bit_length()) if bits >> k & 1)


def _maker(bank: int, code: int) -> str:
    known = _MAKERS.get((bank & 0x7F, code & 0x7F))
    return known or f"JEP106 bank {(bank & 0x7F) + 1}, code {code:#04x}"


def _text(characters: bytes) -> str:
    """Printable ASCII without the padding."""
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else " " for byte in characters)
    return " ".join(text.split()) or "(none)"
