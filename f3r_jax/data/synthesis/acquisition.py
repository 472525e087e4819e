"""Simulated acquisition: blur, thick slices, a bias field, noise, a scale, and a smaller field of view.

Letters: x y z voxels, c channels.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from f3r_jax.data.synthesis.settings import Settings
from f3r_jax.ops.random_fields import smooth_noise
from f3r_jax.ops.shapes import Scalar

Image = Float[Array, "x y z"]
BIAS_INTERVALS = 2  # number of intervals between knots of the bias field along the longest axis
PERCENTILE = 0.99
STRIDE = 3  # voxels, the percentile is computed from every third along each axis
CROP_Z = 0.25  # maximum fraction of planes that are removed at either end along z
CROP_XY = 0.1  # the same along x and y
CROPS_XY = 0.3  # fraction of the cropped images that lose planes along x and y too


def acquire(key: Array, image: Image, *, settings: Settings, strength: Scalar | float, is_ct: Bool[Array, ""]) -> Image:
    """Adds the effects of a scanner to an image in [0, 1].

    The scale of a CT is not changed, because HU are absolute. Its air has no noise, because the window clips it.

    Args:
      key: a JAX random key.
      image: intensities in [0, 1].
      settings: the strength of each effect.
      strength: a factor for all effects.
      is_ct: if not, a bias field, gamma and the noise of the magnitude of a complex signal are added.
    """
    keys = jax.random.split(key, 3)
    sharpness, slices, bias, gamma, noise = jnp.split(jax.random.uniform(keys[0], (7,)), [1, 4, 5, 6])
    magnitude = ~is_ct
    image = blurred(image[..., None], strength * _sigmas(sharpness, slices, settings))[..., 0]
    bias = strength * magnitude * settings.bias * bias
    image = image * jnp.exp(bias * smooth_noise(keys[1], image.shape, intervals=BIAS_INTERVALS)[..., 0])
    sample = jnp.sort(image[::STRIDE, ::STRIDE, ::STRIDE].ravel())
    full = jnp.maximum(sample[int(PERCENTILE * sample.size)], 1e-3)
    image = jnp.clip(jnp.where(magnitude, image / full, image), 0, 1)
    image = image ** jnp.exp(strength * magnitude * settings.gamma * (2 * gamma - 1))
    noise = strength * settings.noise * noise * computed_once(jax.random.normal(keys[2], image.shape))
    # The imaginary part is the noise of the opposite voxel, as drawing it would take as long as all other steps.
    noisy = jnp.hypot(image + noise, noise[::-1, ::-1, ::-1])
    return jnp.clip(jnp.where(magnitude, noisy, image + noise * (image > 0)), 0, 1)


def blurred(volume: Float[Array, "x y z c"], sigmas: Float[Array, "3"]) -> Float[Array, "x y z c"]:
    """Convolves with a Gaussian of `sigmas` voxels along the axes; weights are normalised inside the volume."""
    for axis, n in enumerate(volume.shape[:3]):  # blurs the first axis and moves it before the channels
        distance = jnp.arange(n)[:, None] - jnp.arange(n)
        weights = jnp.exp(-0.5 * (distance / jnp.maximum(sigmas[axis], 1e-2)) ** 2)
        weights /= weights.sum(axis=1, keepdims=True)
        volume = jnp.moveaxis(jnp.tensordot(volume, weights, axes=((0,), (1,))), -1, 2)
    return volume


def computed_once(array: Array) -> Array:
    """The same array, which XLA on CPU then stores instead of computing it again for each use.

    XLA does not fuse the halves of a concatenation into its uses. An optimization_barrier is removed before fusion.
    """
    middle = len(array) // 2
    return jnp.concatenate([array[:middle], array[middle:]])


def draw_crops(
    key: Array, shape: tuple[int, int, int], *, probability: Scalar | float
) -> tuple[Bool[Array, "x y z"], Bool[Array, "x y z"]]:
    """Masks of the fields of view of the moving and the fixed image; at least one of them is not cropped.

    Planes are removed at either end along z, and sometimes along x and y.
    """
    lost, chances = jnp.split(jax.random.uniform(key, (9,)), [6])
    most = jnp.array([CROP_XY, CROP_XY, 0]) * (chances[0] < CROPS_XY) + jnp.array([0, 0, CROP_Z])
    lost = lost.reshape(3, 2) * most[:, None]
    shown = jnp.ones(shape, bool)
    for axis, n in enumerate(shape):
        plane = (jnp.arange(n) + 0.5) / n
        inside = (plane >= lost[axis, 0]) & (plane <= 1 - lost[axis, 1])
        shown &= inside.reshape([-1 if a == axis else 1 for a in range(3)])
    cropped, of_moving = chances[1] < probability, chances[2] < 0.5
    return shown | ~(cropped & of_moving), shown | ~(cropped & ~of_moving)


def _sigmas(sharpness: Float[Array, "1"], slices: Float[Array, "3"], settings: Settings) -> Float[Array, "3"]:
    """Standard deviations of the blur, in voxels, from uniform random numbers.

    Half of the images have thick slices along one axis.
    """
    thickness, chance, place = slices
    across = jnp.arange(3) == jnp.floor(3 * place)
    return jnp.hypot(settings.blur * sharpness, settings.thick_slices * thickness * (chance < 0.5) * across)
