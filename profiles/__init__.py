"""Error profiles of DRAM modules: geometry, patterns, storage, statistics, error models and plots."""
