"""The EDEN method: approximate memory for networks, boosting, tolerance, mapping and inference."""
