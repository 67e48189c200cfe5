"""Hypothesis without a deadline: the first example of a test may wait for numba's compiler."""

from hypothesis import settings

settings.register_profile("eden", deadline=None)
settings.load_profile("eden")
