"""Every board makes a SoC whose registers the host finds, whose DRAM the engine knows, and which says what it is."""

import json
from functools import cache

import pytest
from litex.soc.integration.export import get_csr_json

from gateware.boards import BOARDS
from gateware.build import boards_document
from gateware.description import board_description, registers_document
from gateware.registers import CSR_BASE, REGISTERS, memory_bases, register_offsets
from gateware.soc import DRAM_BASE, EdenSoC
from profiles.errors import BoardError

NAMES = sorted(BOARDS)
OURS = ("engine", "serial_bridge", "rail")  # regions whose registers must all be described


@cache
def finalized(name: str) -> EdenSoC:
    board = BOARDS[name]
    soc = board.soc(board.sys_clk_freq)
    soc.finalize()
    return soc


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_registers_and_memories_are_where_the_host_looks(name: str) -> None:
    soc = finalized(name)
    csr = json.loads(get_csr_json(soc.csr.regions, soc.constants, soc.bus.regions))
    for register in REGISTERS:
        found = csr["csr_registers"][f"engine_{register.name}"]
        assert found["addr"] == CSR_BASE + 4 * register_offsets()[register.name]
        assert found["size"] == register.words
        assert found["type"] == ("rw" if register.writable else "ro")
    assert {memory: csr["memories"][memory]["base"] for memory in memory_bases()} == memory_bases()
    assert csr["memories"]["main_ram"]["base"] == DRAM_BASE
    assert soc.bus.masters, "nobody can reach the board"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_engine_knows_the_board(name: str) -> None:
    soc, board = finalized(name), BOARDS[name]
    parameters, settings = soc.parameters, soc.ddrphy.settings
    geometry = parameters.geometry
    assert parameters.nphases == board.nphases == settings.nphases
    assert geometry.burst_bits == settings.nphases * settings.dfi_databits
    assert len(soc.engine.dfi.phases[0].wrdata) == len(soc.sdram.dfii.ext_dfi.phases[0].wrdata)
    assert geometry.banks == settings.nranks << soc.sdram.controller.settings.geom.bankbits
    assert 0 <= parameters.read_phase < parameters.nphases
    assert parameters.tck_ps == board.tck_ps(board.sys_clk_freq) == board.trcd_ps(board.sys_clk_freq)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_build_describes_itself(name: str) -> None:
    soc, board = finalized(name), BOARDS[name]
    description = json.loads(json.dumps(board_description(soc, board)))
    assert description["engine"]["geometry"]["rows"] == soc.parameters.geometry.rows
    modes = [step for step in description["dram_init"] if "Mode Register" in step["comment"]]
    assert {step["register"] for step in description["dram_init"]} == {"control", "command"}
    assert len(modes) >= 4
    assert all(sorted(step["bits"]) == ["cas", "cs", "ras", "we"] for step in modes)
    document = registers_document(soc)
    for register in REGISTERS:
        assert f"| {register.name} | {CSR_BASE + 4 * register_offsets()[register.name]:#010x} |" in document
    for region in OURS:
        for line in document.partition(f"## {region}\n")[2].partition("\n## ")[0].splitlines():
            assert "no description" not in line


def test_trcd_points_are_whole_dram_clocks_up_to_nominal() -> None:
    assert BOARDS["kc705"].trcd_ps(125e6) == [2000, 4000, 6000, 8000, 10000, 12000, 14000]
    assert BOARDS["ecpix5"].trcd_ps(75e6) == [6667, 13333, 20000]
    assert BOARDS["ecpix5"].trcd_ps(100e6) == [5000, 10000, 15000]


def test_the_list_names_every_board_with_its_points() -> None:
    lines = boards_document().splitlines()[2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == list(BOARDS)
    assert "2.5, 5, 7.5, 10, 12.5, 15 ns" in next(line for line in lines if line.startswith("| arty_a7"))


@pytest.mark.parametrize("name", NAMES)
def test_a_clock_that_the_pll_cannot_make_is_refused(name: str) -> None:
    with pytest.raises(BoardError, match="SYS_CLK_MHZ"):
        BOARDS[name].soc(1e6)
