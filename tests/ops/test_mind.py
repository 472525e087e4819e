"""MIND against a naive loop for each preset, and its gradient against finite differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from f3r_jax.ops.mind import PRESETS, mind

SHAPE = (6, 2, 5)


def random_image(seed=0, shape=SHAPE, batch=1):
    return np.random.default_rng(seed).random((batch, *shape, 1)).astype(np.float32)


def naive_patch_distance(image, a, b, weights, border):
    """Sum over the patch of weight * (I(q + a) - I(q + b))^2, straight from the definition; image (x y z)."""
    shape = image.shape

    def intensity(point):
        inside = tuple(min(max(p, 0), n - 1) for p, n in zip(point, shape, strict=True))
        return image[inside] if border == "edge" or inside == tuple(point) else 0.0

    def squared(point):
        inside = tuple(min(max(p, 0), n - 1) for p, n in zip(point, shape, strict=True))
        if border == "zero" and inside != tuple(point):
            return 0.0
        shifted = [intensity([i + o for i, o in zip(inside, offset, strict=True)]) for offset in (a, b)]
        return (shifted[0] - shifted[1]) ** 2

    radius = len(weights) // 2
    around = range(-radius, max(shape) + radius)
    known = {point: squared(point) for point in itertools.product(around, repeat=3)}
    out = np.zeros(shape)
    for x, y, z in np.ndindex(shape):
        for i, j, k in np.ndindex(*(len(weights),) * 3):
            point = (x + i - radius, y + j - radius, z + k - radius)
            out[x, y, z] += weights[i] * weights[j] * weights[k] * known[point]
    return out


def six(distance):
    steps = np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)]) * distance
    return sorted(map(tuple, steps.tolist()))


def naive_mind2012(image):
    pairs = [((0, 0, 0), n) for n in six(1)]
    side = np.exp(-0.5 / 0.5**2)
    weights = np.array([side, 1, side]) / (1 + 2 * side)
    distance = np.stack([naive_patch_distance(image, a, b, weights, "edge") for a, b in pairs])
    variance = distance.mean(0)
    limits = sorted([np.sqrt(variance.mean()), variance.mean() ** 2])
    descriptor = np.exp(-distance / np.clip(variance, *limits))
    return pairs, descriptor / descriptor.max(0)


def naive_mind_ssc(image, reach=2, least=0.001):
    pairs = [(a, b) for a, b in itertools.combinations(six(reach), 2) if np.sum(np.subtract(a, b) ** 2) == 2 * reach**2]
    assert len(pairs) == 12
    box = np.full(2 * reach + 1, 1 / (2 * reach + 1))
    distance = np.stack([naive_patch_distance(image, a, b, box, "edge") for a, b in pairs])
    distance -= distance.min(0)
    variance = distance.mean(0)
    variance = np.clip(variance, least * variance.mean(), 1000 * variance.mean())
    return pairs, np.exp(-distance / variance)


def naive_mind_fixed(image):
    pairs = [((0, 0, 0), n) for n in six(1)]
    distance = np.stack([naive_patch_distance(0.7 * image, a, b, [1.0], "zero") for a, b in pairs])
    return pairs, np.exp(-distance / 0.004)


def naive_mind_ssc_near(image):
    return naive_mind_ssc(image, reach=1)


def naive_mind_ssc_robust(image):
    return naive_mind_ssc(image, reach=1, least=0.1)


NAIVE = {
    "mind2012": naive_mind2012,
    "mind_ssc": naive_mind_ssc,
    "mind_ssc_near": naive_mind_ssc_near,
    "mind_ssc_robust": naive_mind_ssc_robust,
    "mind_fixed": naive_mind_fixed,
}


def channels_in_order(pairs, channels, preset):
    """The channels of a naive descriptor in the order of the preset's pairs; a pair has no direction."""
    place = {frozenset(pair): k for k, pair in enumerate(pairs)}
    return np.stack([channels[place[frozenset(pair)]] for pair in PRESETS[preset].pairs], axis=-1)


