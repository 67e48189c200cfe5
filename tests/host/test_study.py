"""`eden study headline` writes rows and says what they depend on."""

import json
from pathlib import Path

from typer.testing import CliRunner

from host.cli.main import app


def test_headline_prints_and_writes(tmp_path: Path) -> None:
    out = tmp_path / "study/headline.json"
    chosen = ["--network", "SqueezeNet1.1", "--platform", "GPU", "--law", "linear"]
    result = CliRunner().invoke(app, ["study", "headline", "--out", str(out), *chosen])
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert [(row["network"], row["platform"], row["precision"]) for row in written["rows"]] == [
        ("SqueezeNet1.1", "GPU", "fp32"),
        ("SqueezeNet1.1", "GPU", "int8"),
    ]
    assert all(row["law"] == "linear, I/O unscaled" for row in written["rows"])
    assert "37.0 %" in result.output
    assert "GDDR5" in result.output
