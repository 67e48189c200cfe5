"""Published rates come in as they are: order, patterns and timings kept, and nothing made up that is not there."""

import os
from pathlib import Path

import polars
import pyarrow.parquet as pq
import pytest

from profiles.errors import ProfileError
from profiles.latency_study import import_latency_study, read_latency_study

HEAD = (
    ",Bank0,Bank1,Bank2,Bank3,Bank4,Bank5,Bank6,Bank7,DIMMBER,Label,Pattern,Temperature,VendorMask,tRAS,tRCD,tRP,Model"
)
LINES = (
    "0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,z1,0xff,20,C,35.0,12.5,10.0,C-M0",
    "1,0.0,0.4951,0.4954,0.495,0.4952,0.4949,0.4952,0.4957,0.4333,z1,0xff,20,C,35.0,12.5,5.0,C-M0",
    "2,0.1,0.2,0.25,0.2,0.2,0.2,0.2,0.2,0.19375,z1,0x0,70,C,35.0,12.5,5.0,C-M0",
    "3,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,z1,0xaa,20,C,35.0,12.5,12.5,C-M0",
    "5,0.0,9.3e-10,0.0,0.0,0.0,0.0,0.0,0.0,1.2e-10,z2,0xcc,20,A,35.0,7.5,12.5,A-M1",
)


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rates_come_in_as_published(tmp_path: Path) -> None:
    rows = read_latency_study(written(tmp_path / "study.csv", HEAD, *LINES)).to_pylist()
    assert len(rows) == 5 * 8
    assert [row["test"] for row in rows[::8]] == [0, 1, 2, 3, 5]
    assert rows[9] == {
        **{"test": 1, "dimm": "z1", "vendor": "C", "model": "C-M0", "pattern": "0xFF", "temperature_c": 20.0},
        **{"tras_ps": 35000, "trcd_ps": 12500, "trp_ps": 5000, "vdd_mv": None, "bank": 1, "ber": 0.4951},
        **{"errors": None, "trials": None},
    }
    # Bank 0 of a tRP test: untested where it reads 0, a rate where it does not; at nominal it cannot be told.
    assert [row["ber"] for row in rows if row["bank"] == 0] == [None, None, 0.1, None, 0.0]
    assert all(row["ber"] is not None for row in rows if row["bank"])


def test_the_table_names_its_source_and_is_read_by_others(tmp_path: Path) -> None:
    target = tmp_path / "new" / "study.parquet"
    assert import_latency_study(written(tmp_path / "study.csv", HEAD, *LINES), target) == 5
    metadata = pq.read_schema(target).metadata
    assert metadata[b"licence"] == b"BSD-3-Clause"
    assert b"SIGMETRICS 2016" in metadata[b"citation"]
    table = polars.read_parquet(target)
    assert table["ber"].null_count() == 3
    assert table["vdd_mv"].null_count() == table["trials"].null_count() == 40


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (("a,b", "1,2"), "no CSV of the latency study"),
        ((), "no CSV of the latency study"),
        ((HEAD, LINES[0].replace("35.0", "fast")), "no CSV of the latency study"),
        ((HEAD, LINES[0], LINES[1].replace("0.4951", "1.4951")), "rate of 1.4951 in line 3, outside 0..1"),
        ((HEAD, LINES[0].replace("10.0", "-10.0")), "tRP of -10.0 in line 2"),
        ((HEAD, LINES[0].replace("0xff", "plaid")), "pattern that is none"),
        ((HEAD, LINES[0].replace(",C,", ",,")), None),
        ((HEAD, LINES[0].replace("0,0.0,0.0", "0,,0.0")), "empty entries"),
        ((HEAD, LINES[0].replace("0,0.0,0.0", "0,nan,0.0")), "empty entries"),
        ((HEAD, "-" + LINES[1]), "test index of -1"),
    ],
)
def test_other_files_are_one_clear_line(lines: tuple[str, ...], says: str | None, tmp_path: Path) -> None:
    path = written(tmp_path / "study.csv", *lines)
    if says is None:  # a vendor that is not given is a text of its own
        assert read_latency_study(path).num_rows == 8
        return
    with pytest.raises(ProfileError, match=says) as caught:
        import_latency_study(path, tmp_path / "out.parquet")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.parquet").exists()


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot read"):
        read_latency_study(tmp_path / "none.csv")


@pytest.mark.skipif(
    "EDEN_LATENCY_STUDY" not in os.environ, reason="EDEN_LATENCY_STUDY names no copy of the study's CSV"
)
def test_the_study_itself() -> None:
    table = polars.from_arrow(read_latency_study(os.environ["EDEN_LATENCY_STUDY"]))
    assert isinstance(table, polars.DataFrame)
    at_spec = table.filter((polars.col("trcd_ps") >= 10_000) & (polars.col("trp_ps") >= 10_000))
    assert at_spec["ber"].max() == 0
    assert table.filter(polars.col("ber").is_null())["bank"].unique().to_list() == [0]
    at_5_ns = table.filter((polars.col("trcd_ps") == 5000) & (polars.col("vendor") == "B"))
    median = at_5_ns.group_by("dimm").agg(polars.col("ber").median())["ber"]
    assert median.min() > 0.17
    assert median.max() < 0.30
