"""Brings in the published measurements of Chang et al., "Understanding Latency Variation in Modern DRAM Chips",
SIGMETRICS 2016 (repository CMU-SAFARI/DRAM-Latency-Variation-Study, BSD-3-Clause): bit error rates of whole banks.

They are no profile: there are rates without counts of trials, no addresses, no supply voltage. What is not recorded
stays missing (null); nothing is filled in.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from profiles.errors import ProfileError
from profiles.files import atomic_file, disk_errors, one_line, read_bounded
from profiles.pattern import Pattern

CITATION = "K. K. Chang et al., Understanding Latency Variation in Modern DRAM Chips, SIGMETRICS 2016"
LICENCE = "BSD-3-Clause"
MAX_BYTES = 64 << 20
BANKS = 8
NOMINAL_NS = 12.5  # of tRCD and tRP: one of the two is swept in a test, the other stands at this

_COLUMNS = {
    "": pa.int64(),  # index of the test
    **{f"Bank{bank}": pa.float64() for bank in range(BANKS)},
    "DIMMBER": pa.float64(),
    **dict.fromkeys(("Label", "Pattern"), pa.string()),
    "Temperature": pa.float64(),
    "VendorMask": pa.string(),
    **dict.fromkeys(("tRAS", "tRCD", "tRP"), pa.float64()),
    "Model": pa.string(),
}
_SCHEMA = pa.schema(
    [
        ("test", pa.int32()),
        *((name, pa.string()) for name in ("dimm", "vendor", "model", "pattern")),
        ("temperature_c", pa.float64()),
        *((name, pa.int32()) for name in ("tras_ps", "trcd_ps", "trp_ps", "vdd_mv")),
        ("bank", pa.int8()),
        ("ber", pa.float64()),
        ("errors", pa.int64()),
        ("trials", pa.int64()),
    ],
    metadata={"source": "CMU-SAFARI/DRAM-Latency-Variation-Study", "citation": CITATION, "licence": LICENCE},
)


def read_latency_study(path: Path | str) -> Any:
    """The study's CSV as an Arrow table, one row for each bank of each test, in the order of testing.

    Columns: ``test`` (index in the published file: the order matters, see below), ``dimm``, ``vendor``, ``model``,
    ``pattern``, ``temperature_c``, ``tras_ps``, ``trcd_ps``, ``trp_ps``, ``bank``, ``ber`` (as published); and
    ``vdd_mv``, ``errors``, ``trials``, which are null because they were not published.

    In most tests of tRP bank 0 was not tested, and stands as 0 in the file. Whether a 0 there is such a one cannot be
    told, so ``ber`` is null wherever bank 0 reads 0 and tRCD is not the parameter that was swept. The file's mean over
    the banks, which took those for rates of 0, is left out. Results at 7.5 ns depend on the tests before on some DIMMs.

    Raises:
        ProfileError: the file is not of the study's layout, or holds what is no rate, pattern or timing.
    """
    path = Path(path)
    text = read_bounded(path, MAX_BYTES)
    try:
        table = pacsv.read_csv(
            io.BytesIO(text),
            convert_options=pacsv.ConvertOptions(column_types=_COLUMNS, strings_can_be_null=False),
        )
    except (pa.ArrowException, ValueError) as error:
        raise ProfileError(f"{path} is no CSV of the latency study ({one_line(error)}); check the file") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise ProfileError(f"{path} is no CSV of the latency study: it has no column '{missing[0]}'; check the file")
    table = table.combine_chunks()
    if any(table.column(name).null_count for name in _COLUMNS):
        raise ProfileError(f"{path} has empty entries, which the study has not; fetch it again")
    rates = np.stack([table.column(f"Bank{bank}").to_numpy() for bank in range(BANKS)], axis=1)
    _check(path, "rate", rates, (rates >= 0) & (rates <= 1), "0..1")
    timings = {name: table.column(name).to_numpy() for name in ("tRAS", "tRCD", "tRP")}
    for name, values in timings.items():
        _check(path, name, values, (values > 0) & (values <= 200), "0..200 ns")
    test = table.column("").to_numpy()
    _check(path, "test index", test, (test >= 0) & (test < 1 << 31), "0..2^31 - 1")
    untested = (rates[:, 0] == 0) & (timings["tRCD"] == NOMINAL_NS)
    known = np.ones(rates.shape, bool)
    known[untested, 0] = False
    columns = {
        "test": test,
        **{
            ours: table.column(name) for ours, name in (("dimm", "Label"), ("vendor", "VendorMask"), ("model", "Model"))
        },
        "pattern": pa.array(_patterns(path, table.column("Pattern").to_pylist())),
        "temperature_c": table.column("Temperature"),
        **{f"{name.lower()}_ps": np.rint(values * 1000).astype(np.int32) for name, values in timings.items()},
    }
    each_bank = np.repeat(np.arange(len(test)), BANKS)
    size = each_bank.size
    long = {name: pa.array(column).take(pa.array(each_bank)) if not isinstance(column, pa.ChunkedArray)
            else column.take(pa.array(each_bank)) for name, column in columns.items()}  # fmt: skip
    long |= {name: pa.nulls(size, _SCHEMA.field(name).type) for name in ("vdd_mv", "errors", "trials")}
    long["bank"] = pa.array(np.tile(np.arange(BANKS, dtype=np.int8), len(test)))
    long["ber"] = pa.array(rates.ravel(), mask=~known.ravel())
    return pa.table({name: long[name] for name in _SCHEMA.names}).cast(_SCHEMA)


def import_latency_study(path: Path | str, target: Path | str) -> int:
    """Write the table of `read_latency_study` as Parquet, source and licence in its metadata; returns the tests in it.

    Raises:
        ProfileError: as `read_latency_study`, or a full disk.
    """
    table, target = read_latency_study(path), Path(target)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as file:
        pq.write_table(table, file, compression="zstd")
    return int(table.num_rows) // BANKS


def _check(path: Path, what: str, values: Any, good: Any, limits: str) -> None:
    if not good.all():
        bad = np.argwhere(~good)[0]
        raise ProfileError(
            f"{path} has a {what} of {values[tuple(bad)]} in line {bad[0] + 2}, outside {limits}; fetch the file again"
        )


def _patterns(path: Path, texts: list[str]) -> list[str]:
    names = {}
    for text in set(texts):
        try:
            names[text] = str(Pattern.parse(text))
        except ValueError as error:
            raise ProfileError(f"{path} has a pattern that is none: {error}") from error
    return [names[text] for text in texts]
