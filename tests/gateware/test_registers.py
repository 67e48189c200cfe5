"""The register map is unambiguous and says of every register what it holds."""

from gateware import registers


def test_names_and_addresses_are_unique() -> None:
    names = [register.name for register in registers.REGISTERS]
    assert len(set(names)) == len(names)
    offsets, widths = registers.register_offsets(), {r.name: r.words for r in registers.REGISTERS}
    used = [offsets[name] + word for name in names for word in range(widths[name])]
    assert used == list(range(len(used)))
    bases = list(registers.memory_bases().values())
    assert len(set(bases)) == len(bases)
    assert max(bases) + registers.MEMORY_STRIDE <= registers.CSR_BASE


def test_every_entry_is_described() -> None:
    for entry in (*registers.REGISTERS, *registers.MEMORIES):
        assert entry.text.endswith("."), entry.name
        assert len(entry.text) > 15, entry.name


def test_documentation_lists_every_register_and_memory() -> None:
    lines = registers.documentation().splitlines()
    for register, offset in registers.register_offsets().items():
        assert sum(line.startswith(f"| {register} | {4 * offset:#06x} |") for line in lines) == 1
    for memory, base in registers.memory_bases().items():
        assert sum(line.startswith(f"| {memory} | {base:#x} |") for line in lines) == 1
