"""Bugs to seed into the gateware, one at a time: `test_prove_mutations` shows that the parity tests catch each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """In ``file``, the one occurrence of ``right`` becomes ``wrong``."""

    name: str
    file: str
    right: str
    wrong: str


_FETCH, _SEQUENCER = "gateware/engine/fetch.py", "gateware/engine/sequencer.py"
_ADDRESSES = "gateware/engine/addresses.py"
_BANKS, _DATA_PATH = "gateware/engine/banks.py", "gateware/engine/data_path.py"
_PATTERNS, _ENGINE = "gateware/engine/patterns.py", "gateware/engine/engine.py"
_LOG, _COUNTERS, _RECORDER = (
    "gateware/engine/log_writer.py",
    "gateware/engine/counters.py",
    "gateware/engine/recorder.py",
)
_MEMORIES, _CRC = "gateware/engine/memories.py", "gateware/engine/crc.py"

MUTATIONS = (
    # time and flow
    Mutation(
        "a wait is a clock too long", _SEQUENCER, "self._last_wait.eq(left == 2)", "self._last_wait.eq(left == 1)"
    ),
    Mutation("a loop makes one pass too many", _FETCH, "repeats[k].eq(lefts[k] > 2)", "repeats[k].eq(lefts[k] > 1)"),
    Mutation("an inner loop keeps its level", _FETCH, " - (self._ends & ~self._again))", ")"),
    Mutation("a loop goes back to another one's beginning", _FETCH, "entered.adr.eq(depth)", "entered.adr.eq(0)"),
    Mutation("refresh is due a clock late", _SEQUENCER, "remembered <= 2, remembered <= 1", "remembered <= 1, 0"),
    Mutation(
        "a refresh forgets its interval", _SEQUENCER, "next_one.eq(remembered + interval)", "next_one.eq(interval)"
    ),
    Mutation(
        "tRFC is a clock short", _SEQUENCER, "self._last_of_trfc.eq(left == 3)", "self._last_of_trfc.eq(left == 4)"
    ),
    Mutation("a full log does not halt", _SEQUENCER, "self._full.eq(room < reserve)", "self._full.eq(0)"),
    Mutation(
        "a program runs past its end", _FETCH, "self._following == self.length", "self._following == self.length + 1"
    ),
    Mutation("a chunk begins inside the last one's loops", _FETCH, "If(self.begin, depth.eq(0)),", ""),
    Mutation("a program begins with its second instruction", _FETCH, "self.address.eq(0)", "self.address.eq(1)"),
    # addresses
    Mutation("a pointer wraps a step late", _ADDRESSES, "self.last.eq(left == 2)", "self.last.eq(left == 1)"),
    Mutation(
        "the slow digits turn too early", _ADDRESSES, "step & last[order[0]] & last[order[1]]", "step & last[order[0]]"
    ),
    Mutation(
        "a pointer is not sent to its start",
        _ADDRESSES,
        "If((step & self.last) | restart, left",
        "If(step & self.last, left",
    ),
    Mutation(
        "a read has its row for a column", _ADDRESSES, "Mux(takes_row, rows[which], columns[which])", "rows[which]"
    ),
    Mutation(
        "the bank order is ignored",
        _ADDRESSES,
        "out.bank.eq(table[slot.bank[: entries.bit_length() - 1]])",
        "out.bank.eq(slot.bank)",
    ),
    Mutation("a pointer order may name a digit twice", _ADDRESSES, "| (sets_order & ~each_once)", ""),
    # banks and faults
    Mutation("an open bank may be opened", _BANKS, "decoded.uses_bank & decoded.activates & is_open", "0"),
    Mutation("a closed bank may be read", _BANKS, "decoded.uses_bank & moves_data & ~is_open", "0"),
    Mutation("auto-precharge leaves a bank open", _BANKS, " | (moves_data & slot.auto_precharge)", ""),
    Mutation("a read has a stale row", _BANKS, "self._decoded[j].activates & (self._slots[j].bank == slot.bank)", "0"),
    Mutation("the buffer's cursor stands still", _BANKS, "cursor.eq(cursor + 1)", "cursor.eq(cursor)"),
    Mutation("a YIELD with a bank open passes", _BANKS, "here.check & (self._open != 0)", "0"),
    Mutation("captures may overflow", _BANKS, "decoded.captures & self._capture_full", "0"),
    Mutation("row counters begin at row 0", _BANKS, "data.row_base.eq(row_base)", "data.row_base.eq(0)"),
    # the DFI
    Mutation(
        "tRCD is a clock short",
        _DATA_PATH,
        "(slot.phase == number)",
        "(slot.phase - (slot.command == int(Command.ACT)) == number - 2 * (slot.command == int(Command.ACT)))",
    ),
    Mutation("a precharge is missed", _DATA_PATH, "Command.PRE: (1, 0, 1),", "Command.PRE: (0, 0, 0),"),
    Mutation("auto-precharge is not asked for", _DATA_PATH, "Command.RD: slot.auto_precharge, ", "Command.RD: 0, "),
    Mutation("precharge-all closes one bank", _DATA_PATH, "a10 = {Command.PREA: 1, ", "a10 = {Command.PREA: 0, "),
    Mutation(
        "write data come a clock late",
        _DATA_PATH,
        "range(self._parameters.write_latency)",
        "range(self._parameters.write_latency + 1)",
    ),
    Mutation(
        "right data belong to the burst before",
        _DATA_PATH,
        "Delay(1 + len(here), LATENCY + 1)",
        "Delay(1 + len(here), LATENCY + 2)",
    ),
    Mutation(
        "captured lanes are mixed up",
        _DATA_PATH,
        "engine.dat_w.eq(self._got[32 * w : 32 * w + 32])",
        "engine.dat_w.eq(self._got[:32])",
    ),
    # data
    Mutation("inversion looks at the wrong row bit", _PATTERNS, "flip.eq(invert & row[0]", "flip.eq(invert & row[1]"),
    Mutation("the hash has a wrong shift", _PATTERNS, "(b << 9)", "(b << 8)"),
    Mutation("the walking one stands still", _PATTERNS, "1 << (row + beat)[:3]", "1 << row"),
    # log and counters
    Mutation(
        "a mask comes one failing bit too early",
        _LOG,
        "mask.eq(measured.failing > burst_words)",
        "mask.eq(measured.failing >= burst_words)",
    ),
    Mutation(
        "a log entry is dropped at a block's end",
        _LOG,
        'NextState("PADDING"))\n            .Elif(entries.valid & entry.skips',
        'entries.next.eq(1), NextState("PADDING"))\n            .Elif(entries.valid & entry.skips',
    ),
    Mutation("a block's length counts its header", _LOG, "length.eq(position - HEADER_WORDS)", "length.eq(position)"),
    Mutation(
        "a block has the number of the one before",
        _LOG,
        "self.produced[:SEQUENCE_BITS], Constant(MAGIC, 8)",
        "(self.produced - 1)[:SEQUENCE_BITS], Constant(MAGIC, 8)",
    ),
    Mutation(
        "a counter loses the addition before",
        _COUNTERS,
        "for later, sums in reversed([(adding, self._sums), *written]):",
        "for later, sums in reversed(written):",
    ),
    Mutation(
        "counters swap directions",
        _COUNTERS,
        "for k, amount in enumerate((adding.amount_0, adding.amount_1)):",
        "for k, amount in enumerate((adding.amount_1, adding.amount_0)):",
    ),
    Mutation(
        "the check of the data is ignored",
        _ENGINE,
        'self._buffer_good.eq(checker.crc == self._csrs["buffer_check"].storage)',
        "self._buffer_good.eq(1)",
    ),
)
