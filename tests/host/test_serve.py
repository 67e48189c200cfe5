"""What `eden serve` answers: all of the folder, nothing outside it, no script of a stranger, and never a crash."""

import json
import os
import re
import shutil
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from host.web import folder as web_folder
from host.web.app import application
from host.web.folder import Folder
from profiles.bank_map import bank_map
from profiles.schema import OperatingPoint, WriteCondition
from profiles.statistics import ber
from profiles.storage import Profile, appending
from tests.host.command import begin
from tests.host.served import (
    ALL,
    GEOMETRY,
    HALF,
    HOSTILE,
    damaged_header,
    damaged_point,
    hostile_scan,
    stopped_scan,
    whole_scan,
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each kind."""
    lab = tmp_path_factory.mktemp("served") / "lab"
    whole_scan(lab / "whole")
    stopped_scan(lab / "deep" / "down" / "half")
    hostile_scan(lab / "<i>hostile & co")
    damaged_header(lab / "damaged header")
    damaged_point(lab / "damaged point")
    (lab / "run").mkdir()
    (lab / "run" / "report.html").write_text(f"<h1>A run</h1>{HOSTILE}")
    return lab


@pytest.fixture
def served(lab: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr(web_folder, "LOOK_S", 0.0)
    return client_of(lab)


def client_of(folder: Path) -> TestClient:
    return TestClient(application(Folder(folder), ["lab-computer"]), base_url="http://localhost:8042")


def listed(served: TestClient) -> dict[str, dict[str, Any]]:
    """Profiles by the last part of their name."""
    entries = served.get("/api/overview").json()["profiles"]
    return {entry["name"].rpartition("/")[2]: entry for entry in entries}


def test_the_list_holds_everything_and_its_state(served: TestClient, lab: Path) -> None:
    found = listed(served)
    assert {name: entry["state"] for name, entry in found.items()} == {
        **{"whole": "complete", "half": "stopped", "<i>hostile & co": "stopped", "damaged header": "damaged"},
        **{"damaged point": "stopped"},
    }
    assert found["half"]["name"] == "deep/down/half"
    assert (found["half"]["done"], found["half"]["planned"]) == (HALF, ALL)
    assert "profile.json is damaged" in found["damaged header"]["error"]
    (report,) = served.get("/api/overview").json()["reports"]
    assert report["name"] == "run/report.html"


def test_a_scan_runs_while_its_process_holds_it(served: TestClient, lab: Path) -> None:
    with appending(lab / "deep" / "down" / "half"):
        entry = listed(served)["half"]
        detail = served.get(f"/api/profiles/{entry['key']}").json()
    profile = Profile.open(lab / "deep" / "down" / "half")
    seconds, last = sum(record.duration_s for record in profile.points), profile.points[-1]
    for shown in (entry, detail):
        assert (shown["state"], shown["done"], shown["planned"]) == ("running", HALF, ALL)
        assert shown["seconds_left"] == pytest.approx(seconds / HALF * (ALL - HALF))
        assert shown["last"]["measured_mv"] == last.vdd_measured_mv
        assert shown["last"]["temperature_c"] == last.temperature_c
        assert shown["next"] == {"at": [1060, 10000, "operating_point"], "pattern": "0xFF", "index": HALF}
        assert len(shown["grid"]["cells"]) + len(shown["grid"]["planned"]) == 10
    assert listed(served)["half"]["state"] == "stopped"


def test_the_heat_map_pools_patterns_and_keeps_untested_apart(served: TestClient, lab: Path) -> None:
    profile = Profile.open(lab / "whole")
    grid = served.get(f"/api/profiles/{listed(served)['whole']['key']}").json()["grid"]
    assert grid["planned"] == []
    assert len(grid["cells"]) == 10
    for cell in grid["cells"]:
        vdd_mv, trcd_ps, write = cell["at"]
        expected = ber(profile, profile.find(OperatingPoint(vdd_mv=vdd_mv, trcd_ps=trcd_ps), WriteCondition(write)))
        assert (cell["errors"], cell["trials"]) == (expected.errors, expected.trials)
        assert (cell["low"], cell["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert sum(cell["errors"] for cell in grid["cells"]) > 0


BANK = {"vdd_mv": 1040, "trcd_ps": 10000, "write": "nominal", "bank": 1}


def test_a_bank_shows_where_its_errors_lie(served: TestClient, lab: Path) -> None:
    profile = Profile.open(lab / "whole")
    key = listed(served)["whole"]["key"]
    records = profile.find(OperatingPoint(vdd_mv=1040, trcd_ps=10000), WriteCondition.NOMINAL)
    whole = served.get(f"/api/profiles/{key}/bank", params=BANK).json()
    cells = [profile.cells(record.index, 1) for record in records]
    assert sum(whole["errors"]) == sum(int(each.errors.sum()) for each in cells) > 0
    assert sum(whole["trials"]) == GEOMETRY.bank_bits * 4
    part = served.get(f"/api/profiles/{key}/bank", params=BANK | {"rows": "5:20", "bitlines": "100:400"}).json()
    expected = bank_map(profile, records, 1, (5, 20), (100, 400))
    assert part["errors"] == expected.errors.ravel().tolist()
    assert (part["rows"], part["bitlines"], part["block_bitlines"]) == ([5, 20], [100, 400], 2)


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"bank": 7}, 409, "bank 7 was not tested"),
        ({"bank": "-1"}, 400, "give a whole number"),
        ({"bank": "9" * 40}, 400, "give a whole number"),
        ({"vdd_mv": 1041}, 409, "nothing was measured at 1041 mV"),
        ({"vdd_mv": 99999}, 400, "no operating point"),
        ({"write": "<b>"}, 400, "no operating point"),
        ({"rows": "all"}, 400, "FIRST:END"),
        ({"rows": "0:65"}, 409, "rows 0:65 are outside 0:64"),
        ({"bitlines": "9:9"}, 409, "are outside"),
    ],
)
def test_what_cannot_be_shown_says_so(served: TestClient, change: dict[str, object], status: int, says: str) -> None:
    answer = served.get(f"/api/profiles/{listed(served)['whole']['key']}/bank", params=BANK | change)
    assert answer.status_code == status
    assert says in answer.json()["error"]


def test_pictures_are_drawn_and_kept(served: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("whole", "<i>hostile & co"):
        key = listed(served)[name]["key"]
        at = {"vdd_mv": 1100, "trcd_ps": 10000, "write": "nominal"}
        for picture in ("ber", "where"):
            answer = served.get(f"/profiles/{key}/{picture}.png", params=at)
            assert answer.headers["content-type"] == "image/png", answer.text
            assert answer.content.startswith(b"\x89PNG")
    monkeypatch.setattr("host.web.app._png", lambda draw: pytest.fail("drawn anew"))
    again = served.get(f"/profiles/{key}/ber.png", headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 200  # another picture's tag
    assert served.get(f"/profiles/{key}/ber.png", headers={"if-none-match": again.headers["etag"]}).status_code == 304
    assert served.get(f"/profiles/{key}/what.png", params=at).status_code == 404


def test_damage_is_told_on_the_profiles_own_page(served: TestClient) -> None:
    found = listed(served)
    for name, says in (("damaged header", "profile.json is damaged"), ("damaged point", "00003.parquet")):
        answer = served.get(f"/api/profiles/{found[name]['key']}")
        assert answer.status_code == 200
        assert answer.json()["state"] == "damaged"
        assert says in answer.json()["error"]
        assert served.get(f"/profiles/{found[name]['key']}/ber.png").status_code == 409


def test_a_profile_that_is_scanned_anew_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_folder, "LOOK_S", 0.0)
    client = client_of(tmp_path)
    made = stopped_scan(tmp_path / "p", 3)
    address = f"/api/profiles/{listed(client)['p']['key']}"
    assert client.get(address).json()["done"] == 3
    (made.path / "points" / "00001.parquet").unlink()  # its remedy, where a point is damaged
    assert client.get(address).json()["done"] == 2
    stopped_scan(tmp_path / "p", 5)
    assert client.get(address).json()["done"] == 5
    shutil.rmtree(made.path)
    assert client.get(address).status_code == 404
    assert client.get("/api/overview").json()["profiles"] == []


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret", "/%2e%2e/secret", "/..%2fsecret", "/static/page.js", "/page.js/../../app.py"),
        *(
            "/reports/../../secret",
            "/reports/..%2f..%2fsecret",
            "/reports/%2e%2e%2fsecret",
            "/reports/0123456789abcdef",
        ),
        *("/api/profiles/../../secret", "/api/profiles/..%2f..%2fsecret/bank", "/profiles/..%2fsecret/ber.png"),
        *("/api/profiles/%00", "/api/profiles/" + "a" * 5000, "/reports/%ff%fe"),
    ],
)
def test_nothing_outside_the_folder_is_reached(served: TestClient, lab: Path, path: str) -> None:
    (lab.parent / "secret").write_text("the secret")
    answer = served.get(path)
    assert answer.status_code == 404
    assert "the secret" not in answer.text


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    whole = stopped_scan(tmp_path / "elsewhere" / "p", 1)
    (whole.path / "report.html").write_text("a report")
    lab = tmp_path / "lab"
    (lab / "run").mkdir(parents=True)
    (lab / "linked").symlink_to(whole.path)
    (lab / "run" / "report.html").symlink_to(whole.path / "report.html")
    (lab / "run" / "profile.json").symlink_to(whole.path / "profile.json")
    (lab / "around").symlink_to(lab)
    told = client_of(lab).get("/api/overview").json()
    assert (told["profiles"], told["reports"], told["whole"]) == ([], [], True)


def test_names_that_are_no_unicode_are_shown(tmp_path: Path) -> None:
    stopped_scan(tmp_path / "p", 1).path.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    client = client_of(tmp_path)
    (entry,) = client.get("/api/overview").json()["profiles"]
    assert (entry["name"], entry["done"]) == ("caf\ufffd", 1)
    assert client.get(f"/api/profiles/{entry['key']}").status_code == 200  # Arrow opens no such file: it is said so


def test_a_folder_too_full_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_folder, "MAX_FOLDERS", 5)
    for k in range(9):
        (tmp_path / f"{k}").mkdir()
    assert client_of(tmp_path).get("/api/overview").json()["whole"] is False


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        *(("localhost:8042", True), ("127.0.0.1:8042", True), ("[::1]:8042", True), ("192.168.7.9", True)),
        *(
            ("lab-computer:8042", True),
            ("LAB-computer", True),
            ("evil.example", False),
            ("localhost.evil.example", False),
        ),
        *(("127.0.0.1.evil.example:8042", False), ("", False), ("[::1", False), ("user@evil.example", False)),
    ],
)
def test_only_this_computers_names_are_answered(served: TestClient, host: str, ours: bool) -> None:
    for path in ("/", "/api/overview"):
        answer = served.get(path, headers={"host": host})
        assert answer.status_code == (200 if ours else 421)
        assert ours or "lab" not in answer.text.replace("lab-computer", "")


def test_it_reads_and_nothing_else(served: TestClient, lab: Path) -> None:
    key = listed(served)["whole"]["key"]
    before = sorted((str(file), file.stat().st_mtime_ns) for file in lab.rglob("*"))
    for path in ("/", "/api/overview", f"/api/profiles/{key}", "/reports/0123456789abcdef"):
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert served.request(method, path).status_code == 405
    assert served.get(f"/api/profiles/{key}").status_code == 200
    assert sorted((str(file), file.stat().st_mtime_ns) for file in lab.rglob("*")) == before


def test_the_browser_is_told_what_to_refuse(served: TestClient) -> None:
    for path in ("/", "/page.js", "/page.css", "/icon.svg", "/api/overview", "/nothing"):
        headers = served.get(path).headers
        assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    (report,) = served.get("/api/overview").json()["reports"]
    answer = served.get(f"/reports/{report['key']}")
    assert "A run" in answer.text
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert "script-src" not in answer.headers["content-security-policy"]


def test_the_page_loads_nothing_from_elsewhere(served: TestClient) -> None:
    for path in ("/", "/page.js", "/page.css", "/icon.svg"):
        text = served.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w+\.\w+|innerHTML|insertAdjacentHTML|document\.write|eval\(", text), path


def test_a_list_that_has_not_changed_is_not_sent_again(served: TestClient) -> None:
    first = served.get("/api/overview")
    again = served.get("/api/overview", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_numbers_that_json_has_not_are_left_out(tmp_path: Path) -> None:
    made = stopped_scan(tmp_path / "p", 2)
    nan = {record.index: record.model_copy(update={"vdd_measured_mv": float("nan")}) for record in made.points}
    made._points = nan
    shown = json.dumps(views_of(made), allow_nan=False)
    assert '"measured_mv": null' in shown


def test_a_folder_that_cannot_be_read_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_scan(tmp_path / "sound", 1)
    secret = stopped_scan(tmp_path / "secret", 1).path / "points"

    def unreadable(path: Path) -> list[Path]:
        if path == secret.parent:
            raise PermissionError(13, "Permission denied", str(secret))
        return sorted((path / "points").glob("*.parquet"))

    monkeypatch.setattr("profiles.storage._point_files", unreadable)
    client = client_of(tmp_path)
    found = listed(client)
    assert {name: entry["state"] for name, entry in found.items()} == {"sound": "stopped", "secret": "damaged"}
    assert "Permission denied" in client.get(f"/api/profiles/{found['secret']['key']}").json()["error"]
    assert client.get(f"/profiles/{found['secret']['key']}/ber.png").status_code == 409


def views_of(profile: Profile) -> dict[str, Any]:
    from host.web.views import _live

    return _live(profile)


def test_the_command_serves_until_it_is_told_to_end(lab: Path) -> None:
    child = begin("serve", lab, "--port", "0")
    assert child.stdout is not None
    line = child.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+/", line)
    assert found, line
    with urllib.request.urlopen(f"{found.group()}api/overview") as answer:
        assert len(json.load(answer)["profiles"]) == 5
    many = [threading.Thread(target=urllib.request.urlopen, args=(found.group(),)) for _ in range(8)]
    for each in many:
        each.start()
    for each in many:
        each.join()
    child.terminate()
    out, err = child.communicate()
    assert (child.returncode, out, err) == (0, "ended\n", "")


def test_listening_elsewhere_is_warned_of_and_bad_places_are_one_line(
    lab: Path, run_eden: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    child = begin("serve", lab, "--host", "0.0.0.0", "--port", "0")
    assert child.stdout is not None
    port = int(child.stdout.readline().split("localhost:")[1].split("/")[0])
    for arguments, says in (
        ((lab, "--host", "0.0.0.0", "--port", port), f"cannot listen at 0.0.0.0, port {port}: Address already in use"),
        ((lab / "nowhere",), f"{lab / 'nowhere'} is no folder"),
    ):
        with pytest.raises(SystemExit):
            run_eden("serve", *arguments)
        err = capsys.readouterr().err
        assert err.startswith(f"eden: {says}")
        assert err.count("\n") == 1
    child.terminate()
    _, err = child.communicate()
    assert err.startswith("eden: listening at 0.0.0.0: everyone who can reach this computer can see")
    assert err.count("\n") == 1
