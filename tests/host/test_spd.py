"""SPD images: golden ones of real modules, fields one by one, checks against a build, and any bytes at all."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateware.engine.parameters import EngineParameters
from host.bus import Words
from host.real_board import Module, check_supply
from host.spd import Spd, check_against_build, crc16, decode
from host.spd_eeprom import has_spd, read_spd
from host.timings import JedecTimings
from profiles.errors import BoardError
from profiles.geometry import Geometry
from tests.host.phy_stand_in import KINTEX, build_of

# Micron's own SPD listings, as LiteDRAM's tests hold them (test/spd_data/MT8JTF12864AZ-1G4G1.csv and
# MTA4ATF51264HZ-3G2E1.csv): the module family of the KC705, and the ZCU104's module. Serial number and date are 0
# there. Their CRCs come out, which is what tells that no byte was lost in copying.
DDR3_GOLDEN = (
    bytes.fromhex("92100B02 02110001 03520108 0C007E00 69786930 69112089 70033C3C 00F08205 0000")
    + bytes(26)
    + bytes.fromhex("0F010000")
    + bytes(53)
    + bytes.fromhex("802C0000 00000000 00 1461")
    + b"8JTF12864AZ-1G4G1 "
    + bytes.fromhex("4731802C")
    + bytes(26)
    + bytes([0xFF] * 80)
)
DDR4_GOLDEN = (
    bytes.fromhex("23110C03 45210008 00600003 02030000 0000050D F8FF2F00 6E6E6E11 006EF00A 20080005 00F02B34 28007800")
    + bytes.fromhex("143C")
    + bytes(14)
    + bytes.fromhex("16360B35 16360B35 0000 16360B35 16360B35")
    + bytes(39)
    + bytes.fromhex("009CB500 000000E7 00")
    + bytes.fromhex("204D")
    + bytes.fromhex("0F010200")
    + bytes(122)
    + bytes.fromhex("C0E2")
    + bytes(64)
    + bytes.fromhex("802C00 0000 00000000")
    + b"4ATF51264HZ-3G2E1   "
    + bytes.fromhex("31802C45")
    + bytes(31 + 128)
)
KC705 = replace(build_of(KINTEX, 8), geometry=Geometry(banks=8, rows=16384, columns=1024, data_width=64))
ZCU104 = replace(
    build_of(KINTEX, 8),
    geometry=Geometry(banks=8, rows=65536, columns=1024, data_width=64, chip_width=16),
    tck_ps=1000,
    cas_latency=14,
    cas_write_latency=11,
)


def sealed(image: bytes, **changes: int) -> bytes:
    """``image`` with bytes changed (``b7=0x12``), its CRCs right again."""
    data = bytearray(image)
    for name, value in changes.items():
        data[int(name[1:])] = value
    covered = 117 if data[2] == 0x0B and data[0] & 0x80 else 126
    data[126:128] = crc16(bytes(data[:covered])).to_bytes(2, "little")
    if data[2] == 0x0C:
        data[254:256] = crc16(bytes(data[128:254])).to_bytes(2, "little")
    return bytes(data)


def test_crc_is_the_one_of_the_check_string() -> None:
    assert crc16(b"123456789") == 0x31C3  # CRC-16/XMODEM in every catalogue of CRCs


def test_ddr3_golden_image() -> None:
    """Byte by byte: 02 1 Gb, 8 banks; 11 14 row and 10 column bits; 00 1.5 V only; 01 one rank of x8; 03 64 bits.

    Times in units of 1/8 ns: tCK 0C = 1.5; tAA, tRCD, tRP 69 = 13.125; tWR 78 = 15; tRRD 30 = 6; tRAS 120 = 36; tRFC
    0370 = 110; tRTP 3C = 7.5; tFAW 0F0 = 30 ns. CL 7E: bits 1 to 6, of CL 4 and up: 5 to 10.
    """
    assert len(DDR3_GOLDEN) == 256
    assert decode(DDR3_GOLDEN) == Spd(
        memtype="DDR3",
        form="UDIMM",
        maker="Micron",
        part_number="8JTF12864AZ-1G4G1",
        serial_number="00000000",
        ranks=1,
        banks=8,
        rows=16384,
        columns=1024,
        data_width=64,
        chip_width=8,
        ecc=False,
        voltages_mv=(1500,),
        tck_min_ps=1500,
        tck_max_ps=None,
        cas_latencies=(5, 6, 7, 8, 9, 10),
        taa_ps=13125,
        jedec=JedecTimings(13125, 13125, 36000, 6000, 30000, 7500, 15000, 110_000, 7_800_000),
        image=DDR3_GOLDEN,
    )
    assert decode(DDR3_GOLDEN).mib == 1024
    assert decode(DDR3_GOLDEN).megatransfers == 1333


def test_ddr4_golden_image() -> None:
    """45: 8 Gb, 4 banks in each of 2 groups; 21: 16 row and 10 column bits; 02: one rank of x16; 03: 64 bits; 1.2 V.

    Times in 125 ps: tCK 05 = 0.625; tCKmax 0D = 1.625 less 25 ps (E7) = 1.6; tAA, tRCD, tRP 6E = 13.75; tRAS 100 = 32;
    tRFC1 0AF0 = 350; tFAW F0 = 30; tRRD_L 34 = 6.5 less 100 ps (9C) = 6.4; tCCD_L 28 = 5; tWR 78 = 15 ns. CL F8 FF 2F
    from CL 7: bits 3 to 19 and 21: 10 to 26, 28.
    """
    assert len(DDR4_GOLDEN) == 512
    spd = decode(DDR4_GOLDEN)
    assert spd == Spd(
        memtype="DDR4",
        form="SO-DIMM",
        maker="Micron",
        part_number="4ATF51264HZ-3G2E1",
        serial_number="00000000",
        ranks=1,
        banks=8,
        rows=65536,
        columns=1024,
        data_width=64,
        chip_width=16,
        ecc=False,
        voltages_mv=(1200,),
        tck_min_ps=625,
        tck_max_ps=1600,
        cas_latencies=(*range(10, 27), 28),
        taa_ps=13750,
        jedec=JedecTimings(13750, 13750, 32000, 6400, 30000, 7500, 15000, 350_000, 7_800_000, 5000),
        image=DDR4_GOLDEN,
    )
    assert (spd.mib, spd.megatransfers) == (4096, 3200)


def test_fine_offsets_voltages_serial_and_ecc_of_ddr3() -> None:
    """FTB 52 = 5/2 ps: -50 (CE) of them take 125 ps off. Byte 6 bit 0 set: not 1.5 V; bits 1 and 2: 1.35 and 1.25 V."""
    spd = decode(sealed(DDR3_GOLDEN, b36=0xCE, b6=0x07, b8=0x0B, b122=0xDE, b123=0xAD, b124=0xBE, b125=0xEF, b7=0x09))
    assert spd.jedec.trcd_ps == 13000
    assert spd.voltages_mv == (1350, 1250)
    assert (spd.serial_number, spd.ecc, spd.ranks) == ("DEADBEEF", True, 2)
    assert decode(sealed(DDR3_GOLDEN, b6=2)).voltages_mv == (1500, 1350)


def test_a_crc_over_all_of_ddr3s_first_bytes() -> None:
    with pytest.raises(BoardError, match=r"CRC of bytes 0 to 116 is 0x6114, they have .*; read it again"):
        decode(DDR3_GOLDEN[:30] + b"\x83" + DDR3_GOLDEN[31:])
    assert decode(sealed(DDR3_GOLDEN, b0=0x12)).rows == 16384
    with pytest.raises(BoardError, match="bytes 0 to 125"):
        decode(sealed(DDR3_GOLDEN, b0=0x12)[:122] + b"\x01" + sealed(DDR3_GOLDEN, b0=0x12)[123:])


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (b"", "of 0 bytes is none"),
        (bytes([0xFF] * 256), "reads 0xff throughout: an empty EEPROM"),
        (bytes(256), "reads 0x00 throughout"),
        (b"\x23\x11\x12" + bytes(500), "device type 0x12 is neither"),
        (DDR3_GOLDEN[:100], "has 100 bytes; one of this type has 176 to 256"),
        (DDR4_GOLDEN[:256], "has 256 bytes; one of this type has 384 to 512"),
        (sealed(DDR3_GOLDEN, b3=1), "module type 1 of the SPD is not unbuffered"),
        (sealed(DDR4_GOLDEN, b3=4), "module type 4 of the SPD is not unbuffered"),
        (sealed(DDR3_GOLDEN, b7=0x39), "byte 7 of the SPD has code 7 for ranks"),
        (sealed(DDR3_GOLDEN, b5=0x3F), "byte 5 of the SPD has code 7 for rows"),
        (sealed(DDR3_GOLDEN, b11=0), "no medium timebase"),
        (sealed(DDR3_GOLDEN, b18=0), "0 ps for tRCD"),
        (sealed(DDR4_GOLDEN, b17=5), "timebases"),
        (sealed(DDR4_GOLDEN, b12=0x42), "ranks differ"),
        (sealed(DDR4_GOLDEN, b6=0xB2), "stacks dies"),
        (DDR4_GOLDEN[:200] + b"\x01" + DDR4_GOLDEN[201:], "CRC of bytes 128 to 253"),
    ],
)
def test_images_that_cannot_be_used_say_why(image: bytes, says: str) -> None:
    with pytest.raises(BoardError, match=says):
        decode(image)


@settings(max_examples=300)
@given(
    st.sampled_from([DDR3_GOLDEN, DDR4_GOLDEN]),
    st.lists(st.tuples(st.integers(0, 383), st.integers(0, 255)), max_size=12),
    st.booleans(),
    st.integers(0, 600),
)
def test_any_image_is_decoded_or_refused(
    golden: bytes, changes: list[tuple[int, int]], seal: bool, length: int
) -> None:
    data = bytearray(golden)
    for at, value in changes:
        data[at % len(golden)] = value
    image = sealed(bytes(data)) if seal else bytes(data)
    for candidate in (image, image[:length], bytes(data[2:3]) * length):
        try:
            spd = decode(candidate)
        except BoardError:
            continue
        assert min(spd.banks, spd.rows, spd.columns, spd.ranks, spd.tck_min_ps, spd.jedec.trcd_ps) > 0
        assert spd.rows <= 1 << 18
        assert spd.part_number.isprintable()


@given(st.sampled_from([DDR3_GOLDEN, DDR4_GOLDEN]), st.integers(0, 125 * 8 - 1))
def test_no_flipped_bit_of_the_covered_bytes_goes_unseen(golden: bytes, bit: int) -> None:
    at = bit // 8 % 117
    flipped = golden[:at] + bytes([golden[at] ^ 1 << bit % 8]) + golden[at + 1 :]
    with pytest.raises(BoardError):
        decode(flipped)


# ---- against gateware and supply -------------------------------------------------------------------------------------


def test_the_boards_own_modules_fit_their_gateware() -> None:
    assert check_against_build(decode(DDR3_GOLDEN), KC705, "DDR3") == []
    assert check_against_build(decode(DDR4_GOLDEN), ZCU104, "DDR4") == []


@pytest.mark.parametrize(
    ("spd", "build", "says"),
    [
        ({"b5": 0x19}, KC705, "8JTF12864AZ-1G4G1 has rows 32768, not 16384 as the gateware was built for; put in such"),
        ({"b7": 0x09}, KC705, "banks 16, not 8"),
        ({"b7": 0x02, "b8": 0x02}, KC705, "data lines 32, not 64; data lines a chip 16, not 8"),
        ({}, ZCU104, "memory type DDR3, not DDR4; rows 16384, not 65536"),
        ({"b12": 0x14}, KC705, "tCK of 2000 ps is below the 2500 ps"),
        ({"b16": 0x80}, KC705, "CL 7 at 2000 ps is sooner than the 16000 ps"),
    ],
)
def test_another_module_than_the_gatewares_is_refused(spd: dict[str, int], build: EngineParameters, says: str) -> None:
    memtype = "DDR4" if build is ZCU104 else "DDR3"
    with pytest.raises(BoardError, match=says):
        check_against_build(decode(sealed(DDR3_GOLDEN, **spd)), build, memtype)


def test_what_is_only_out_of_the_standard_is_remarked() -> None:
    slow = replace(ZCU104, tck_ps=2000, cas_latency=9)
    first, second = check_against_build(decode(DDR4_GOLDEN), slow, "DDR4")
    assert "tCK 2000 ps is above its 1600 ps" in first
    assert "CL 9 is none of its 10, 11" in second


def test_a_supply_for_another_dram_is_refused() -> None:
    class About:
        about = {"title": "KC705", "phy": {"memtype": "DDR3"}}  # noqa: RUF012

    module = Module(decode(DDR3_GOLDEN), ())
    check_supply("DDR3", 1500, module.spd, About)  # type: ignore[arg-type]
    check_supply("DDR3L", 1350, None, About)  # type: ignore[arg-type]
    with pytest.raises(BoardError, match=r"has 1350 mV for nominal, the SPD of 8JTF.* 1500 mV; set dram to DDR3 there"):
        check_supply("DDR3L", 1350, module.spd, About)  # type: ignore[arg-type]
    with pytest.raises(BoardError, match="for DDR4, the gateware of KC705 for DDR3"):
        check_supply("DDR4", 1200, None, About)  # type: ignore[arg-type]


# ---- over I2C --------------------------------------------------------------------------------------------------------

I2C = {f"i2c_host_{name}": 0xF0002800 + 4 * k for k, name in enumerate(("data", "transaction", "result"))}


class I2cStandIn:
    """The gateware's SMBus master, a PCA9548 and an EEPROM behind it: EE1002 (256 bytes) or EE1004 (two pages)."""

    def __init__(self, image: bytes, switch: int | None, channel: int = 6) -> None:
        self.image, self.switch, self.channel = image, switch, channel
        self.open_channels = 0 if switch else 1 << channel
        self.page = self.data = self.result = self.transactions = 0

    def read(self, address: int, count: int) -> Words:
        assert (address, count) == (I2C["i2c_host_result"], 1)
        return np.array([self.result], np.uint32)

    def write(self, address: int, words: Words) -> None:
        if address == I2C["i2c_host_data"]:
            self.data = int(words[0])
            return
        assert address == I2C["i2c_host_transaction"]
        self.transactions += 1
        value = int(words[0])
        answer = self._answer(value & 0xFF, value >> 8 & 0x7F, bool(value >> 15 & 1), bool(value >> 16 & 1))
        self.result = 1 << 16 if answer is None else answer

    def _answer(self, command: int, device: int, word: bool, read: bool) -> int | None:
        if device == self.switch and not read:
            self.open_channels = self.data & 0xFF
            return 0
        if not self.open_channels >> self.channel & 1:
            return None
        if device in (0x36, 0x37) and len(self.image) > 256 and not read:
            self.page = device - 0x36
            return 0
        if device == 0x50 and read:
            at = 256 * self.page + command
            return int.from_bytes(self.image[at : at + 1 + word], "little")
        return None

    def close(self) -> None:
        """Nothing to release."""


def test_the_spd_is_read_through_the_kc705s_switch() -> None:
    bus = I2cStandIn(DDR3_GOLDEN, switch=0x74)
    assert read_spd(bus, I2C, "kc705", "DDR3") == DDR3_GOLDEN
    assert bus.transactions == 129
    with pytest.raises(BoardError, match=r"no SPD EEPROM answers .*; is a module in the socket"):
        read_spd(I2cStandIn(DDR3_GOLDEN, switch=0x74, channel=5), I2C, "kc705", "DDR3")


def test_both_pages_of_a_ddr4_spd_are_read() -> None:
    bus = I2cStandIn(DDR4_GOLDEN, switch=None)
    bus.page = 1  # as somebody left it
    assert read_spd(bus, I2C, "another", "DDR4") == DDR4_GOLDEN
    assert bus.page == 0


def test_boards_without_an_i2c_master_have_no_spd() -> None:
    assert has_spd(I2C)
    assert not has_spd({"rail_host_transaction": 0})