def test_every_preset_has_a_naive_reference():
    assert NAIVE.keys() == PRESETS.keys()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [SHAPE, (3, 1, 4)])
def test_agrees_with_a_naive_loop(preset, shape):
    image = random_image(shape=shape)
    if preset == "mind_fixed":
        image *= 0.2  # at its fixed variance noise of full range is 0 throughout
    expected = channels_in_order(*NAIVE[preset](image[0, ..., 0].astype(np.float64)), preset)
    ours = mind(jnp.asarray(image), preset=preset)
    assert ours.shape == (1, *shape, len(PRESETS[preset].pairs)) and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours[0], expected, atol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_volumes_of_a_batch_do_not_mix(preset):
    images = jnp.asarray(random_image(batch=2)) * jnp.array([1.0, 0.1]).reshape(2, 1, 1, 1, 1)
    together = mind(images, preset=preset)
    for b in range(2):
        np.testing.assert_allclose(together[b], mind(images[b : b + 1], preset=preset)[0], atol=1e-5)


def test_self_similarity_context_does_not_see_a_linear_change_of_intensity():
    image = jnp.asarray(random_image())
    changed = 0.3 - 0.25 * image
    np.testing.assert_allclose(mind(changed, preset="mind_ssc"), mind(image, preset="mind_ssc"), atol=2e-3)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [(5, 3, 6)])
def test_gradient_agrees_with_finite_differences(preset, shape):
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        image = jnp.asarray(rng.random((1, *shape, 1)))
        weights = jnp.asarray(rng.normal(size=(1, *shape, len(PRESETS[preset].pairs))))
        loss = jax.jit(lambda image: jnp.sum(weights * mind(image, preset=preset)))
        check_grads(loss, (image,), order=1, modes=("rev",), eps=1e-6, rtol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_constant_images_and_regions_have_finite_gradients(preset):
    gradient = jax.jit(jax.grad(lambda image, weights: jnp.sum(weights * mind(image, preset=preset))))
    weights = jnp.asarray(np.random.default_rng(6).normal(size=(1, *SHAPE, len(PRESETS[preset].pairs))), jnp.float32)
    for value in (0.0, 0.7):
        constant = np.full((1, *SHAPE, 1), value, np.float32)
        partly = np.concatenate([constant[:, 1:], random_image()[:, :1]], axis=1)
        faint = constant + 1e-6 * random_image()
        for image in map(jnp.asarray, (constant, partly, faint)):
            assert np.isfinite(mind(image, preset=preset)).all()
            assert np.isfinite(gradient(image, weights)).all()
        if PRESETS[preset].border == "edge":
            np.testing.assert_array_equal(mind(jnp.asarray(constant), preset=preset), 1)
            np.testing.assert_array_equal(gradient(jnp.asarray(constant), weights), 0)


def test_an_unknown_preset_is_named():
    with pytest.raises(
        ValueError, match="'mind3'; expected one of mind2012, mind_ssc, mind_ssc_near, mind_ssc_robust, mind_fixed"
    ):
        mind(jnp.asarray(random_image()), preset="mind3")


def test_noise_in_air_weighs_less_with_a_greater_least_variance():
    rng = np.random.default_rng(0)
    image = np.zeros((20, 20, 20), np.float32)
    image[10:] = rng.random((10, 20, 20), dtype=np.float32)
    noisy = image.copy()
    noisy[:10] += 0.02 * rng.random((10, 20, 20), dtype=np.float32)
    near, robust = (
        np.abs(
            mind(jnp.asarray(image)[None, ..., None], preset=p) - mind(jnp.asarray(noisy)[None, ..., None], preset=p)
        )
        for p in ("mind_ssc_near", "mind_ssc_robust")
    )
    assert near[0, 2:7].mean() > 0.3 and robust[0, 2:7].mean() < 0.05
