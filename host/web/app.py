"""The web application of `eden serve`: it reads, and answers GET alone.

Every answer forbids the browser whatever the page does not need: scripts, styles and pictures of other origins, frames,
forms. Reports are foreign HTML, and run no script. A request whose Host is a name that is not this computer's is
refused: a page elsewhere could have had its own name point here (DNS rebinding); an address cannot be made to.
"""

import hashlib
import io
import ipaddress
import json
import re
import socket
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.resources import files
from urllib.parse import urlsplit

from matplotlib.figure import Figure
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from host.web import views
from host.web.folder import Folder, MissingError
from profiles.bank_map import bank_map
from profiles.errors import EdenError, PlanError, ProfileError
from profiles.plots import plot_ber_surface, plot_spatial
from profiles.schema import OperatingPoint, WriteCondition
from profiles.storage import Profile

STATIC = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
OURS = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
FOREIGN = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"
HEADERS = {
    "content-security-policy": OURS,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}
PICTURES = 32  # that are kept
PICTURE_DPI = 110
_KEY = re.compile(r"[0-9a-f]{16}")
_DRAWING = threading.Lock()  # matplotlib is not made for threads


class Guard:
    """Refuses foreign hosts, and puts `HEADERS` on every answer that does not bring its own.

    Args:
        app: what answers.
        names: of this computer, that a request may ask for; addresses and localhost always may be.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        host = Headers(scope=scope).get("host", "")
        app = self._app if self._is_ours(host) else _refusal(host)
        await app(scope, receive, send_guarded)

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        return name in self._names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _refusal(host: str) -> ASGIApp:
    return PlainTextResponse(
        f"'{host[:100]}' is not a name of the computer that this page is served by; ask for it by its address\n", 421
    )


def application(folder: Folder, names: Sequence[str] = ()) -> Starlette:
    """The application that shows ``folder`` to whoever asks for this computer by an address or one of ``names``."""
    web = _Web(folder)
    routes = [Route(path, _static(*about), methods=["GET"]) for path, about in STATIC.items()]
    routes += [
        Route("/api/overview", web.overview, methods=["GET"]),
        Route("/api/profiles/{key}", web.profile, methods=["GET"]),
        Route("/api/profiles/{key}/bank", web.bank, methods=["GET"]),
        Route("/profiles/{key}/{picture}.png", web.picture, methods=["GET"]),
        Route("/reports/{key}", web.report, methods=["GET"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, names=names)],
        exception_handlers={EdenError: _explain, OSError: _explain},  # a folder not for us to see, a disk that fails
    )


def names_of_this_computer() -> list[str]:
    """By which others may ask for it."""
    return [socket.gethostname(), socket.getfqdn()]


def _static(name: str, kind: str) -> Callable[[Request], Response]:
    content = files("host.web").joinpath("static", name).read_bytes()
    return lambda request: _answer(request, content, kind)


def _answer(request: Request, content: bytes, kind: str) -> Response:
    """The content, or that it is the one that the browser has already."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"etag": tag})
    return Response(content, media_type=kind, headers={"etag": tag})


def _json(request: Request, content: views.Json) -> Response:
    return _answer(request, json.dumps(content, allow_nan=False).encode(), "application/json")


def _explain(request: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, MissingError) else 400 if isinstance(error, PlanError) else 409
    return Response(json.dumps({"error": str(error)[:1000]}), status, media_type="application/json")


class _Web:
    """Answers, worked out in threads of the server's pool."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._pictures = lru_cache(PICTURES)(self._drawn)

    def overview(self, request: Request) -> Response:
        return _json(request, views.overview(self._folder))

    def profile(self, request: Request) -> Response:
        return _json(request, views.detail(self._folder, _key(request)))

    def bank(self, request: Request) -> Response:
        query, key = request.query_params, _key(request)
        point, write = _operating_point(query)
        profile = self._folder.profile(key)
        records = views.chosen(profile, point, write)
        spans = (_span(query, "rows"), _span(query, "bitlines"))
        try:
            return _json(request, views.bank(bank_map(profile, records, _whole(query, "bank"), *spans)))
        except ProfileError:
            self._folder.forget(key)
            raise

    def picture(self, request: Request) -> Response:
        key, picture = _key(request), request.path_params["picture"]
        at = None if picture == "ber" else _operating_point(request.query_params)
        profile = self._folder.profile(key)
        try:
            return _answer(request, self._pictures(key, profile, len(profile.points), picture, at), "image/png")
        except ProfileError:
            self._folder.forget(key)
            raise

    def _drawn(
        self, key: str, profile: Profile, points: int, picture: str, at: tuple[OperatingPoint, WriteCondition] | None
    ) -> bytes:
        """PNG; ``key``, ``profile`` and ``points`` say of which state of which profile it is."""
        if at is None:
            return _png(lambda: plot_ber_surface(profile))
        if picture != "where":
            raise MissingError(f"no picture '{picture[:40]}'; there are ber and where")
        return _png(lambda: plot_spatial(profile, views.chosen(profile, *at)))

    def report(self, request: Request) -> Response:
        content = self._folder.report(_key(request))
        return Response(content, media_type="text/html", headers={"content-security-policy": FOREIGN})


def _png(draw: Callable[[], Figure]) -> bytes:
    buffer = io.BytesIO()
    with _DRAWING:
        draw().savefig(buffer, format="png", dpi=PICTURE_DPI)
    return buffer.getvalue()


def _key(request: Request) -> str:
    key = str(request.path_params["key"])
    if not _KEY.fullmatch(key):
        raise MissingError(f"'{key[:40]}' is no key that was given out; go back to the list")
    return key


def _operating_point(query: QueryParams) -> tuple[OperatingPoint, WriteCondition]:
    vdd_mv, trcd_ps, write = _whole(query, "vdd_mv"), _whole(query, "trcd_ps"), query.get("write", "")
    if not (0 < vdd_mv <= 3000 and 0 < trcd_ps <= 200_000 and write in list(WriteCondition)):
        raise PlanError(f"{vdd_mv} mV, {trcd_ps} ps, written at '{write[:40]}' is no operating point; choose one shown")
    return OperatingPoint(vdd_mv=vdd_mv, trcd_ps=trcd_ps), WriteCondition(write)


def _whole(query: QueryParams, name: str) -> int:
    text = query.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise PlanError(f"{name} is '{text[:40]}'; give a whole number")
    return int(text)


def _span(query: QueryParams, name: str) -> tuple[int, int] | None:
    text = query.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}:[0-9]{1,9}", text):
        raise PlanError(f"{name} is '{text[:40]}'; give FIRST:END, e.g. 0:64")
    first, end = text.split(":")
    return int(first), int(end)
