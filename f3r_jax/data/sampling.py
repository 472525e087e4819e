"""Sampling of a volume at positions between its voxels, with the edges and the rounding of ITK's resampling.

Up to half a voxel beyond the outermost voxel centres a volume has values: the edge value, or the mirrored spline.
Farther out it has the value outside. Letters: x y z voxels of the volume, n positions.
"""

import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Shaped
from scipy import ndimage

Positions = Float64[np.ndarray, "3 *n"]  # in voxels
Sampler = Callable[[Positions], np.ndarray]

IMAGE, LABELS = ("linear", "nearest", "bspline"), ("nearest", "label")
INTERPOLATIONS = ("linear", "nearest", "bspline", "label")
OUTSIDE = 0.5  # voxels beyond the outermost centres, the edge of their voxels, as in ITK
ROUNDING = 1e-6  # voxels


def sampler(volume: Shaped[np.ndarray, "x y z"], interpolation: str, *, outside: float) -> Sampler:
    """A function that samples a volume at positions (3 ...) in voxels, as an array (...).

    Args:
      volume: floats, or any type with "nearest" and "label".
      interpolation: "linear"; "nearest": half-way between two voxels the upper one; "bspline": cubic, it can exceed
        the range of the values; "label": of the labels around a position the one with the largest linear weight.
      outside: the value outside the volume.
    """
    last = np.array(volume.shape) - 1
    inside = {"linear": _linear, "nearest": _nearest, "bspline": _spline, "label": _label}[interpolation](volume)

    def sample(index: Positions) -> np.ndarray:
        values = inside(index)
        beyond = np.maximum(-index, index - last.reshape(3, *[1] * (index.ndim - 1))).max(axis=0)
        values[beyond > OUTSIDE + ROUNDING] = outside
        return values

    return sample


def _linear(volume: np.ndarray) -> Sampler:
    return lambda index: ndimage.map_coordinates(volume, index, order=1, mode="nearest")


def _nearest(volume: np.ndarray) -> Sampler:
    return lambda index: ndimage.map_coordinates(volume, index, order=0, mode="nearest")


def _spline(volume: np.ndarray) -> Sampler:
    weights = ndimage.spline_filter(volume, order=3, output=np.float64, mode="mirror")
    return lambda index: ndimage.map_coordinates(weights, index, order=3, mode="mirror", prefilter=False)


def _label(volume: np.ndarray) -> Sampler:
    """Of the eight voxels around a position, the label with the largest sum of weights; the lower one if tied."""
    last = np.array(volume.shape) - 1

    def sample(index: Positions) -> np.ndarray:
        flat = np.clip(index.reshape(3, -1), 0, last[:, None])
        lower = np.minimum(flat.astype(int), np.maximum(last - 1, 0)[:, None])
        upper, fraction = np.minimum(lower + 1, last[:, None]), flat - lower
        labels, weights = [], []
        for corner in itertools.product((0, 1), repeat=3):
            voxel = [(lower, upper)[side][axis] for axis, side in enumerate(corner)]
            labels.append(volume[tuple(voxel)])
            factors = [fraction[axis] if side else 1 - fraction[axis] for axis, side in enumerate(corner)]
            weights.append(factors[0] * factors[1] * factors[2])
        best, most = labels[0].copy(), np.full(flat.shape[1], -1.0)
        for label in labels:
            weight = np.zeros(len(label))
            for other, each in zip(labels, weights, strict=True):
                weight += np.where(other == label, each, 0.0)
            # Sums of the same weights in another order may differ by a rounding error.
            better = (weight > most + 1e-12) | ((weight > most - 1e-12) & (label < best))
            best[better], most[better] = label[better], weight[better]
        return best.reshape(index.shape[1:])

    return sample
