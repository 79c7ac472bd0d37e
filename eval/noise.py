"""The noise that an episode's seed gives its policy."""

import numpy as np

_NOISE_STREAM = (2**32 - 1,)
"""Spawn key of an episode's noise, apart from the environment's streams of the same seed."""


def noise_generator(seed: int) -> np.random.Generator:
    """Generator of the noise of the episode of a seed: `noise_dim` normal float32 per step."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=_NOISE_STREAM))
