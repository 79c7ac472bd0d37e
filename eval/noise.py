"""The policy's noise in an episode, determined by the episode's seed."""

import numpy as np

_NOISE_STREAM = (2**32 - 1,)
"""Spawn key of an episode's noise, distinct from the environment's streams of the same seed."""


def noise_generator(seed: int) -> np.random.Generator:
    """Generator of the noise in the episode with a seed: `noise_dim` normal float32 per step."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=_NOISE_STREAM))
