"""A signal stops a command even where Python forgets the exception that it raises."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from host.cli import stopping
from host.cli.console import progress_bar


@pytest.fixture
def heeding() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stopping._asked.clear()
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    stopping.heed()
    yield
    stopping._asked.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


class Deaf:
    """Is hit by a signal as it goes, as pyarrow's writers may be."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("heeding")
def test_a_signal_that_was_lost_in_a_destructor_is_heeded_at_the_next_sign_of_progress() -> None:
    with progress_bar("work") as progress:
        progress(0, 2)
        Deaf()
        with pytest.raises(SystemExit) as left:
            progress(1, 2)
    assert left.value.code == 128 + signal.SIGINT
    stopping.go_on()  # it was heeded


@pytest.mark.usefixtures("heeding")
def test_a_signal_that_nothing_swallowed_is_an_exception_at_once_and_threads_go_on() -> None:
    with pytest.raises(SystemExit) as left:
        os.kill(os.getpid(), signal.SIGTERM)
    assert left.value.code == 128 + signal.SIGTERM
    thread = threading.Thread(target=stopping.go_on)
    thread.start()
    thread.join()
    assert stopping._asked == [signal.SIGTERM]  # left to the main thread


@pytest.mark.usefixtures("heeding")
def test_what_was_ignored_from_the_start_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stopping.heed()
    os.kill(os.getpid(), signal.SIGINT)
    stopping.go_on()
