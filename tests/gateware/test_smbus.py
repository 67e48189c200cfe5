"""SMBus transactions, bit by bit, against a device that acknowledges, refuses, stretches and hangs."""

from collections.abc import Generator

import pytest
from migen import run_simulation

from gateware.smbus import BLOCK_BYTES, SMBusMaster, SMBusStatus
from tests.gateware.pmbus_target import PmbusTarget

CLK_FREQ = 800e3  # two clocks a quarter bit
STRETCH_MS = 4  # instead of 35, to be simulated in a second
ADDRESS = 0x34
OK, REFUSED, STUCK = SMBusStatus.OK, SMBusStatus.NOT_ACKNOWLEDGED, SMBusStatus.STUCK


def transactions(
    target: PmbusTarget, *wanted: tuple[bool, bool, int, int, int], block: bool = False, blocks: list[int] | None = None
) -> list[tuple[SMBusStatus, int]]:
    """Run (read, word, address, command, data) one after the other; returns (status, data read) of each.

    ``blocks`` takes what the register of the last block holds after each.
    """
    master, ends = target.master, []

    def run() -> Generator:
        yield from [None] * 5
        for read, word, address, command, data in wanted:
            yield master.wanted.eq(data | command << 16 | address << 24 | word << 31 | read << 32 | block << 33)
            yield master.start.eq(1)
            yield
            yield master.start.eq(0)
            yield
            for _ in range(200_000):
                if (yield master.done):
                    break
                yield
            else:
                raise AssertionError("the transaction does not end")
            ends.append((SMBusStatus((yield master.status)), (yield master.read_data)))
            if blocks is not None:
                blocks.append((yield master.block))
            assert ((yield master.scl), (yield master.sda)) == (1, 1)
        yield from [None] * 20

    run_simulation(master, [run(), target.wires()])
    return ends


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> PmbusTarget:
    monkeypatch.setattr("gateware.smbus.STRETCH_MS", STRETCH_MS)
    return PmbusTarget(SMBusMaster(CLK_FREQ), ADDRESS)


def test_bytes_and_words_arrive_whole_and_in_order(target: PmbusTarget) -> None:
    ends = transactions(
        target,
        (False, False, ADDRESS, 0x00, 0x02),
        (False, True, ADDRESS, 0x21, 0xA5C3),
        (False, False, ADDRESS, 0x01, 0xFF80),  # a byte write sends the low byte only
        (True, True, ADDRESS, 0x21, 0),
        (True, False, ADDRESS, 0x21, 0),
        (True, True, ADDRESS, 0x8B, 0xFFFF),
    )
    assert target.writes == [(2, 0x00, b"\x02"), (2, 0x21, b"\xc3\xa5"), (2, 0x01, b"\x80")]
    assert ends == [(OK, 0), (OK, 0), (OK, 0), (OK, 0xA5C3), (OK, 0xC3), (OK, 0)]


@pytest.mark.parametrize("value", [0x0000, 0xFFFF, 0x0001, 0x8000, 0x7F01])
def test_every_bit_pattern_is_read_as_it_was_written(target: PmbusTarget, value: int) -> None:
    ends = transactions(target, (False, True, ADDRESS, 0x21, value), (True, True, ADDRESS, 0x21, 0))
    assert ends == [(OK, 0), (OK, value)]


def test_a_stretched_clock_is_waited_for(target: PmbusTarget) -> None:
    target.stretch = 500
    ends = transactions(target, (False, True, ADDRESS, 0x21, 0x1234), (True, True, ADDRESS, 0x21, 0))
    assert ends == [(OK, 0), (OK, 0x1234)]


def test_a_device_that_is_not_there_or_refuses_is_told_from_one_that_takes(target: PmbusTarget) -> None:
    target.refused_commands = frozenset({0x40})
    ends = transactions(
        target,
        (False, True, ADDRESS + 1, 0x21, 1),
        (True, True, ADDRESS + 1, 0x21, 0),
        (False, True, ADDRESS, 0x40, 1),
        (True, True, ADDRESS, 0x40, 1),
        (False, True, ADDRESS, 0x21, 1),
    )
    assert ends == [(REFUSED, 0)] * 4 + [(OK, 0)]
    assert target.writes == [(0, 0x21, b"\x01\x00")]


def test_a_device_cut_off_in_the_middle_of_a_0_is_clocked_free(target: PmbusTarget) -> None:
    """Before the first transaction the device still sends a byte of 0s to a master that is gone."""
    target.registers[0, 0x21] = 0
    target.stuck_sending = 5
    assert transactions(target, (False, False, ADDRESS, 0x21, 7)) == [(OK, 0)]
    assert target.writes == [(0, 0x21, b"\x07")]


@pytest.mark.parametrize(("line", "clocks"), [("hold_scl", 4000), ("hold_sda", 180)])
def test_a_line_held_low_ends_in_stuck_and_a_freed_one_works_again(target: PmbusTarget, line: str, clocks: int) -> None:
    setattr(target, line, clocks)
    write = (False, True, ADDRESS, 0x21, 1)
    assert transactions(target, write, write) == [(STUCK, 0), (OK, 0)]
    assert target.writes == [(0, 0x21, b"\x01\x00")]


def test_a_clock_is_not_held_for_longer_than_allowed(target: PmbusTarget) -> None:
    target.stretch = round(CLK_FREQ * STRETCH_MS / 1000) + 1000
    assert transactions(target, (False, True, ADDRESS, 0x21, 1)) == [(STUCK, 0)]
    assert target.writes == []


def test_another_master_that_wins_is_let_through(target: PmbusTarget) -> None:
    """The line stays low where this master lets it go: someone else sends a 0."""
    target.rival = True
    assert transactions(target, (False, True, ADDRESS, 0x21, 1)) == [(STUCK, 0)]
    assert target.writes == []


@pytest.mark.parametrize("length", [1, 2, 7, BLOCK_BYTES])
def test_a_block_is_read_to_its_end_and_no_further(target: PmbusTarget, length: int) -> None:
    content = bytes(range(0x41, 0x41 + length))
    target.registers[0, 0xFD] = int.from_bytes(bytes([length]) + content, "little")
    blocks: list[int] = []
    read = (True, True, ADDRESS, 0xFD, 0)
    ends = transactions(target, read, read, block=True, blocks=blocks)
    assert ends == [(OK, length | content[-1] << 8)] * 2
    assert [block.to_bytes(BLOCK_BYTES, "little")[-length:] for block in blocks] == [content] * 2
    assert target.sent_bytes == 2 * (1 + length)


def test_a_block_that_is_empty_ends_too(target: PmbusTarget) -> None:
    target.registers[0, 0xFD] = 0
    blocks: list[int] = []
    assert transactions(target, (True, True, ADDRESS, 0xFD, 0), block=True, blocks=blocks) == [(OK, 0)]
    assert blocks == [0]


def test_of_a_block_longer_than_any_may_be_only_so_much_is_read(target: PmbusTarget) -> None:
    content = bytes(range(1, 60))
    target.registers[0, 0xFD] = int.from_bytes(b"\xff" + content, "little")
    blocks: list[int] = []
    read, write = (True, True, ADDRESS, 0xFD, 0), (False, True, ADDRESS, 0x21, 7)
    ends = transactions(target, read, write, block=True, blocks=blocks)
    assert blocks[0].to_bytes(BLOCK_BYTES, "little") == content[:BLOCK_BYTES]
    assert ends[1] == (OK, 0)  # the device has let go of the bus
