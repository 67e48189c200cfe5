"""SIGINT and SIGTERM as an exception, so that rails return to nominal and files are closed.

Python forgets an exception that a signal raises inside a destructor, and libraries have some: those of pyarrow's
writers run after each point of a scan. One Ctrl-C in some thirty was lost. What was asked for is therefore remembered,
and long work looks at it as it goes on.
"""

import signal
import threading
from types import FrameType

STOPPED = {128 + signal.SIGINT: "interrupted", 128 + signal.SIGTERM: "terminated"}  # by exit status
_asked: list[int] = []


def heed() -> None:
    """From now on the two signals raise SystemExit, unless whoever started this process had them ignored."""
    for stopping in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(stopping) is not signal.SIG_IGN:
            signal.signal(stopping, _stop)


def go_on() -> None:
    """Go on, unless a signal asked to stop and its exception was lost: raise it again then."""
    if _asked and threading.current_thread() is threading.main_thread():
        raise SystemExit(128 + _asked.pop())


def _stop(signal_number: int, frame: FrameType | None) -> None:
    _asked.append(signal_number)
    raise SystemExit(128 + signal_number)
