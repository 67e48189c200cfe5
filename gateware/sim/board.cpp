// C interface of a Verilated board: clocks, Wishbone accesses, serial bytes, and the way from its DRAM pins to C.

#include <cstdint>
#include <deque>
#include <memory>

#include "Vsimulated_board.h"
#include "verilated.h"

namespace {

// Answers of the DRAM. A function that fails in Python returns 0.
enum : int64_t { FAILED = 0, DONE = 1, WANTS_MEMORY = 2 };
enum : int { PINS_DATA = 32 };  // in place of a command's pins: the data of the oldest WRITE

using Dram = int64_t (*)(int64_t dram, int64_t pins, int64_t bank, int64_t address, int64_t clock, int64_t burst,
                         int64_t mask);
using Grow = int64_t (*)();

// One line of a UART: 8N1, least significant bit first.
struct SerialLine {
    int64_t divisor = 0;  // system clocks a bit
    std::deque<uint8_t> bytes;
    int64_t clock = 0;  // within the byte
    uint8_t byte = 0;
    bool busy = false;

    bool drive() {
        if (!busy) {
            if (bytes.empty()) return true;
            byte = bytes.front();
            bytes.pop_front();
            busy = true;
            clock = 0;
        }
        int64_t bit = clock++ / divisor;
        if (clock == 10 * divisor) busy = false;
        return bit == 0 ? false : bit > 8 ? true : byte >> (bit - 1) & 1;
    }

    void sample(bool level) {
        if (!busy) {
            busy = !level;
            clock = 0;
            byte = 0;
            if (!busy) return;
        }
        int64_t bit = clock / divisor;
        if (clock++ % divisor == divisor / 2 && bit >= 1 && bit <= 8) byte |= level << (bit - 1);
        if (bit == 9 && level) {
            bytes.push_back(byte);
            busy = false;
        }
    }
};

}  // namespace

struct Board {
    std::unique_ptr<VerilatedContext> context;
    std::unique_ptr<Vsimulated_board> top;
    Dram dram_function;
    Grow grow;
    int64_t dram;
    int64_t clocks = 0;  // system clocks since power-up
    bool failed = false;
    SerialLine to_board, from_board;

    void call(int64_t pins, int64_t bank, int64_t address, int64_t clock, void* burst, const void* mask) {
        if (failed) return;
        int64_t answer;
        do answer = dram_function(dram, pins, bank, address, clock, reinterpret_cast<int64_t>(burst),
                                  reinterpret_cast<int64_t>(mask));
        while (answer == WANTS_MEMORY && grow() == DONE);
        failed = answer != DONE;
    }

    void step();

    bool access(uint32_t address, bool write, uint32_t* word, int64_t limit) {
        top->bus_adr = address >> 2;
        top->bus_we = write;
        top->bus_dat_w = *word;
        top->bus_sel = 0xf;
        top->bus_cyc = top->bus_stb = 1;
        do step();
        while (!top->bus_ack && !top->bus_err && --limit > 0);
        bool good = top->bus_ack && !top->bus_err && !top->bus_error && !failed;
        *word = top->bus_dat_r;
        step();
        top->bus_cyc = top->bus_stb = 0;
        return good;
    }
};

namespace {
thread_local Board* evaluated;  // whose DRAM the functions below are called for
}

void Board::step() {
    evaluated = this;
    if (to_board.divisor) {
        top->serial_rx = to_board.drive();
        from_board.sample(top->serial_tx);
    }
    top->clock = 1;
    top->eval();
    top->clock = 0;
    top->eval();
    clocks++;
}

extern "C" {

void simulated_dram_command(int phase, int pins, int bank, int address, svBitVecVal* burst) {
    evaluated->call(pins, bank, address, evaluated->clocks * NPHASES + phase, burst, nullptr);
}

void simulated_dram_data(const svBitVecVal* burst, const svBitVecVal* mask) {
    evaluated->call(PINS_DATA, 0, 0, evaluated->clocks * NPHASES, const_cast<svBitVecVal*>(burst), mask);
}

#define EXPORTED __attribute__((visibility("default")))

EXPORTED Board* board_open(Dram dram_function, Grow grow, int64_t dram) {
    auto board = new Board{};
    board->context = std::make_unique<VerilatedContext>();
    board->top = std::make_unique<Vsimulated_board>(board->context.get(), "");
    board->dram_function = dram_function;
    board->grow = grow;
    board->dram = dram;
    board->top->serial_rx = 1;
    board->top->reset = 1;
    for (int n = 0; n < 8; n++) board->step();
    board->top->reset = 0;
    return board;
}

EXPORTED void board_close(Board* board) {
    board->top->final();
    delete board;
}

EXPORTED int64_t board_clocks(const Board* board) { return board->clocks; }

EXPORTED int64_t board_failed(const Board* board) { return board->failed; }

EXPORTED void board_run(Board* board, int64_t clocks) {
    while (clocks-- > 0 && !board->failed) board->step();
}

// Both return how many words were moved; fewer than asked if the bus reported an error or did not answer.
EXPORTED int64_t board_read(Board* board, uint32_t address, int64_t count, uint32_t* words, int64_t limit) {
    int64_t done = 0;
    while (done < count && board->access(address + 4 * done, false, &words[done], limit)) done++;
    return done;
}

EXPORTED int64_t board_write(Board* board, uint32_t address, int64_t count, const uint32_t* words, int64_t limit) {
    for (int64_t done = 0; done < count; done++) {
        uint32_t word = words[done];
        if (!board->access(address + 4 * done, true, &word, limit)) return done;
    }
    return count;
}

// Run until a word no longer reads `value`, looked at every `interval` clocks, or for about `clocks`; 0 if it cannot
// be read.
EXPORTED int64_t board_run_while(Board* board, uint32_t address, uint32_t value, int64_t interval, int64_t clocks,
                                 int64_t limit) {
    for (int64_t end = board->clocks + clocks; board->clocks < end;) {
        uint32_t word = 0;
        if (!board->access(address, false, &word, limit)) return 0;
        if (word != value) break;
        board_run(board, interval);
    }
    return 1;
}

EXPORTED void board_serial_open(Board* board, int64_t divisor) {
    board->to_board.divisor = board->from_board.divisor = divisor;
}

EXPORTED void board_serial_write(Board* board, const uint8_t* bytes, int64_t count) {
    board->to_board.bytes.insert(board->to_board.bytes.end(), bytes, bytes + count);
}

EXPORTED int64_t board_serial_read(Board* board, uint8_t* bytes, int64_t count) {
    auto& received = board->from_board.bytes;
    int64_t taken = 0;
    for (; taken < count && !received.empty(); taken++) {
        bytes[taken] = received.front();
        received.pop_front();
    }
    return taken;
}

}  // extern "C"
