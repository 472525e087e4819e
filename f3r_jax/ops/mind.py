"""Modality independent neighbourhood descriptors (MIND): local self-similarity, which CT and MR share.

Each pair of offsets (a, b) gives one channel, exp(-D / V). D(p) is the mean of (I(q + a) - I(q + b))^2 over a patch of
voxels q around p. V is a local variance, computed from the mean of D over the pairs.

Letters: b batch, x y z voxels, k pairs. Internally k is the first axis, (k b x y z). As the last axis it would make no
slice contiguous.

The implementation was chosen by CPU time on two cores, for mind_ssc at 64 x 64 x 48. Columns: time of a descriptor,
time of a loss with one descriptor and its gradient, compile time of the latter on a busy machine.

    scan over the pairs, replicate-padded patch filter, autodiff    95 /  370 ms /  4 s
    the same, jax.checkpoint around the body                        84 /  385 ms /  5 s
    pairs unrolled, otherwise the same                             523 / 3344 ms / 42 s
    pairs in an axis, `_filter` and `_exponential` as here          23 /   98 ms /  6 s

A scan around the last form saves no memory (at 96^3 272 MB instead of 230 MB): the descriptor itself holds all pairs.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

Offset = tuple[int, int, int]


@dataclass(frozen=True)
class Preset:
    """One definition of MIND."""

    pairs: tuple[tuple[Offset, Offset], ...]
    taps: tuple[float, ...]  # weights of the patch mean along each axis: an odd number of taps, whose sum is 1
    border: str  # values outside the image and D: "edge" repeats the last voxel, "zero" is zero
    subtract_minimum: str  # whether the least D of a voxel is subtracted "before" or "after" computing V, or "never"
    variance: Callable[[Array], Array]  # from the mean of D over the pairs, (b x y z), to V


@functools.partial(jax.jit, static_argnames="preset")
def mind(image: Float[Array, "b x y z 1"], *, preset: str = "mind_ssc") -> Float[Array, "b x y z k"]:
    """The descriptor of an image with intensities in [0, 1]: one channel in [0, 1] per pair of the preset.

    Raises:
      ValueError: the preset does not exist.
    """
    if preset not in PRESETS:
        raise ValueError(f"MIND preset is {preset!r}; expected one of {', '.join(PRESETS)}")
    row = PRESETS[preset]
    distances = _squared_differences(image[..., 0], row)
    for axis in (-3, -2, -1):
        distances = _filter(distances, row.taps, row.border, distances.ndim + axis)
    return jnp.moveaxis(_exponential(distances, row.variance, row.subtract_minimum), 0, -1)


def _box(radius):
    return (1 / (2 * radius + 1),) * (2 * radius + 1)


def _gaussian(sigma, radius):
    weights = [math.exp(-0.5 * (t / sigma) ** 2) for t in range(-radius, radius + 1)]
    return tuple(w / sum(weights) for w in weights)


def _neighbours(distance):
    """The offsets of the six face neighbours at a distance in voxels."""
    return tuple(tuple(s * distance * (a == axis) for a in range(3)) for axis in range(3) for s in (-1, 1))


def _star(distance):
    return tuple(((0, 0, 0), n) for n in _neighbours(distance))


def _self_similarity_context(distance):
    """The 12 pairs of face neighbours that are not opposite each other; they are sqrt(2) times the distance apart."""
    six = _neighbours(distance)
    return tuple(
        (a, b) for i, a in enumerate(six) for b in six[i + 1 :] if any(p + q for p, q in zip(a, b, strict=True))
    )


def _clamp_between_powers(mean):
    """Clamps to the range between the square root and the square of the volume's mean value."""
    overall = jnp.maximum(jnp.mean(mean, axis=(1, 2, 3), keepdims=True), TINY)
    root, square = jnp.sqrt(overall), overall**2
    return jnp.clip(mean, jnp.minimum(root, square), jnp.maximum(root, square))


def _clamp_about_mean(least):
    """Clamps to the range from `least` to 1000 times the volume's mean value."""

    def clamp(mean):
        overall = jnp.mean(mean, axis=(1, 2, 3), keepdims=True)
        return jnp.clip(mean, least * overall, 1000 * overall)

    return clamp


def _fixed(mean):
    """A constant: 0.004 for intensities in [0, 0.7], rescaled to [0, 1]."""
    return jnp.full_like(mean, 0.004 / 0.7**2)


# The least V. A constant image has D = V = 0 and so gets the descriptor 1 and the gradient 0.
TINY = 1e-10

PRESETS = {
    # Heinrich et al., Medical Image Analysis 2012, which the paper cites. The division by the largest channel is done
    # by subtracting the least D: exp(-D / V) / max exp(-D / V) = exp(-(D - min D) / V), which cannot become 0 / 0.
    "mind2012": Preset(_star(1), _gaussian(0.5, 1), "edge", "after", _clamp_between_powers),
    # Heinrich et al., MICCAI 2013, with radius and dilation 2 as in common PyTorch implementations. They treat the
    # volume's mean, about which V is clamped, as a constant; here it is differentiated.
    "mind_ssc": Preset(_self_similarity_context(2), _box(2), "edge", "before", _clamp_about_mean(0.001)),
    # The same with radius and dilation 1, for voxels of 4 mm and more, where a radius of 2 blurs organs together.
    "mind_ssc_near": Preset(_self_similarity_context(1), _box(1), "edge", "before", _clamp_about_mean(0.001)),
    # The same with a greater least variance. Differences far below it leave the descriptor at 1, so noise in air and
    # other flat regions has less weight. On ten phantom cases at 4.8 mm the true displacement lowers the difference
    # by 18 % instead of 15 %.
    "mind_ssc_robust": Preset(_self_similarity_context(1), _box(1), "edge", "before", _clamp_about_mean(0.1)),
    # The Keras fork of VoxelMorph around 2019, the likely origin of Eq. 4. Its patch is a single voxel.
    "mind_fixed": Preset(_star(1), _box(0), "zero", "never", _fixed),
}


