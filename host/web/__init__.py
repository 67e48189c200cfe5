"""The page of `eden serve`: a folder's scans, profiles and reports, to look at and nothing else."""
