"""What a build says of itself: registers for people (Markdown), and what the host must know besides csr.json."""

import json
from dataclasses import asdict
from typing import Any
from zlib import crc32

from litedram.init import get_sdram_phy_init_sequence

from gateware.boards.base import Board
from gateware.soc import EdenSoC


def board_description(soc: EdenSoC, board: Board) -> dict[str, Any]:
    """What the host must know of a build besides csr.json.

    ``dram_init`` lists what the DRAM wants after power-up, in order. A step sets bits of LiteDRAM's register
    ``dfii_control``, or issues a command with ``dfii_pi0_command``, and waits ``delay_clocks`` system clocks.
    """
    settings = soc.ddrphy.settings
    steps, _ = get_sdram_phy_init_sequence(settings, soc.sdram.controller.settings.timing)
    return {
        "board": board.name,
        "title": board.title,
        "sys_clk_hz": soc.sys_clk_freq,
        "engine": {**vars(soc.parameters), "geometry": soc.parameters.geometry.model_dump()},
        "phy": {name: getattr(settings, name) for name in ("phytype", "memtype", "cl", "cwl", "bitslips", "delays")},
        "dram_init": [_init_step(*step) for step in steps],
        "rail": asdict(board.rail),
    }


def stamped_description(soc: EdenSoC, board: Board, **more: Any) -> str:
    """The text of board.json, whose CRC-32 becomes the SoC's register ``build``; the SoC must not be finalized yet.

    So the host finds the description of a board by asking the board.
    """
    text = json.dumps({**board_description(soc, board), **more}, indent=2)
    soc.engine.set_build(crc32(text.encode()))
    return text


def _init_step(comment: str, address: int, bank: int, flags: str, delay: int) -> dict[str, Any]:
    names = [flag.removeprefix("DFII_").lower().partition("_") for flag in flags.split("|")]
    return {
        "comment": comment,
        "register": names[0][0],
        "bits": [bit for _, _, bit in names],
        "address": address,
        "bank": bank,
        "delay_clocks": delay,
    }


def registers_document(soc: EdenSoC) -> str:
    """Every register of a finalized SoC as Markdown, from the registers' own descriptions."""
    lines = ["# Registers", "", "32-bit words; a register of several words has the low word first.", ""]
    for name, region in soc.csr.regions.items():
        lines += [
            f"## {name}",
            "",
            "| register | address | bits | access | reset | meaning |",
            "|---|---|---|---|---|---|",
        ]
        address = region.origin
        for csr in region.obj:
            lines.append(_row(csr, address))
            lines += [_field_row(csr, field) for field in getattr(getattr(csr, "fields", None), "fields", [])]
            address += 4 * -(-csr.size // region.busword)
        lines.append("")
    return "\n".join(lines)


def _row(csr: Any, address: int) -> str:
    storage, status = getattr(csr, "storage", None), getattr(csr, "status", None)
    value = storage if storage is not None else status
    access = "ro" if storage is None and status is not None else "rw"
    reset = f"{value.reset.value:#x}" if value is not None else ""
    meaning = _one_line(getattr(csr, "description", None)) or "(LiteX gives no description)"
    return f"| {csr.name} | {address:#010x} | {csr.size} | {access} | {reset} | {meaning} |"


def _field_row(csr: Any, field: Any) -> str:
    bits = f"{field.offset + field.size - 1}:{field.offset}" if field.size > 1 else str(field.offset)
    values = "; ".join(" ".join(map(str, value)) for value in field.values or [])
    meaning = " ".join(filter(None, (_one_line(field.description), values)))
    return f"| {csr.name}.{field.name} | | [{bits}] | | {field.reset_value:#x} | {meaning} |"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
