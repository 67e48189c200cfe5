"""Signs of life from a thread of its own, for what acts by itself once they stop."""

import threading
from collections.abc import Callable

from profiles.errors import BoardError


class Heartbeat:
    """Calls ``beat`` again and again from a thread of its own, until stopped or until it fails."""

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
            try:
                self._beat()
            except (BoardError, OSError):  # who asks next is told; silence is what makes the other side act
                return
