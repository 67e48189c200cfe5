"""Files that appear whole or not at all, and errors of the disk in one sentence."""

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from profiles.errors import ProfileError

TEMPORARY_FILE = re.compile(r"\.[\w.\-]+\.[0-9a-f]{16}\.part")


@contextlib.contextmanager
def disk_errors(path: Path, kept: str = "nothing else is touched") -> Iterator[None]:
    """Turn an OSError while writing ``path`` into a `ProfileError`; ``kept`` says what the user still has."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ProfileError(
                f"the disk is full while writing {path}; {kept}: free some space and run again"
            ) from error
        reason = error.strerror or one_line(error)
        raise ProfileError(f"cannot write {path} ({reason}); {kept}: check the path and its disk") from error


@contextlib.contextmanager
def atomic_file(path: Path, kept: str = "nothing else is touched") -> Iterator[IO[bytes]]:
    """A file that is at ``path``, whole and on disk, once the block ends; nothing is there if the block fails.

    Raises:
        ProfileError: the disk is full or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    with disk_errors(path, kept):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(file: Path, limit: int) -> bytes:
    """All of ``file``, if it is no larger than ``limit`` bytes.

    Raises:
        ProfileError: it is larger, or cannot be read.
    """
    try:
        with file.open("rb") as source:
            text = source.read(limit + 1)
    except OSError as error:
        raise ProfileError(f"cannot read {file} ({error.strerror}); check its permissions and its disk") from error
    if len(text) > limit:
        raise ProfileError(f"{file} is larger than {limit >> 20} MiB, too large for what it should be; check the path")
    return text


def first_problem(error: ValidationError) -> str:
    """One line about the first thing that is wrong, with the place where it is."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = " ".join(problem["msg"].split())
    return f"{where}: {message}" if where else message


def one_line(error: BaseException) -> str:
    """The first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
