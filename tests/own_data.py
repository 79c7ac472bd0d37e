"""A user's own file for tests: random numbers in the layout of docs/data.md, rewards of -1."""

from pathlib import Path

import numpy as np


def write_own(
    path: Path,
    lengths: tuple[int, ...],
    observation_dim: int,
    mean: float = 0.0,
    deviation: float = 1.0,
    action_dim: int = 2,
) -> Path:
    """Episodes of so many transitions; all masks are 1."""
    rng = np.random.default_rng(0)
    ends = np.cumsum(np.array(lengths) + 1) - 1
    rows = ends[-1] + 1
    terminals = np.zeros(rows, dtype=bool)
    terminals[ends] = True
    np.savez(
        path,
        observations=mean
        + deviation * rng.standard_normal((rows, observation_dim), dtype=np.float32),
        actions=rng.uniform(-0.9, 0.9, (rows, action_dim)).astype(np.float32),
        rewards=-np.ones(rows, dtype=np.float32),
        masks=np.ones(rows, dtype=np.float32),
        terminals=terminals,
    )
    return path
