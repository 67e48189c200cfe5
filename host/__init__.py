"""What runs on the PC: bus, board, rail and scan; the mock board in software; and the command line."""
