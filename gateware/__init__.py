"""What runs on the FPGA, and its contract with the host (`isa`, `registers`, `errorlog`: plain Python, no Migen)."""
