"""LiteX's own ``litex_server`` in a process of its own, between the host and a board on Etherbone."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

# It takes the board's UDP port at all addresses of this computer, where the board is too: both have to agree to that.
SERVE = """
import socket
class Sharing(socket.socket):
    def bind(self, address):
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        super().bind(address)
socket.socket = Sharing
from litex.tools.litex_server import main
main()
"""
START_S = 60.0


@contextmanager
def litex_server(board: str, udp_port: int) -> Iterator[int]:
    """A server before the board at that address and port; gives its TCP port on 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--udp", "--udp-ip", board, "--udp-port", udp_port, "--bind-ip", "127.0.0.1", "--bind-port", port]
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", SERVE, *map(str, options)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        assert b"tcp port" in process.stdout.readline()
        end = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), START_S).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
        yield port
    finally:
        process.kill()
        process.communicate()