def _squared_differences(image, row):
    """(I(p + a) - I(p + b))^2 for each pair (a, b), (k b x y z)."""
    offsets = sorted({offset for pair in row.pairs for offset in pair})
    shifted = {offset: _shift(image, offset, row.border) for offset in offsets}
    return jnp.stack([(shifted[a] - shifted[b]) ** 2 for a, b in row.pairs])


def _shift(image, offset, border):
    """I(p + offset)."""
    for axis, step in enumerate(offset, start=1):
        if step:
            width = [(0, 0)] * image.ndim
            width[axis] = (max(-step, 0), max(step, 0))
            padded = jnp.pad(image, width, mode="edge" if border == "edge" else "constant")
            image = lax.slice_in_dim(padded, max(step, 0), max(step, 0) + image.shape[axis], axis=axis)
    return image


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _filter(values, taps, border, axis):
    """Weighted mean of neighbours along an axis."""
    return _multiply(values, _matrix(values.shape[axis], taps, border), len(taps) // 2, axis)


def _filter_forward(values, taps, border, axis):
    return _filter(values, taps, border, axis), None


def _filter_backward(taps, border, axis, _, cotangent):
    return (_multiply(cotangent, _matrix(cotangent.shape[axis], taps, border).T, len(taps) // 2, axis),)


_filter.defvjp(_filter_forward, _filter_backward)


@functools.cache
def _matrix(size, taps, border):
    """The filter along an axis of `size` voxels as a matrix, (size, size)."""
    matrix = np.zeros((size, size))
    for i in range(size):
        for j, tap in enumerate(taps, start=i - len(taps) // 2):
            inside = min(max(j, 0), size - 1)
            if border == "edge" or j == inside:
                matrix[i, inside] += tap
    return matrix


def _multiply(values, matrix, radius, axis):
    """Product with a band matrix along an axis. Rows further than `radius` from both ends must have equal taps.

    These rows are computed as one sum of slices, which XLA vectorises. It does not vectorise the selects of a padded
    array or the gradient of padding. The few rows at the border are written out.
    """
    size = values.shape[axis]

    def weighted(row, length):
        terms = [
            float(matrix[row, j]) * lax.slice_in_dim(values, j, j + length, axis=axis)
            for j in map(int, np.flatnonzero(matrix[row]))
        ]
        return functools.reduce(jnp.add, terms)

    if radius == 0:
        return weighted(0, size)
    if size <= 2 * radius:
        return lax.concatenate([weighted(i, 1) for i in range(size)], axis)
    first = [weighted(i, 1) for i in range(radius)]
    last = [weighted(i, 1) for i in range(size - radius, size)]
    return lax.concatenate([*first, weighted(radius, size - 2 * radius), *last], axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _exponential(distances, variance, subtract_minimum):
    """exp(-D / V) of distances (k b x y z).

    The gradient is written by hand, which takes 40 ms. Autodiff of the minimum and the mean over the pairs took 230 ms,
    and gave the gradient of the minimum to one of several equal pairs. Here equal pairs share it.
    """
    minimum, mean = _minimum_and_mean(list(distances), subtract_minimum)
    return jnp.exp((minimum - distances) / _floored(variance)(mean))


def _exponential_forward(distances, variance, subtract_minimum):
    out = _exponential(distances, variance, subtract_minimum)
    return out, (distances, out)


def _exponential_backward(variance, subtract_minimum, residuals, cotangent):
    # Lists of k arrays are used instead of arrays with a leading axis, so that sums over k are plain additions.
    distances, out, cotangent = map(list, (*residuals, cotangent))
    minimum, mean = _minimum_and_mean(distances, subtract_minimum)
    value, pull_back = jax.vjp(_floored(variance), mean)
    scaled = [g * o / value for g, o in zip(cotangent, out, strict=True)]
    (mean_bar,) = pull_back(_total([s * (d - minimum) for s, d in zip(scaled, distances, strict=True)]) / value)
    bars = [mean_bar / len(distances) - s for s in scaled]
    if subtract_minimum != "never":
        least = [(d == minimum).astype(d.dtype) for d in distances]
        minimum_bar = _total(scaled) - (mean_bar if subtract_minimum == "before" else 0)
        share = minimum_bar / _total(least)
        bars = [bar + hit * share for bar, hit in zip(bars, least, strict=True)]
    return (jnp.stack(bars),)


_exponential.defvjp(_exponential_forward, _exponential_backward)


def _minimum_and_mean(distances, subtract_minimum):
    """The value that is subtracted from D, and the mean from which the variance is computed."""
    mean = _total(distances) / len(distances)
    if subtract_minimum == "never":
        return jnp.zeros_like(mean), mean
    minimum = functools.reduce(jnp.minimum, distances)
    return minimum, mean - minimum if subtract_minimum == "before" else mean


def _floored(variance):
    return lambda mean: jnp.maximum(variance(mean), TINY)


def _total(arrays):
    return functools.reduce(jnp.add, arrays)
