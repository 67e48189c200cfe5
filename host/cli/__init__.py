"""The command line: the only place where board, profile and network meet."""
