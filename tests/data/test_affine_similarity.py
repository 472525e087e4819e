import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from f3r_jax.data.affine import similarity
from f3r_jax.data.affine.similarity import Views
from f3r_jax.ops.mind import mind

SHAPE = (7, 6, 5)


def _views(seed=0):
    rng = np.random.default_rng(seed)
    moving = np.stack([ndimage.gaussian_filter(rng.normal(size=(12, 11, 10)), 1.2), np.zeros((12, 11, 10))], axis=-1)
    moving[1:-1, 1:-1, 1:-1, 1] = 1
    to_local = np.diag([5.0, 5.0, 5.0, 1.0])
    to_local[:3, 3] = -15, -12.5, -10
    arrays = Views(
        fixed=rng.random((*SHAPE, 12)),
        weights=rng.random(SHAPE),
        moving=moving,
        to_local=to_local,
        to_moving=np.array([[0.2, 0, 0, 5.5], [0, 0.2, 0, 5], [0, 0, 0.2, 4.5], [0, 0, 0, 1]]),
        unrelated=0.3,
        radius=15.0,
    )
    return Views(*(jnp.asarray(a, jnp.float32) for a in arrays))


THETA = np.array([1.3, -0.7, 0.9, 0.8, -0.5, 0.4, 0.6, -0.3, 0.2, 0.5, -0.4, 0.1], np.float32)


def plain_similarity(theta, views, stiffness):
    """The formula of the module, for autodiff."""
    matrix = (views.to_moving @ similarity.affine_map(theta, views.radius) @ views.to_local)[:3]
    index = jnp.moveaxis(jnp.indices(SHAPE, jnp.float32), 0, -1).reshape(-1, 3)
    sampled = similarity.sample(views.moving, index @ matrix[:, :3].T + matrix[:, 3])
    m = mind(sampled[:, 0].reshape(1, *SHAPE, 1), preset="mind_ssc_near")[0]
    weights = views.weights * sampled[:, 1].reshape(SHAPE)
    match = jnp.sum(weights * (views.unrelated - jnp.mean((views.fixed - m) ** 2, axis=-1)))
    penalty = stiffness * jnp.sum((theta[6:] / views.radius) ** 2)
    return match - penalty, (match, views.unrelated * jnp.sum(weights))


def test_the_map_of_the_parameters():
    np.testing.assert_allclose(similarity.affine_map(jnp.zeros(12), 50.0), np.eye(4), atol=1e-7)
    turn = np.array(similarity.affine_map(jnp.zeros(12).at[5].set(2 * 50 * np.tan(np.pi / 8)), 50.0))
    np.testing.assert_allclose(turn[:2, :2], np.array([[1, -1], [1, 1]]) / np.sqrt(2), atol=1e-6)  # 45 degrees
    rigid = np.asarray(similarity.affine_map(jnp.asarray(THETA).at[6:].set(0), 15.0))
    np.testing.assert_allclose(rigid[:3, :3] @ rigid[:3, :3].T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(rigid[:3, 3], THETA[:3])
    scaled = np.asarray(similarity.affine_map(jnp.zeros(12).at[7].set(15 * np.log(1.2)), 15.0))
    np.testing.assert_allclose(scaled, np.diag([1, 1.2, 1, 1]), atol=1e-6)


def test_similarity_equals_scipys_interpolation_and_a_sum():
    views = _views()
    local = similarity.affine_map(jnp.asarray(THETA), 15.0)
    matrix = np.asarray(views.to_moving @ local @ views.to_local, np.float64)
    at = np.einsum("ij,jxyz->ixyz", matrix[:3, :3], np.indices(SHAPE)) + matrix[:3, 3, None, None, None]
    sampled, seen = (
        ndimage.map_coordinates(np.asarray(views.moving[..., c]), at, order=1, mode="nearest") for c in (0, 1)
    )
    m = np.asarray(mind(jnp.asarray(sampled)[None, ..., None], preset="mind_ssc_near")[0])
    weights = np.asarray(views.weights) * seen
    expected = np.sum(weights * (0.3 - np.mean((np.asarray(views.fixed) - m) ** 2, axis=-1)))
    (value, (match, most)), _ = similarity.similarity_and_gradient(
        jnp.asarray(THETA), views, 2.0, preset="mind_ssc_near"
    )
    assert float(match) == pytest.approx(expected, rel=1e-3)
    assert float(value) == pytest.approx(expected - 2 * np.sum((THETA[6:] / 15) ** 2), rel=1e-3)
    assert float(most) == pytest.approx(0.3 * weights.sum(), rel=1e-4)


def test_the_gradient_equals_finite_differences():
    views = _views()

    def value(theta):
        return float(similarity.similarity_and_gradient(jnp.asarray(theta), views, 2.0, preset="mind_ssc_near")[0][0])

    _, gradient = similarity.similarity_and_gradient(jnp.asarray(THETA), views, 2.0, preset="mind_ssc_near")
    step = 4e-3  # mm; a few points cross a face of a voxel on the way, where the slope jumps
    expected = [(value(THETA + step * row) - value(THETA - step * row)) / (2 * step) for row in np.eye(12, dtype="f")]
    np.testing.assert_allclose(gradient, expected, atol=0.03 * np.abs(expected).max())


def test_value_and_gradient_by_steps_equal_those_of_autodiff():
    views, theta = _views(), jnp.asarray(THETA)
    values, gradient = similarity.similarity_and_gradient(theta, views, 2.0, preset="mind_ssc_near")
    whole = jax.value_and_grad(plain_similarity, has_aux=True)
    (expected, parts), slope = whole(theta, views, 2.0)
    np.testing.assert_allclose([values[0], *values[1]], [expected, *parts], rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-4 * np.abs(slope).max())


def test_shift_scores_equal_a_naive_loop():
    rng = np.random.default_rng(0)
    fixed, moving = rng.random((4, 3, 5, 3), np.float32), rng.random((6, 5, 4, 3), np.float32)
    scores = np.asarray(similarity.shift_scores(jnp.asarray(fixed), jnp.asarray(moving), jnp.float32(0.3)))
    for shift in ((0, 0, 0), (2, 1, 0), (-3, 2, -4), (5, -2, 3)):
        expected = 0.0
        for p in np.ndindex(4, 3, 5):
            q = np.add(p, shift)
            if (q >= 0).all() and (q < (6, 5, 4)).all():
                f, m = fixed[p], moving[tuple(q)]
                expected += f[2] * m[2] * (0.3 - np.mean((f[:2] - m[:2]) ** 2))
        assert scores[shift] == pytest.approx(expected, abs=1e-4)


def test_unrelated_is_the_mean_over_all_pairs():
    rng = np.random.default_rng(0)
    f, m = rng.random((7, 2)), rng.random((9, 2)) + 0.5
    assert similarity.unrelated(f, m) == pytest.approx(np.mean((f[:, None] - m[None]) ** 2))


def test_peaks_keep_apart():
    scores = np.zeros((9, 9, 9))
    scores[4, 4, 4], scores[4, 4, 5], scores[1, 4, 4], scores[8, 8, 8] = 4, 3, 2, 1
    np.testing.assert_array_equal(similarity.peaks(scores, count=3, apart=2), [(4, 4, 4), (1, 4, 4), (8, 8, 8)])
