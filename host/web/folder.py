"""What lies in the folder that is served: profiles and reports, found by looking, and named by keys.

A request names what it wants by a key that was given out with a list; no path is ever made of what a request says.
Symbolic links are not followed.
"""

import contextlib
import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from profiles.errors import ProfileError
from profiles.files import read_bounded
from profiles.schema import ProfileHeader
from profiles.storage import HEADER_NAME, POINTS_NAME, Profile, count_points, read_header

REPORT_NAME = "report.html"  # as `eden run` names it
MAX_REPORT_BYTES = 64 << 20
MAX_FOLDERS = 20_000  # that are looked into
MAX_DEPTH = 12
LOOK_S = 2.0  # for which a list is good
KEPT_PROFILES = 64  # whose points' records are in memory, the last ones that were asked for

Kind = Literal["profile", "report"]
Identity = tuple[int, int, int] | None
"""Inode, time and size of a file: whether it is still the one that was read."""


@dataclass(frozen=True)
class Found:
    """A profile or a report.

    Attributes:
        key: 16 hexadecimal digits, the same as long as it lies where it does.
        name: its path in the folder served, for people.
        path: where it lies.
        modified: when something was last written there, seconds since 1970.
    """

    key: str
    kind: Kind
    name: str
    path: Path
    modified: float


@dataclass(frozen=True)
class Listing:
    """All that was found, by key, in order of name; ``whole`` unless there were too many folders to look into."""

    found: dict[str, Found]
    whole: bool


class MissingError(ProfileError):
    """There is nothing with that key in the folder, or not any more."""


class _Kept:
    """An open profile, and the lock of whoever brings it up to date."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.profile: Profile | None = None


class Folder:
    """The folder ``root``; its methods may be called from any thread."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._listing, self._looked = Listing({}, True), -1.0
        self._looking = threading.Lock()
        self._profiles: OrderedDict[str, _Kept] = OrderedDict()
        self._headers: dict[str, tuple[Identity, ProfileHeader]] = {}
        self._keeping = threading.Lock()

    def listing(self) -> Listing:
        """What there is, at most `LOOK_S` ago, or ten times as long as looking took."""
        with self._looking:
            begun = time.monotonic()
            if begun >= self._looked:
                self._listing = _look(self.root)
                took = time.monotonic() - begun
                self._looked = begun + max(LOOK_S, 10 * took)
            return self._listing

    def find(self, key: str, kind: Kind) -> Found:
        """Raises MissingError."""
        found = self.listing().found.get(key)
        if found is None or found.kind != kind:
            raise MissingError(f"no {kind} {key} is in the folder served; it was moved or deleted: go back to the list")
        return found

    def glance(self, found: Found) -> tuple[ProfileHeader, int]:
        """Header of a profile, and how many of its points are finished; none of them is opened.

        Raises:
            ProfileError: the header is damaged.
        """
        header = _identity(found.path / HEADER_NAME)
        with self._keeping:
            known = self._headers.get(found.key)
        if known is None or known[0] != header:
            known = (header, read_header(found.path))
            with self._keeping:
                self._headers[found.key] = known
        return known[1], count_points(found.path)

    def profile(self, key: str) -> Profile:
        """The profile, with all points that are finished by now; the same object is given out again.

        Raises:
            MissingError: there is none.
            ProfileError: it is damaged.
        """
        path = self.find(key, "profile").path
        with self._keeping:
            kept = self._profiles.setdefault(key, _Kept())
            self._profiles.move_to_end(key)
            while len(self._profiles) > KEPT_PROFILES:
                self._profiles.popitem(last=False)
        with kept.lock:
            if kept.profile is None:
                kept.profile = Profile.open(path)
            else:
                kept.profile.refresh()
            return kept.profile

    def forget(self, key: str) -> None:
        """Open the profile anew next time: a point that was deleted and measured again is another one."""
        with self._keeping:
            self._profiles.pop(key, None)

    def report(self, key: str) -> bytes:
        """The report's HTML. Raises MissingError; ProfileError where it cannot be read or is too large."""
        return read_bounded(self.find(key, "report").path, MAX_REPORT_BYTES)


def _identity(file: Path) -> Identity:
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size


def _look(root: Path) -> Listing:
    found, whole, looked = [], True, 0
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        looked += 1
        if looked > MAX_FOLDERS or depth > MAX_DEPTH:
            whole = False
            continue
        entries = list(_entries(folder))
        files = {entry.name: entry for entry in entries if entry.is_file(follow_symlinks=False)}
        is_profile = HEADER_NAME in files
        if is_profile:
            found.append(_found(root, folder, "profile", _modified(folder / POINTS_NAME, folder)))
        elif REPORT_NAME in files:
            report = folder / REPORT_NAME
            found.append(_found(root, report, "report", _modified(report)))
        waiting += [
            (folder / entry.name, depth + 1)
            for entry in entries
            if entry.is_dir(follow_symlinks=False)
            and not entry.name.startswith(".")
            and not (is_profile and entry.name == POINTS_NAME)
        ]
    return Listing({each.key: each for each in sorted(found, key=lambda each: each.name)}, whole)


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:  # gone by now, or not for us to see
        return


def _modified(*places: Path) -> float:
    """When the first of ``places`` that is there was last written to: of a folder, when a file was added."""
    for place in places:
        with contextlib.suppress(OSError):
            return place.stat().st_mtime
    return 0.0


def _found(root: Path, path: Path, kind: Kind, modified: float) -> Found:
    relative = os.fsencode(path.relative_to(root))
    key = hashlib.sha256(relative).hexdigest()[:16]
    name = relative.decode("utf-8", "replace")
    return Found(key, kind, root.name if name == "." else name, path, modified)
