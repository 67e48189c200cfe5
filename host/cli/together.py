"""Scans of several boards at once: an `eden scan` of its own for each, and one view of them all."""

import contextlib
import math
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO

from rich.live import Live
from rich.table import Table

from host.cli.console import console, table
from host.cli.opening import in_both, supply_files
from host.scan_status import ScanStatus, planned_points
from profiles.errors import BoardError, ProfileError
from profiles.storage import HEADER_NAME, Profile, is_growing

LOOK_S = 0.5
STOPPING = (signal.SIGINT, signal.SIGTERM)

Said = SimpleQueue[tuple["BoardScan", str]]
View = Callable[["BoardScan | None", str], None]
"""Told what a scan said; and, with None, that time has passed."""


@dataclass
class BoardScan:
    """The scan of one board, in a process of its own.

    Attributes:
        board, supply: as for ``eden scan``.
        folder: of its profile.
        line, complaint: what it printed last, and what it said on standard error last.
        status: how far it is; None before its profile is there.
        scanning: whether it is beyond opening its board.
        code: exit status; None while it runs or has not begun.
    """

    board: str
    folder: Path
    supply: Path | None
    line: str = "starting"
    complaint: str = ""
    status: ScanStatus | None = None
    scanning: bool = False
    code: int | None = None
    _process: "subprocess.Popen[str] | None" = None
    _readers: list[threading.Thread] = field(default_factory=list)
    _profile: Profile | None = None

    def start(self, plan: Path, extend: bool, said: Said) -> None:
        """Begin, or go on; what it prints is put into ``said``."""
        command = [sys.executable, "-m", "host.cli.main", "scan", str(plan), "--board", self.board]
        command += ["--out", str(self.folder), *(("--supply", str(self.supply)) if self.supply else ())]
        command += ["--extend"] if extend else []
        # In a session of its own: a Ctrl-C reaches it once, from here. Its output ends with this process, and it with
        # its output, its rail at nominal, should this process be killed.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )

        def read(stream: IO[str], complaints: bool) -> None:
            for text in stream:
                line = text.rstrip()
                if complaints:
                    self.complaint = line.removeprefix("eden: ")
                else:
                    self.line = line
                said.put((self, line))

        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            reader = threading.Thread(target=read, args=(stream, stream is self._process.stderr), daemon=True)
            reader.start()
            self._readers.append(reader)

    @property
    def running(self) -> bool:
        """Whether it has begun and has not ended, or something that it said has not been read."""
        if self._process is not None and self.code is None and not any(each.is_alive() for each in self._readers):
            self.code = self._process.wait()
        return self._process is not None and self.code is None

    def stop(self, number: int) -> None:
        """Have it end, its rail at nominal."""
        if self._process is not None and self.code is None:
            self._process.send_signal(number)

    def look(self) -> None:
        """See how far it is, from the profile that it writes."""
        self.scanning = is_growing(self.folder)
        try:
            if self._profile is None and (self.folder / HEADER_NAME).exists():
                self._profile = Profile.open(self.folder)
            if self._profile is not None:
                self._profile.refresh()
                self.status = ScanStatus.of(self._profile, planned_points(self._profile))
        except ProfileError:  # which the scan itself meets too, and says
            self._profile = None

    @property
    def outcome(self) -> str:
        """In words."""
        if self.code is None:
            return "scanning" if self.scanning else self.line
        if self.code == 0:
            return "done"
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        return self.complaint or f"ended with status {self.code}"


def scan_together(plan: Path, boards: Sequence[str], out: Path, supplies: Sequence[Path], extend: bool = False) -> None:
    """Scan ``boards`` by the plan in the file ``plan``, each into a folder of its own in ``out``; ``extend`` as alone.

    Raises:
        PlanError: two of them are the same board, or share a supply or a temperature controller; nothing was touched.
        BoardError: some were not scanned to the end; the others were.
    """
    scans = board_scans(boards, out, supplies)
    said: Said = SimpleQueue()
    try:
        for scan in scans:
            scan.start(plan, extend, said)
        with _view(scans) as view:
            _follow(scans, said, view)
    except BaseException as leaving:
        number = leaving.code - 128 if isinstance(leaving, SystemExit) and isinstance(leaving.code, int) else 0
        _end(scans, said, number if number in STOPPING else signal.SIGTERM)
        raise
    _summarise(scans)
    if failed := [scan for scan in scans if scan.code]:
        what = "; ".join(f"{scan.board}: {scan.outcome}" for scan in failed)
        raise BoardError(
            f"{len(failed)} of {len(scans)} boards were not scanned to the end: {what}; mend that, and the same "
            "command goes on with what is missing"
        )


