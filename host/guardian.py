"""A process of its own that holds a bench supply, and brings it back to nominal when whoever asked for it is gone.

A scan never talks to a bench supply itself: it asks its guardian, through a pipe. However the scan ends (kill -9
included), the pipe ends with it, and the guardian, which no Ctrl-C of the terminal reaches, sets the supply to nominal
over the connection that it already holds, again and again until the supply takes it. A scan that is stopped (Ctrl-Z) or
blocked stops its heartbeats too, and loses the rail `SILENCE_S` later. One guardian holds a supply at a time.

Not covered: a scan whose main thread waits for ever (`host.heartbeat`); a PC that loses its power, or sleeps, while the
supply is low; scan and guardian killed together with SIGKILL; a supply that does not answer for `PERSISTENCE_S` after
the scan's end. ``eden rail restore`` mends a supply that was left low.

Requests and answers are lines of JSON; an answer repeats the number of its request.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, Self

from host.heartbeat import Heartbeat
from host.rail import Measurement
from host.scpi import ScpiSupply
from host.supply_file import ScpiSettings
from profiles.errors import RailError

BEAT_S = 1.0
SILENCE_S = 30.0  # without a sign of the scan's life, after which the guardian takes the rail back
PERSISTENCE_S = 600.0  # for which it tries to, once nobody waits any more
PATIENCE_S = 10.0  # and while the scan waits
LOCK_S = 5.0  # for which it waits for another guardian, of a scan just ended, to be done
PAUSE_S = 0.2
_START_S = 60.0  # for Python to start on a busy machine
_CHUNK = 1 << 16


class _Lines:
    """Lines from a descriptor, each waited for only so long."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._buffer = descriptor, b""

    def next(self, wait_s: float) -> bytes | None:
        """The next line, b"" at the end, None if there is none within ``wait_s``."""
        end = time.monotonic() + wait_s
        while b"\n" not in self._buffer:
            if not select.select([self._descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            if not (more := os.read(self._descriptor, _CHUNK)):
                return b""
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


# ---- the scan's side -------------------------------------------------------------------------------------------------


class GuardedSupply:
    """A bench supply in the hands of a guardian; a `host.rail.Supply`.

    Args:
        settings: of the supply.

    Attributes:
        identity: what the supply says of itself.

    Raises:
        RailError: as `host.scpi.ScpiSupply`, or another process holds the supply.
    """

    def __init__(self, settings: ScpiSettings) -> None:
        self._settings, self._number, self._sending = settings, 0, threading.Lock()
        self._answer_s = PATIENCE_S + 8 * settings.timeout_s
        self._guardian = subprocess.Popen(
            [sys.executable, "-m", "host.guardian"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._guardian.stdin is not None
        assert self._guardian.stdout is not None
        self._to, self._answers = self._guardian.stdin.fileno(), _Lines(self._guardian.stdout.fileno())
        self._heartbeat: Heartbeat | None = None
        self._unguarded: ScpiSupply | None = None  # should the guardian die
        try:
            self._send(settings.model_dump_json())
            self.identity = str(self._answer(0, _START_S + LOCK_S)["identity"])
            self._heartbeat = Heartbeat(lambda: self._write('{"beat": 1}'), BEAT_S)
        except BaseException:
            self.close()
            raise

    def set_millivolts(self, millivolts: int) -> None:
        """See `host.scpi.ScpiSupply.set_millivolts`. Without its guardian the supply only goes to nominal."""
        if self._guardian.poll() is None or millivolts != self._settings.nominal:
            self._request({"set": millivolts})
            return
        if self._unguarded is None:
            self._unguarded = ScpiSupply(self._settings)
        self._unguarded.set_millivolts(millivolts)

    def measure(self) -> Measurement:
        """See `host.scpi.ScpiSupply.measure`."""
        if self._unguarded is not None:
            return self._unguarded.measure()
        return Measurement(**self._request({"measure": 1})["measured"])

    def set_point_mv(self) -> float:
        """See `host.scpi.ScpiSupply.set_point_mv`."""
        return float(self._request({"set_point": 1})["set_point_mv"])

    def close(self) -> None:
        """Let the guardian go; it sees to it that the supply is at nominal. A second call does nothing."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._unguarded is not None:
            self._unguarded.close()
        self._to = -1  # its number may soon be another file's
        for pipe in (self._guardian.stdin, self._guardian.stdout):
            assert pipe is not None
            pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on by itself
            self._guardian.wait(self._answer_s)

    def _request(self, what: dict[str, Any]) -> dict[str, Any]:
        if self._to < 0:
            raise RailError("the supply was let go of; open it again")
        self._number += 1
        self._send(json.dumps({"number": self._number, **what}))
        return self._answer(self._number, self._answer_s)

    def _send(self, line: str) -> None:
        try:
            self._write(line)
        except OSError as error:
            raise RailError(self._gone()) from error

    def _write(self, line: str) -> None:
        with self._sending:
            os.write(self._to, line.encode() + b"\n")

    def _answer(self, number: int, wait_s: float) -> dict[str, Any]:
        end = time.monotonic() + wait_s
        while (line := self._answers.next(max(0.0, end - time.monotonic()))) is not None:
            if not line:
                raise RailError(self._gone())
            with contextlib.suppress(json.JSONDecodeError):  # the rest of an answer that Ctrl-C cut short
                answer: dict[str, Any] = json.loads(line)
                if "error" in answer and answer["number"] in (number, None):
                    raise RailError(answer["error"])
                if answer["number"] == number:
                    return answer
        raise RailError(f"the supply's guardian did not answer within {wait_s:g} s; it will set nominal by itself")

    def _gone(self) -> str:
        """Its last words, if it left any."""
        while line := self._answers.next(1.0):
            with contextlib.suppress(json.JSONDecodeError):
                if (answer := json.loads(line)).get("number") is None and "error" in answer:
                    return str(answer["error"])
        return "the supply's guardian is gone; look whether the supply is at nominal (eden rail show), then go on"


# ---- the guardian's side ---------------------------------------------------------------------------------------------


class _Guardian:
    """Holds the supply; leaves its ``with`` block only after it has done what it can to have nominal back."""

    def __init__(self, settings: ScpiSettings) -> None:
        self._settings = settings
        self._supply = ScpiSupply(settings)
        self.identity = self._supply.identity
        self._away = False
        self._reason = "the scan is gone"

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self._away:
            nominal = self._settings.nominal
            failed = self._persist(PERSISTENCE_S)
            done = f"DID NOT REACH {nominal} mV: set it by hand. {failed}" if failed else f"is back at {nominal} mV"
            _tell(f"eden: the DRAM's supply {done} ({self._reason})")
            _say({"number": None, "error": f"the guardian took the rail back ({self._reason}): the supply {done}"})
        self._supply.close()

    def obey(self, lines: _Lines) -> None:
        """Do what is asked for, until nobody asks any more."""
        while (line := lines.next(SILENCE_S)) or (line is None and not self._away):
            if line is None:
                continue  # at nominal, nobody need hurry
            request = json.loads(line)
            if "beat" in request:
                continue
            try:
                answer = self._do(request)
            except RailError as error:
                answer = {"error": str(error)}
            _say({"number": request["number"], **answer})
        if line is None:
            self._reason = f"no sign of life of the scan for {SILENCE_S:g} s"

    def _end(self, *_: object) -> NoReturn:
        self._reason = "the guardian was told to end"
        raise SystemExit(self._reason)

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        if "set" in request and request["set"] == self._settings.nominal:
            if failed := self._persist(PATIENCE_S):
                raise RailError(failed)
            return {}
        if "set" in request:
            self._away = True
            self._supply.set_millivolts(request["set"])
            return {}
        if "set_point" in request:
            return {"set_point_mv": self._supply.set_point_mv()}
        return {"measured": asdict(self._supply.measure())}

    def _persist(self, seconds: float) -> str:
        """Nominal, tried for so long; returns what is wrong, "" if nothing is."""
        end = time.monotonic() + seconds
        while True:
            try:
                self._supply.set_millivolts(self._settings.nominal)
            except RailError as error:
                if time.monotonic() >= end:
                    return str(error)
                time.sleep(PAUSE_S)
            else:
                self._away = False
                return ""


def _say(answer: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")


def _tell(text: str) -> None:
    """One line for whoever looks at the terminal, if there still is one."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _alone(resource: str) -> Iterator[None]:
    """Hold the supply's lock. Raises RailError if another guardian has it for longer than `LOCK_S`."""
    name = f"eden-supply-{os.getuid()}-{hashlib.sha256(resource.encode()).hexdigest()[:16]}.lock"
    descriptor = os.open(Path(tempfile.gettempdir()) / name, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    end = time.monotonic() + LOCK_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    raise RailError(
                        f"another process holds the supply {resource} for more than {LOCK_S:g} s; wait until it ends"
                    ) from error
                time.sleep(PAUSE_S)
        yield
    finally:
        os.close(descriptor)


def main() -> None:
    """The guardian process: settings come first, then requests, until the pipe ends."""
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    lines = _Lines(sys.stdin.fileno())
    settings = ScpiSettings.model_validate_json(lines.next(_START_S) or b"")
    try:
        with _alone(settings.resource), _Guardian(settings) as guardian:
            _say({"number": 0, "identity": guardian.identity})
            guardian.obey(lines)
    except RailError as error:
        _say({"number": 0, "error": str(error)})


if __name__ == "__main__":
    main()
