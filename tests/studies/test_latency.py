"""The study of real modules: its arithmetic on made-up files, its claims on the published one where there is one."""

import os
from pathlib import Path

import numpy as np
import pytest

from profiles.errors import ProfileError
from tests.studies import latency


@pytest.mark.skipif("EDEN_LATENCY_CSV" not in os.environ, reason="set EDEN_LATENCY_CSV to the study's CSV file")
def test_real_modules_follow_the_error_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert latency.main([os.environ["EDEN_LATENCY_CSV"]]) == 0
    assert "Model 3 beats Model 0 in" in capsys.readouterr().out


def written(path: Path, rates: dict[str, float], trcd: str = "5.0", trp: str = "12.5", vendor: str = "C") -> None:
    """Append one row a pattern, eight banks of slightly different rates."""
    columns = [f"Bank{bank}" for bank in range(8)]
    new = not path.exists()
    with path.open("a") as file:
        if new:
            file.write(",".join([*columns, "Label", "Pattern", "Temperature", "VendorMask", "tRCD", "tRP"]) + "\n")
        for pattern, rate in rates.items():
            banks = [str(rate * (1 + 0.01 * bank)) for bank in range(8)]
            file.write(",".join([*banks, "m1", pattern, "20", vendor, trcd, trp]) + "\n")


def test_a_module_that_is_linear_in_ones_is_model_3s(tmp_path: Path) -> None:
    file = tmp_path / "made_up.csv"
    written(file, {"0x0": 0.2, "0xaa": 0.11, "0xcc": 0.111, "0xff": 0.02})
    written(file, dict.fromkeys(("0x0", "0xff"), 0.0), trcd="10.0")
    written(file, {"0x0": 0.4, "0xff": 0.4}, trp="5.0")  # a sweep of tRP: left out
    (dimm,) = latency.dimms(file)
    assert dimm.rates[0] == pytest.approx(0.2 * (1 + 0.01 * np.arange(8)))
    assert dimm.slope == pytest.approx(-0.18 / 0.11025)
    assert dimm.bic_gain > 50
    assert dimm.excess == pytest.approx((0.0, 0.111 / 0.11 - 1))
    latency.check([dimm])


@pytest.mark.parametrize(
    ("rates", "trcd", "message"),
    [
        ({"0x0": 0.1, "0xaa": 0.2, "0xcc": 0.05, "0xff": 0.1}, "12.5", "Model 3 beats Model 0 in 0 of 1"),
        ({"0x0": 0.2, "0xaa": 0.12, "0xcc": 0.11, "0xff": 0.02}, "12.5", "vendor C is off by 9"),
        ({"0x0": 0.2, "0xaa": 0.11, "0xcc": 0.11, "0xff": 0.02}, "10.0", None),
    ],
)
def test_modules_that_differ_from_the_study_fail(
    tmp_path: Path, rates: dict[str, float], trcd: str, message: str | None
) -> None:
    file = tmp_path / "made_up.csv"
    written(file, rates)
    written(file, {"0x0": 1e-9 if message is None else 0.0}, trcd=trcd)
    with pytest.raises(AssertionError, match=message):
        latency.check(list(latency.dimms(file)))


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ProfileError, match="cannot read"):
        list(latency.dimms(tmp_path / "none.csv"))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert latency.main([str(tmp_path / "other.csv")]) == 1
    assert "lacks 'tRP'" in capsys.readouterr().err
