"""Exhaustive search over placements of the moving scan: all shifts by whole voxels, at several scales.

A placement maps x of the fixed frame to c' + S (x - c) + t, with the centres c and c' of the two coarse grids, the
shift t and the scales S. The sums of `coarse.mismatch` over all shifts are correlations, computed by Fourier
transforms. Letters: x y z voxels.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

from f3r_jax.common.arrays import Matrix
from f3r_jax.data.affine.coarse import PENALTY, SPACING, CoarseScan, descriptors
from f3r_jax.data.nifti import Grid
from f3r_jax.ops.threads import in_threads

STEP = 0.12  # of the logarithm of a scale
PENALTY_OF_SCALE = 0.02  # per square of a logarithm, summed over the axes
LEAST_COVER = 0.5  # of the smaller body must be in the other scan's field of view
APART = 3  # minimum distance, in voxels, of two placements of one scale
DIFFERENT = 20.0  # mm, minimum distance of two placements along some axis
COUNT = 8


class Placement(NamedTuple):
    """Shift in mm and logarithms of the scales along x, y, z, and the mismatch with the penalty of the scales."""

    shift: np.ndarray
    log_scales: np.ndarray
    cost: float


def centre(grid: Grid) -> np.ndarray:
    """The centre of a grid in mm."""
    return grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:3, 3]


def matrix_of(place: Placement, fixed: Grid, moving: Grid) -> Matrix:
    """The matrix of a placement, from mm of the fixed frame to mm of the moving frame."""
    matrix = np.diag([*np.exp(place.log_scales), 1.0])
    matrix[:3, 3] = centre(moving) + place.shift - matrix[:3, :3] @ centre(fixed)
    return matrix


def search(fixed: CoarseScan, moving: CoarseScan) -> list[Placement]:
    """The best placements, `DIFFERENT` mm apart, best first; empty if no placement covers enough of a body."""
    scales = [np.array([across, across, along]) for across, along in itertools.product((-STEP, 0.0, STEP), repeat=2)]
    kept: list[Placement] = []
    for place in sorted(_at_scales(fixed, moving, scales), key=lambda each: each.cost):
        if len(kept) < COUNT and all(np.abs(place.shift - other.shift).max() > DIFFERENT for other in kept):
            kept.append(place)
    return kept


def lowest_mismatch(fixed: CoarseScan, moving: CoarseScan) -> float:
    """The lowest mismatch over all shifts at three scales, with the penalty; infinite if none covers enough."""
    found = _at_scales(fixed, moving, [np.full(3, step) for step in (-STEP, 0.0, STEP)])
    return min((place.cost for place in found), default=float("inf"))


def _at_scales(fixed: CoarseScan, moving: CoarseScan, scales: Sequence[np.ndarray]) -> list[Placement]:
    """The best shifts at each of the scales."""
    described = (fixed.descriptors, fixed.body, fixed.seen)  # computed once, before the threads
    return list(itertools.chain(*in_threads(lambda each: _at_scale(described, moving, each), scales)))


def _at_scale(fixed: tuple[np.ndarray, ...], moving: CoarseScan, log_scales: np.ndarray) -> list[Placement]:
    """The best shifts at one scale; `fixed` is as in `mismatches`."""
    scales = np.exp(log_scales)
    scaled, body, seen = (_scaled(volume, scales) for volume in (moving.intensities, moving.body, moving.seen))
    body, seen = (body > 0.5) & (seen > 0.5), seen > 0.5
    costs = mismatches(fixed, (descriptors(scaled), body, seen))
    size, size_there = np.array(fixed[1].shape), np.array(body.shape)
    found = []
    for at in _lowest(costs, COUNT):
        shift = np.where(at >= size_there, at - np.array(costs.shape), at)  # moving voxel minus fixed voxel
        offset = scales * SPACING * (shift + (size - size_there) / 2)
        price = PENALTY_OF_SCALE * float(np.sum(log_scales**2))
        found.append(Placement(offset, log_scales, float(costs[tuple(at)]) + price))
    return found


def mismatches(fixed: tuple[np.ndarray, ...], moving: tuple[np.ndarray, ...]) -> np.ndarray:
    """The mismatch of `coarse` with fixed voxel p on moving voxel p + shift, for all shifts from 0 on, cyclic.

    Each side is descriptors (x y z k), body and seen (x y z). Shifts that cover less than `LEAST_COVER` are infinite.
    """
    (f, body, seen), (m, body_there, seen_there) = fixed, moving
    shape = [fft.next_fast_len(a + b) for a, b in zip(body.shape, body_there.shape, strict=True)]

    def spectrum(values: np.ndarray) -> np.ndarray:
        return fft.rfftn(values.astype(np.float32), shape)

    def correlation(product: np.ndarray) -> np.ndarray:
        return fft.irfftn(product, shape)

    conjugate, there = np.conj(spectrum(body)), spectrum(body_there)
    squares = np.conj(spectrum(body * np.mean(f**2, axis=-1))) * there
    squares += conjugate * spectrum(body_there * np.mean(m**2, axis=-1))
    for k in range(f.shape[-1]):
        product = np.conj(spectrum(body * f[..., k])) * spectrum(body_there * m[..., k])
        squares -= 2 / f.shape[-1] * product
    both = correlation(conjugate * there)
    covered = correlation(conjugate * spectrum(seen_there))
    covered_there = correlation(np.conj(spectrum(seen)) * there)
    one = np.maximum(covered - both, 0) + np.maximum(covered_there - both, 0)
    cost = (np.maximum(correlation(squares), 0) + PENALTY * one) / np.maximum(both + one, 1)
    least = max(LEAST_COVER * min(body.sum(), body_there.sum()), 1)
    return np.where((covered >= least) & (covered_there >= least), cost, np.inf)


def _scaled(volume: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """A volume whose voxels are `scales` times as large, centred."""
    size = np.array(volume.shape)
    new = np.ceil(size / scales).astype(int)
    offset = (size - 1) / 2 - scales * (new - 1) / 2
    x, y, z = map(int, new)
    return ndimage.affine_transform(
        volume.astype(np.float32), np.diag(scales), offset, (x, y, z), order=1, mode="nearest"
    )


def _lowest(costs: np.ndarray, count: int) -> list[np.ndarray]:
    """The finite voxels of the lowest costs, lowest first, more than `APART` voxels apart along some axis; cyclic."""
    left, found = costs.copy(), []
    for _ in range(count):
        at = np.unravel_index(np.argmin(left), left.shape)
        if not np.isfinite(left[at]):
            break
        found.append(np.array(at))
        around = [np.arange(i - APART, i + APART + 1) % size for i, size in zip(at, left.shape, strict=True)]
        left[np.ix_(*around)] = np.inf
    return found
