"""Signs of life of this process from a thread of its own, for what acts by itself once they stop.

They stop when the process is killed, stopped, or has its interpreter blocked; a main thread that merely waits for ever
does not stop them, so nothing else may wait without an end.
"""

import contextlib
import threading
from collections.abc import Callable

from profiles.errors import BoardError


class Heartbeat:
    """Calls ``beat`` again and again, until stopped."""

    def __init__(self, beat: Callable[[], None], every_s: float) -> None:
        self._beat, self._every_s, self._stop = beat, every_s, threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No beat comes after this."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            with contextlib.suppress(BoardError, OSError):  # a beat that is lost is what the other side acts on
                self._beat()