def board_scans(boards: Sequence[str], out: Path, supplies: Sequence[Path]) -> list[BoardScan]:
    """What to run for ``boards``, with ``supplies`` in the same order, or none.

    Raises:
        PlanError: two are the same board, or share a supply or a temperature controller; or the supplies are not as
            many as the boards.
    """
    files = supply_files(boards, supplies)
    scans = [BoardScan(board, out / _folder_name(board), file) for board, file in zip(boards, files, strict=True)]
    by_folder: dict[Path, str] = {}
    for scan in scans:
        if scan.folder in by_folder:
            raise in_both(by_folder[scan.folder], scan.board, f"the folder {scan.folder}")
        by_folder[scan.folder] = scan.board
    return scans


def _folder_name(board: str) -> str:
    return re.sub(r"[^\w.]+", "-", board).strip("-.") or "board"


def _follow(scans: Sequence[BoardScan], said: Said, view: View) -> None:
    """Until every scan has ended and all that they said is shown."""
    while any([scan.running for scan in scans]) or not said.empty():
        with contextlib.suppress(Empty):
            view(*said.get(timeout=LOOK_S))
        view(None, "")


def _end(scans: Sequence[BoardScan], said: Said, number: int) -> None:
    """Stop what still runs, and wait for it; a further Ctrl-C is passed on."""

    def pass_on(number: int, _: FrameType | None = None) -> None:
        for scan in scans:
            scan.stop(number)

    if left := sum(scan.running for scan in scans):
        console.print(f"stopping {left} scans, their rails back to nominal ...")
    before = {each: signal.signal(each, pass_on) for each in STOPPING if signal.getsignal(each) is not signal.SIG_IGN}
    try:
        pass_on(number)
        _follow(scans, said, _telling(scans))
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _telling(scans: Sequence[BoardScan]) -> View:
    """Shows each line that a scan says, with its board's name."""
    width = max(len(scan.board) for scan in scans)

    def tell(scan: BoardScan | None, line: str) -> None:
        if scan is not None:
            console.print(f"{scan.board:<{width}}  {line}", soft_wrap=True)

    return tell


@contextlib.contextmanager
def _view(scans: Sequence[BoardScan]) -> Iterator[View]:
    """A live table; or all that is said where there is no terminal."""
    if not console.is_terminal:
        yield _telling(scans)
        return
    with Live(picture(scans), console=console, auto_refresh=False, transient=True) as live:
        looked = 0.0

        def show(scan: BoardScan | None, line: str) -> None:
            nonlocal looked
            if time.monotonic() - looked >= LOOK_S:
                live.update(picture(scans), refresh=True)
                looked = time.monotonic()

        yield show


def picture(scans: Sequence[BoardScan]) -> Table:
    """How far each scan is, a line a board."""
    shown = Table(title=f"{len(scans)} boards", title_justify="left")
    for column in ("board", "tests", "left", "last test", "BER", "rail", "°C", "errors/s"):
        shown.add_column(column, justify="left" if column == "board" else "right", no_wrap=column == "board")
    shown.add_column("state")
    for scan in scans:
        scan.look()
        shown.add_row(scan.board, *_cells(scan.status), scan.outcome)
    return shown


def _cells(status: ScanStatus | None) -> list[str]:
    if status is None:
        return [""] * 7
    last = status.last
    left = "" if status.seconds_left is None else f"{timedelta(seconds=math.ceil(status.seconds_left))}"
    return [
        f"{status.done} of {status.planned}",
        left,
        "" if last is None else f"{last.point}",
        "" if status.last_ber is None else f"{status.last_ber:.1e}",
        "" if last is None else f"{last.vdd_measured_mv:.1f} mV",
        "" if last is None or last.temperature_c is None else f"{last.temperature_c:.1f}",
        "" if status.errors_per_s is None else f"{status.errors_per_s:.3g}",
    ]


def _summarise(scans: Sequence[BoardScan]) -> None:
    rows = []
    for scan in scans:
        scan.look()
        done, errors = (f"{scan.status.done} of {scan.status.planned}", scan.status.errors) if scan.status else ("0", 0)
        rows.append([scan.board, done, f"{errors}", str(scan.folder), scan.outcome])
    table(f"{len(scans)} boards", ["board", "tests", "errors", "profile", "outcome"], rows)
