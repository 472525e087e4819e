"""Placements with a rotation, for scans of one person, and coarse deformations that make things worse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import affine_scans
from f3r_jax.data import transforms
from f3r_jax.data.affine import coarse, placement, search, start
from f3r_jax.ops.restraints import Restraints

SHAPE, SPACING = (49, 41, 43), (5.0, 5.0, 5.0)


def scan(to_world=None, contrast=np.asarray, shape=SHAPE, centre=(0.0, 0.0, 0.0)):
    image = affine_scans.image(shape, affine_scans.grid(SPACING, shape, centre=centre), to_world, contrast)
    return coarse.coarse_scan(image, image, "mr")


def turned(degrees, scale=1.0, shift=(0.0, 0.0, 0.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = scale * Rotation.from_rotvec(degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


@pytest.fixture(scope="module")
def fixed():
    return scan()


def distance(matrix, truth):
    points = np.random.default_rng(3).uniform(-50, 50, (200, 3)) @ np.eye(3, 4) + [0, 0, 0, 1]
    return np.linalg.norm(points @ (matrix - truth).T, axis=1).mean()


@pytest.mark.parametrize("degrees", [(15.0, 0.0, 0.0), (0.0, -15.0, 0.0), (8.0, 0.0, 12.0)])
def test_a_rotation_is_found_from_a_shift_alone(fixed, degrees):
    truth = turned(degrees, 1.05, (200.0, -90.0, 30.0))
    moving = scan(truth, affine_scans.negative, (57, 49, 51), centre=truth[:3, 3])
    pair = placement.compared(fixed, moving)
    begin = turned((0.0, 0.0, 0.0), 1.0, truth[:3, 3] + [4.0, -5.0, 6.0])
    found, cost = placement.optimise_turned(begin, pair, fixed.grid, moving.grid)
    assert distance(found, truth) < 4 and distance(begin, truth) > 10
    exact, lowest = placement.optimise_turned(truth, pair, fixed.grid, moving.grid)
    assert cost == pytest.approx(lowest, rel=0.05) and distance(exact, truth) < 4


def test_the_slope_of_a_rotation_is_that_of_finite_differences(fixed):
    pair = placement.compared(fixed, scan(turned((5.0, 5.0, 5.0)), affine_scans.negative))
    at = jnp.array([0.2, -0.3, 0.1, 0.1, -0.2, 0.15, 0.5, -0.4, 0.3])
    slope = np.asarray(jax.grad(placement.cost)(at, pair))
    for index in range(9):
        step = 0.02 * jnp.eye(9)[index]
        difference = (placement.cost(at + step, pair) - placement.cost(at - step, pair)) / 0.04
        assert slope[index] == pytest.approx(float(difference), abs=0.03 * float(np.abs(slope).max()))


def test_the_start_finds_a_turned_scan_of_the_same_person(fixed, monkeypatch):
    monkeypatch.setattr(search, "COUNT", 1)
    truth = turned((0.0, 0.0, 18.0), 1.1, (210.0, 40.0, -500.0))
    moving = scan(truth, affine_scans.negative, (61, 55, 51), centre=truth[:3, 3])
    points = np.random.default_rng(5).uniform(-45, 45, (300, 3))
    found = start.find_start(fixed, moving, headers=False)

    def error(transform):
        goal = points @ truth[:3, :3].T + truth[:3, 3]
        return np.linalg.norm(transforms.to_moving(transform, points) - goal, axis=1).mean()

    assert error(found.transform) < 3
    (other,) = found.candidates[1:]  # without a rotation
    assert error(found.transform_of(other)) > 4


def test_a_deformation_that_increases_the_mismatch_is_dropped_for_alike_scans(fixed, monkeypatch):
    moving, wide = scan(contrast=affine_scans.negative), coarse.widened(fixed, start.MARGIN, start.MULTIPLE)
    worse = jnp.full((1, *wide.body.shape, 3), 3.0)
    monkeypatch.setattr(start, "deformation", lambda *scans, **options: worse)

    def found(**options):
        return start.deformed(np.eye(4), wide, moving, cost=0.0, from_headers=False, **options)

    before = coarse.mismatch(wide, coarse.moved_by(moving, np.eye(4), wide.grid))
    assert before < start.ALIKE
    alike = found()
    assert not alike.displacement.any() and alike.mismatch_deformed == pytest.approx(before, rel=1e-5)
    guided = found(restraints=Restraints())
    assert not guided.displacement.any()
    monkeypatch.setattr(start, "ALIKE", before / 2)
    assert (found().displacement == 3).all()


def test_placements_that_end_together_are_one(fixed):
    near, far = turned((0.0, 0.0, 0.0), shift=(1.0, 0.0, 0.0)), turned((0.0, 0.0, 0.0), shift=(9.0, 0.0, 0.0))
    ends = [placement.End(True, near, 0.3), placement.End(False, np.eye(4), 0.2), placement.End(False, far, 0.4)]
    kept = placement.distinct(ends, fixed)
    assert [(each.cost, each.from_headers) for each in kept] == [(0.2, True), (0.4, False)]
    assert np.array_equal(kept[0].matrix, np.eye(4))
