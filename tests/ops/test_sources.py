"""Sources and restraints of instance optimisation: what one adds, and that without them nothing changes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

import earlier_instance_optimisation as earlier
from f3r_jax.ops import instance_optimisation, restraints, sources
from f3r_jax.ops.fields import divergence, exponential, gradient, jacobian_determinant
from f3r_jax.ops.instance_optimisation import DEFAULT, Level
from f3r_jax.ops.restraints import Landmarks, Parts, Restraints, Volumes
from f3r_jax.ops.warp import warp

SHAPE = (24, 22, 20)
QUICK = dataclasses.replace(DEFAULT, levels=(Level(4, 40, 0.3), Level(2, 40, 0.3)), mind="mind_ssc_near", lam=0.1)
KNOWN = jnp.ones((1, *SHAPE, 1), jnp.float32)


def texture(seed):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.5)
    return jnp.asarray(((smooth - smooth.min()) / np.ptp(smooth))[None, ..., None], jnp.float32)


def bump(scale):
    axes = [np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in SHAPE]
    height = np.einsum("i,j,k->ijk", *axes)
    return jnp.asarray(scale * height[None, ..., None] * np.array([1.0, -0.7, 0.5]), jnp.float32)


def ball(centre, radius):
    place = np.moveaxis(np.indices(SHAPE), 0, -1) - np.array(centre)
    return jnp.asarray((np.linalg.norm(place, axis=-1) < radius)[None, ..., None].astype(np.int32))


@pytest.mark.parametrize("diffeomorphic", [True, False])
@pytest.mark.parametrize("started", [True, False])
def test_without_options_the_result_is_bit_identical_to_the_earlier_one(diffeomorphic, started):
    fixed, moving, start = texture(0), texture(1), bump(2.0) if started else None
    mask = KNOWN.at[:, :5].set(0)
    given = {"start": start, "fixed_mask": mask, "moving_mask": KNOWN}
    now = instance_optimisation.refine(
        fixed, moving, **given, settings=dataclasses.replace(QUICK, diffeomorphic=diffeomorphic)
    )
    levels = tuple(earlier.Level(*dataclasses.astuple(level)) for level in QUICK.levels)
    before = earlier.refine(
        fixed,
        moving,
        **given,
        settings=earlier.Refinement(mind=QUICK.mind, lam=QUICK.lam, levels=levels, diffeomorphic=diffeomorphic),
    )
    assert np.abs(now).max() > 0.1
    np.testing.assert_array_equal(now, before)


def test_the_cost_of_labels_is_their_mean_of_one_minus_dice():
    fixed, moving = ball((12, 11, 10), 6) + 2 * ball((4, 4, 4), 3), ball((14, 11, 10), 6) + 2 * ball((4, 4, 4), 3)
    source = sources.label_source(fixed, moving, KNOWN, KNOWN, jnp.asarray([1, 2]), spacing=1, weight=jnp.float32(3))
    plain = [np.asarray(side.features)[0] for side in source[:2]]
    cost = 3 * np.mean((plain[0] - plain[1]) ** 2)
    quadratic, weight = sources.compare([source], jnp.zeros((1, *SHAPE, 3)))
    np.testing.assert_allclose(jnp.sum(weight * quadratic.constant), cost, rtol=1e-5)
    one, other = (np.asarray(volume) == 1 for volume in (fixed, moving))
    dice = 2 * (one & other).sum() / (one.sum() + other.sum())
    assert 0.3 < cost / (3 * (1 - dice) / 2) < 1  # smoothing lowers it; the second label agrees


def test_labels_find_a_motion_that_the_images_do_not_show():
    truth = bump(4.0)
    labels = ball((12, 11, 10), 6)
    pulled = jnp.rint(warp(labels.astype(jnp.float32), truth)).astype(jnp.int32)
    flat = jnp.full((1, *SHAPE, 1), 0.5)
    spacing = QUICK.levels[-1].spacing
    source = sources.label_source(
        pulled, labels, KNOWN, KNOWN, jnp.asarray([1]), spacing=spacing, weight=jnp.float32(1.0)
    )
    found = instance_optimisation.refine(flat, flat, further=[source], settings=QUICK)
    after = np.asarray(warp(labels.astype(jnp.float32), found)) > 0.5
    want = np.asarray(pulled) > 0
    dice = lambda a: 2 * (a & want).sum() / (a.sum() + want.sum())  # noqa: E731
    assert dice(np.asarray(labels) > 0) < 0.75 < 0.93 < dice(after)
    assert np.abs(instance_optimisation.refine(flat, flat, settings=QUICK)).max() < 1e-3


def test_two_equal_sources_of_half_the_weight_are_one():
    fixed, moving = texture(0), texture(1)
    half = sources.mind_source(fixed, moving, preset=QUICK.mind, spacing=2, weight=jnp.float32(0.5))
    u = jnp.zeros((1, *(n // 2 for n in SHAPE), 3)) + 0.3
    both, none = sources.compare([half, half], u)
    one, weight = sources.compare([half._replace(weight=None)], u)
    assert none is None
    for sum_, part in zip(both, one, strict=True):
        np.testing.assert_allclose(sum_, weight * part, rtol=2e-4, atol=1e-9)


def test_a_robust_source_reduces_the_weight_of_outliers_alone():
    fixed = jnp.asarray(np.random.default_rng(0).random((1, *SHAPE, 4)), jnp.float32) * 0.1
    moving = fixed.at[:, 5:8, 5:8, 5:8].add(1.0) + 0.05
    source = sources.Source(sources.Side(fixed, KNOWN), sources.Side(moving, KNOWN))
    u = jnp.zeros((1, *SHAPE, 3))
    _, plain = sources.compare([source], u)
    _, robust = sources.compare([source], u, robust=True)
    ratio = np.asarray(robust / plain)
    assert ratio[6, 6, 6] < 0.01 and ratio[12:, 12:].min() > 0.6


def points(outlier=None, used=None):
    """Twelve landmarks of a known displacement."""
    truth = exponential(bump(4.0))
    at = jnp.asarray(np.random.default_rng(3).uniform(5, 15, (12, 3)), jnp.float32)
    there = at + restraints.sample(truth, at)
    if outlier is not None:
        there = there.at[outlier, 0].add(15.0)  # 30 mm
    used = jnp.ones(12) if used is None else used
    return truth, Landmarks(at, there, used, jnp.float32(0.01), jnp.float32(2.0))


@pytest.mark.parametrize("diffeomorphic", [True, False])
def test_landmarks_pull_where_the_images_show_nothing(diffeomorphic):
    flat, (truth, landmarks) = jnp.full((1, *SHAPE, 1), 0.5), points()
    settings = dataclasses.replace(QUICK, lam=0.02, diffeomorphic=diffeomorphic)
    found = instance_optimisation.refine(flat, flat, restraints=Restraints(landmarks=landmarks), settings=settings)
    left = jnp.linalg.norm(restraints.sample(found - truth, landmarks.fixed), axis=-1)
    moved = jnp.linalg.norm(restraints.sample(truth, landmarks.fixed), axis=-1)
    assert float(left.mean()) < 0.25 * float(moved.mean())


def test_an_outlier_of_30_mm_hardly_pulls_and_a_landmark_that_is_not_used_not_at_all():
    flat, settings = jnp.full((1, *SHAPE, 1), 0.5), dataclasses.replace(QUICK, lam=0.02)
    found = {}
    for name, (_, landmarks) in {
        "clean": points(used=jnp.ones(12).at[4].set(0)),
        "outlier": points(4),
        "left out": points(4, used=jnp.ones(12).at[4].set(0)),
    }.items():
        found[name] = instance_optimisation.refine(
            flat, flat, restraints=Restraints(landmarks=landmarks), settings=settings
        )
    np.testing.assert_array_equal(found["clean"], found["left out"])
    assert float(jnp.abs(found["outlier"] - found["clean"]).max()) < 1.0  # of 15 voxels


def test_sample_is_trilinear():
    field = bump(2.0)
    at = np.random.default_rng(0).uniform(0, 18, (30, 3)).astype(np.float32)
    expected = [ndimage.map_coordinates(np.asarray(field)[0, ..., axis], at.T, order=1) for axis in range(3)]
    np.testing.assert_allclose(restraints.sample(field, jnp.asarray(at)), np.stack(expected, -1), atol=1e-5)


def test_rigid_motions_are_found():
    rng = np.random.default_rng(0)
    turns = Rotation.from_rotvec(rng.normal(size=(3, 3)) * 0.4).as_matrix()
    shifts, x, index = rng.normal(size=(3, 3)), rng.normal(size=(60, 3)) * 20, np.repeat([0, 1, 2], 20)
    y = np.einsum("nij,nj->ni", turns[index], x) + shifts[index]
    rotation, shift = restraints.rigid_motions(*map(jnp.float32, (x, y, np.ones(60))), jnp.asarray(index), 3)
    np.testing.assert_allclose(rotation, turns, atol=1e-4)
    np.testing.assert_allclose(shift, shifts, atol=1e-3)


def parts(mask, matrix=None):
    """Rigid parts on a grid of 2 mm; the moving frame is the fixed one after `matrix`."""
    to_fixed = np.diag([2.0, 2, 2, 1])
    to_moving = to_fixed if matrix is None else matrix @ to_fixed
    maps = (jnp.asarray(each[:3], jnp.float32) for each in (to_fixed, to_moving))
    return Parts(mask, (mask > 0).astype(jnp.float32), jnp.asarray([1]), *maps)


def test_the_cost_of_a_rigid_part_is_its_squared_residual_also_after_an_affine_matrix():
    mask, scale = ball((12, 11, 10), 6), np.diag([1.1, 1, 1, 1.0])
    quadratic = restraints.rigid_cost(parts(mask, scale), jnp.zeros((1, *SHAPE, 3)))
    x = np.argwhere(np.asarray(mask)[0, ..., 0]) * 2.0
    residual = np.sum((0.1 * (x[:, 0] - x[:, 0].mean())) ** 2) / np.prod(SHAPE)
    # The residual is measured in voxels of the grid, that is before the scale of 1.1, and with their mean edge.
    np.testing.assert_allclose(
        jnp.sum(quadratic.constant) / restraints.RIGID, residual / 1.1**2 * 1.1 ** (2 / 3), rtol=1e-3
    )
    undone = (
        jnp.zeros((1, *SHAPE, 3)).at[..., 0].set(jnp.arange(24)[:, None, None] / 1.1 - jnp.arange(24)[:, None, None])
    )
    assert float(jnp.sum(restraints.rigid_cost(parts(mask, scale), undone).constant)) < 1e-4 * residual


def test_a_coarser_part_is_in_the_same_place():
    rigid = parts(ball((12, 11, 10), 6))
    coarse = restraints.coarser(Restraints(rigid=rigid), 2).rigid
    np.testing.assert_allclose(coarse.to_fixed @ jnp.asarray([1.0, 0, 0, 1]), [5, 1, 1])
    np.testing.assert_allclose(float(coarse.fraction.sum()) * 8, float(rigid.fraction.sum()))


def test_a_rigid_part_and_a_preserved_part_keep_their_shape_where_the_images_differ():
    fixed, moving = texture(0), texture(1)
    mask = ball((12, 11, 10), 6)
    inside = np.asarray(ndimage.binary_erosion(np.asarray(mask)[0, ..., 0], iterations=2))
    volumes = Volumes((mask > 0).astype(jnp.float32), jnp.float32(0))
    settings = dataclasses.replace(QUICK, lam=0.05)
    strong = parts(mask)._replace(fraction=parts(mask).fraction / restraints.RIGID)  # unrelated images pull hard
    fields = {
        name: instance_optimisation.refine(fixed, moving, settings=settings, restraints=given)
        for name, given in {
            "none": Restraints(),
            "rigid": Restraints(rigid=strong),
            "preserved": Restraints(volumes=volumes),
        }.items()
    }
    residual = {n: float(jnp.sum(restraints.rigid_cost(parts(mask), u).constant)) for n, u in fields.items()}
    assert residual["rigid"] < 0.05 * residual["none"]
    change = {n: np.abs(np.asarray(jacobian_determinant(u))[0] - 1)[inside].mean() for n, u in fields.items()}
    assert change["preserved"] < 0.25 * change["none"] and change["rigid"] < 0.25 * change["none"]


def test_divergence_is_the_trace_of_the_gradient():
    field = bump(3.0)
    np.testing.assert_allclose(divergence(field), jnp.trace(gradient(field), axis1=-2, axis2=-1), atol=1e-6)
