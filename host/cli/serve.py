"""`eden serve`: a page to watch scans and to look at profiles and reports."""

import ipaddress
import socket
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from host.cli.console import complain, console
from host.web.app import application, names_of_this_computer
from host.web.folder import Folder
from profiles.errors import PlanError

GRACE_S = 2  # for answers under way when it ends
AT_ONCE = 64  # requests; more are told to come back


def serve(
    folder: Annotated[
        Path, typer.Argument(help="Folder whose scans, profiles and reports are shown, however deep they lie.")
    ] = Path("build"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0: any that is free.")] = 8042,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen at. Any other than this computer's own loopback shows all to the network."
        ),
    ] = "127.0.0.1",
) -> None:
    """Show a page with the scans that run, their heat maps as they fill in, profiles and reports.

    It reads the folder and changes nothing there or on any board: scans need not know of it, and it may be begun and
    ended (Ctrl-C) at any time. A scan runs if its command does, in whatever terminal of whichever user.

    There is no password and no encryption. By default only this computer can see the page; from elsewhere, use
    `ssh -L 8042:localhost:8042 LAB-COMPUTER` and open http://localhost:8042/ there.
    """
    if not folder.is_dir():
        raise PlanError(f"{folder} is no folder; give the one that scans write into (build, if no plan says otherwise)")
    listening = _listen(host, port)
    address, number = listening.getsockname()[:2]
    if not ipaddress.ip_address(address).is_loopback:
        complain(
            f"listening at {address}: everyone who can reach this computer can see all profiles and reports in "
            f"{folder.resolve()}; there is no password and no encryption"
        )
    shown = "localhost" if address in ("0.0.0.0", "::") else f"[{address}]" if ":" in address else address
    try:
        console.print(f"{folder} is shown at http://{shown}:{number}/ until Ctrl-C", soft_wrap=True)
        app = application(Folder(folder), [host, *names_of_this_computer()])
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            limit_concurrency=AT_ONCE,
            timeout_graceful_shutdown=GRACE_S,
        )
        uvicorn.Server(config).run(sockets=[listening])
    except SystemExit:  # Ctrl-C is how it ends
        console.print("ended")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise PlanError(
            f"cannot listen at {host}, port {port}: {error.strerror}; give another --port (0: any free one) or --host"
        ) from error
