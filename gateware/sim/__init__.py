"""The simulated board: the gateware's SoC under Verilator, over DRAM that a C function computes."""
