"""Observation normalisation: what varies is scaled, what is constant is not."""

import tracemalloc

import numpy as np
import pytest
import torch

from tql_offline.networks.normaliser import Normaliser, _deviation


@pytest.mark.parametrize("level", [0.0, 0.1, 1000.0])
def test_a_dim_that_differs_by_rounding_alone_keeps_its_scale(level):
    rng = np.random.default_rng(0)
    column = np.full(1000, level, np.float32)
    column[::2] = np.nextafter(column[::2], np.float32(np.inf))
    varying = rng.normal(3.0, 1e-3, 1000).astype(np.float32)
    normaliser = Normaliser(2)
    normaliser.fit(np.stack([column, varying], axis=1))
    with torch.no_grad():
        far = normaliser(torch.tensor([[level + 0.001, 3.001]]))
    assert far[0, 0] == pytest.approx(0.001, abs=1e-4)
    assert far[0, 1] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("rows", "dims"), [(1, 3), (2**14, 2), (2**14 + 1, 5), (100_001, 4)])
def test_the_deviation_is_numpys_to_the_bit_without_a_copy_of_the_rows(rows, dims):
    random = np.random.default_rng(rows)
    column = random.standard_normal((rows, dims)) + 100 * random.standard_normal(dims)
    observations = column.astype(np.float32)
    mean = observations.mean(axis=0, dtype=np.float64)
    tracemalloc.start()
    have = _deviation(observations, mean)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(have, observations.std(axis=0, dtype=np.float64))
    assert most < 3 * 8 * (2**14 + 1) * dims
