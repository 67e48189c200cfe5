"""The serial line of a simulated board: a pseudo-terminal into the RTL's own UART."""

from gateware.serial_protocol import MAX_WORDS
from host.simulation import SimulatedBoard

_SLICE = 32  # bytes' time that passes between two looks at the line
_WORK = 30 * MAX_WORDS  # clocks, and more than the bridge takes from the end of a request to its answer


class SimulatedPeer:
    """A `tests.host.serial_peer.Peer`: time passes on the board while bytes are under way, and stands still otherwise.

    Attributes:
        busy: bytes are under way.
    """

    def __init__(self, board: SimulatedBoard) -> None:
        self._board, self._byte = board, 10 * board.about["serial_divisor"]
        self._until, self.busy = board.clocks, False

    def send(self, line: bytes) -> bytes:
        board = self._board
        board.serial_write(line)
        self._until = max(self._until, board.clocks) + self._byte * len(line)
        board.run(_SLICE * self._byte)
        answer = board.serial_read()
        if answer:
            self._until = max(self._until, board.clocks)
        self.busy = board.clocks < self._until + _WORK
        return answer

    def silence(self) -> bytes:
        return b""
