"""The working grid of a registration, and the memory that limits it."""

import math

import numpy as np
import pytest

from f3r_jax.common import memory
from f3r_jax.data.nifti import Image
from f3r_jax.register import working_grid
from f3r_jax.register.scans import Scan

NARROW = (160, 160, 160)


def scan(shape, spacing, modality="mr"):
    data = np.zeros(shape, np.float32)
    image = Image(data, np.diag([spacing, spacing, spacing, 1.0]))
    return Scan(image, image, modality, image.grid)


def grid_of(*scans, spacing=None, gigabytes=None, least=0.0):
    return working_grid.working_grid(*scans, np.eye(4), spacing=spacing, gigabytes=gigabytes, least=least)


def test_the_default_spacing_is_the_smallest_voxel_edge_but_at_least_1_mm():
    fine, coarse = scan((40, 40, 40), 0.5), scan((20, 20, 20), 2.0, "ct")
    assert grid_of(fine, coarse)[1] == 1.0
    assert grid_of(coarse, coarse)[1] == 2.0
    assert grid_of(coarse, coarse, least=3.0)[1:] == (3.0, "")


def test_a_grid_that_does_not_fit_gets_the_next_larger_spacing():
    pair = scan(NARROW, 1.0), scan(NARROW, 1.0, "ct")
    gigabytes = 1.5
    fits = gigabytes * 1e9 - memory.PROGRAM - working_grid.SCAN_BYTES * 2 * 160**3
    grid, spacing, words = grid_of(*pair, gigabytes=gigabytes)
    assert math.prod(grid.shape) * memory.USED_PER_VOXEL <= fits
    assert 1.0 < spacing < 2.0 and "to fit into 1.5 GB" in words and "--memory" in words
    larger, full, none = grid_of(*pair, gigabytes=3.0)
    assert (full, none) == (1.0, "") and larger.shape == NARROW
    assert min(grid.shape) * spacing >= 160


def test_a_given_spacing_is_kept_whatever_the_memory():
    pair = scan((96, 96, 96), 1.0), scan((96, 96, 96), 1.0, "ct")
    assert grid_of(*pair, spacing=1.0, gigabytes=0.1)[1:] == (1.0, "")
    assert grid_of(*pair, gigabytes=0.1)[1] > 1.0


@pytest.mark.parametrize(("free", "budget"), [(20e9, 4e9), (6e9, 3e9), (None, 4e9)])
def test_the_budget_is_half_of_what_is_free_and_at_most_4_gb(monkeypatch, free, budget):
    monkeypatch.setattr(memory, "free", lambda: free)
    assert memory.budget(None) == budget
    assert memory.budget(1.5) == 1.5e9
