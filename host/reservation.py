"""A link that one process has and others keep away from."""

import tempfile
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import IO

from profiles.errors import LinkError


def reserve(kind: str, place: str) -> IO[bytes]:
    """Hold the link of that kind to that place for this process: until the file is closed, or the process is gone.

    Raises:
        LinkError: another process holds it.
    """
    path = Path(tempfile.gettempdir()) / f"eden-{kind}-{place.replace('/', '_').replace(':', '-')}.lock"
    try:
        if not path.exists():
            path.touch(mode=0o644)
        lock = path.open("rb")
        flock(lock, LOCK_EX | LOCK_NB)
    except OSError as error:
        raise LinkError(f"{place} is in use by another process ({path}: {error.strerror}); end that") from error
    return lock
