"""The boards that the gateware can be built for; a new one is a file beside these and a line here."""

from gateware.boards.arty_a7 import ARTY_A7
from gateware.boards.base import Board
from gateware.boards.butterstick import BUTTERSTICK
from gateware.boards.ecpix5 import ECPIX5
from gateware.boards.kc705 import KC705
from gateware.boards.orangecrab import ORANGECRAB
from gateware.boards.zcu104 import ZCU104

BOARDS: dict[str, Board] = {board.name: board for board in (ECPIX5, ORANGECRAB, BUTTERSTICK, KC705, ARTY_A7, ZCU104)}
