"""What a scanner adds to an image: blur, thick slices, a bias field, noise, a scale, and a smaller field of view.

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
BIAS_INTERVALS = 2  # between the knots of the bias field along the longest axis
PERCENTILE = 0.99
STRIDE = 3  # of the voxels that the percentile is taken from
CROP_Z = 0.25  # of the planes at either end are lost at most
CROP_XY = 0.1
CROPS_XY = 0.3  # of the cropped images lose planes along x and y too


def acquire(key: Array, image: Image, *, settings: Settings, strength: Scalar | float, is_ct: Bool[Array, ""]) -> Image:
    """The image in [0, 1] as a scanner gives it.

    A CT keeps its scale, as HU are absolute, and its air is free of noise, as the window cuts it off.

    Args:
      key: a JAX random key.
      image: intensities in [0, 1].
      settings: how strong each effect is.
      strength: a factor of all effects.
      is_ct: otherwise there is a bias field, gamma, and noise as in the magnitude of a complex signal.
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
    # The imaginary part is the noise of the opposite voxel: drawing it would take as long as the rest.
    noisy = jnp.hypot(image + noise, noise[::-1, ::-1, ::-1])
    return jnp.clip(jnp.where(magnitude, noisy, image + noise * (image > 0)), 0, 1)


def blurred(volume: Float[Array, "x y z c"], sigmas: Float[Array, "3"]) -> Float[Array, "x y z c"]:
    """Convolution with a Gaussian of `sigmas` voxels along the axes; weights outside the volume are left out."""
    for axis, n in enumerate(volume.shape[:3]):  # blurs the first axis and puts it before the channels
        distance = jnp.arange(n)[:, None] - jnp.arange(n)
        weights = jnp.exp(-0.5 * (distance / jnp.maximum(sigmas[axis], 1e-2)) ** 2)
        weights /= weights.sum(axis=1, keepdims=True)
        volume = jnp.moveaxis(jnp.tensordot(volume, weights, axes=((0,), (1,))), -1, 2)
    return volume


def computed_once(array: Array) -> Array:
    """The same array, which XLA writes to memory on a CPU instead of computing it again for each use.

    The halves of a concatenation aren't fused into what uses it; an optimization_barrier is gone before XLA fuses.
    """
    middle = len(array) // 2
    return jnp.concatenate([array[:middle], array[middle:]])


def draw_crops(
    key: Array, shape: tuple[int, int, int], *, probability: Scalar | float
) -> tuple[Bool[Array, "x y z"], Bool[Array, "x y z"]]:
    """What the moving and the fixed image show: everything in at least one of them.

    Planes are lost at either end along z, and sometimes along x and y.
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
    """Of a blur along all axes, and in half of the images of thick slices along one, from uniform numbers."""
    thickness, chance, place = slices
    across = jnp.arange(3) == jnp.floor(3 * place)
    return jnp.hypot(settings.blur * sharpness, settings.thick_slices * thickness * (chance < 0.5) * across)
