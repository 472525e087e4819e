"""The search for a start: coarse scans, placements at all shifts, local optimisation, coarse deformation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import affine_scans
from affine_scans import anatomy, negative
from f3r_jax.common.errors import UserError
from f3r_jax.data import resample, transforms
from f3r_jax.data.affine import coarse, placement, search, start
from f3r_jax.data.affine.search import Placement
from f3r_jax.data.nifti import Grid, Image
from f3r_jax.data.transforms import Transform

SHAPE = (49, 41, 43)
SPACING = (5.0, 5.0, 5.0)


def scan(to_world=None, contrast=np.asarray, shape=SHAPE, centre=(0.0, 0.0, 0.0)):
    """A coarse scan of the anatomy; its intensities are those of an MR."""
    image = affine_scans.image(shape, affine_scans.grid(SPACING, shape, centre=centre), to_world, contrast)
    return coarse.coarse_scan(image, image, "mr")


@pytest.fixture(scope="module")
def fixed():
    return scan()


def squares(one, other):
    return ((one.descriptors - other.descriptors) ** 2).mean(axis=-1)


def test_the_body_of_an_mr_includes_what_gives_little_signal():
    index = np.stack(np.meshgrid(*map(np.arange, (40, 36, 20)), indexing="ij"), axis=-1) - np.array([19.5, 17.5, 9.5])
    inside = np.sum((index[..., :2] / (15, 12)) ** 2, axis=-1) < 1
    organ = np.sum((index[..., :2] / (7, 6)) ** 2, axis=-1) < 1
    noise = np.random.default_rng(0).uniform(0, 0.01, inside.shape)
    data = np.where(organ, 1.0, np.where(inside, 0.12, noise)).astype(np.float32)
    found = coarse.body_of(data, "mr")
    assert np.mean(found[inside]) > 0.95 and np.mean(found[~inside]) < 0.08


def test_the_mismatch_is_the_mean_over_both_bodies(fixed):
    assert coarse.mismatch(fixed, fixed) == 0
    rng = np.random.default_rng(1)
    shape = fixed.body.shape
    other = dataclasses.replace(
        fixed, intensities=rng.random(shape, np.float32), body=rng.random(shape) < 0.5, seen=rng.random(shape) < 0.9
    )
    other = dataclasses.replace(other, body=other.body & other.seen)
    far, total, count = squares(fixed, other), 0.0, 0
    for at in np.ndindex(shape):
        if fixed.body[at] and other.body[at]:
            total, count = total + float(far[at]), count + 1
        elif (fixed.body[at] or other.body[at]) and fixed.seen[at] and other.seen[at]:
            total, count = total + coarse.PENALTY, count + 1
    assert coarse.mismatch(fixed, other) == pytest.approx(total / count, rel=1e-5)
    lost = dataclasses.replace(other, seen=np.zeros(shape, bool), body=np.zeros(shape, bool))
    assert coarse.mismatch(fixed, lost) == np.inf
    half = dataclasses.replace(fixed, seen=fixed.seen.copy(), body=fixed.body.copy())
    half.seen[shape[0] // 2 :] = half.body[shape[0] // 2 :] = False
    assert coarse.mismatch(fixed, half) == 0  # what is out of view is no evidence
    assert coarse.mismatch(fixed, half, fixed.seen) > 0.05  # unless the deformation pushed it there


def test_a_moved_scan_is_where_the_matrix_takes_it(fixed):
    moving = scan(resample.translation((30.0, -18.0, 12.0)), centre=(30.0, -18.0, 12.0))
    moved = coarse.moved_by(moving, resample.translation((30.0, -18.0, 12.0)), fixed.grid)
    np.testing.assert_allclose(moved.intensities[fixed.body], fixed.intensities[fixed.body], atol=0.02)
    wide = coarse.widened(fixed, 3, 16)
    np.testing.assert_allclose(wide.grid.affine @ [3, 3, 3, 1], fixed.grid.affine @ [0, 0, 0, 1])
    assert all(size % 16 == 0 for size in wide.body.shape) and wide.body.sum() == fixed.body.sum()


def test_correlations_are_the_mismatch_of_each_shift(fixed):
    rng = np.random.default_rng(2)
    small, large = (7, 6, 5), (9, 8, 7)
    sides = []
    for shape in (small, large):
        seen = rng.random(shape) < 0.9
        sides.append((rng.random((*shape, 3), np.float32), (rng.random(shape) < 0.6) & seen, seen))
    costs = search.mismatches(*sides)
    (f, body, seen), (m, body_there, seen_there) = sides
    finite = 0
    for shift in ((0, 0, 0), (1, 2, 1), (2, 0, -1), (-2, 1, 0), (1, 1, 1)):
        total = count = covered = covered_there = 0
        for p in np.ndindex(small):
            q = tuple(a + b for a, b in zip(p, shift, strict=True))
            if any(i < 0 or i >= n for i, n in zip(q, large, strict=True)):
                continue
            covered += body[p] and seen_there[q]
            covered_there += seen[p] and body_there[q]
            if body[p] and body_there[q]:
                total, count = total + float(np.mean((f[p] - m[q]) ** 2)), count + 1
            elif (body[p] and seen_there[q]) or (seen[p] and body_there[q]):
                total, count = total + coarse.PENALTY, count + 1
        least = search.LEAST_COVER * min(body.sum(), body_there.sum())
        expected = total / count if min(covered, covered_there) >= least else np.inf
        finite += np.isfinite(expected)
        assert costs[shift] == pytest.approx(expected, rel=1e-3)
    assert finite >= 3


@pytest.mark.parametrize("scale", [1.0, 1.12])
def test_the_search_finds_a_scan_far_away(fixed, scale):
    truth = np.diag([scale, scale, scale, 1.0])
    truth[:3, 3] = (412.0, -260.0, 900.0)
    shape = (59, 49, 52)
    moving = scan(truth, negative, shape, centre=(440.0, -280.0, 905.0))
    best = search.search(fixed, moving)[0]
    found = search.matrix_of(best, fixed.grid, moving.grid)
    end = search.matrix_of(placement.optimise(best, placement.compared(fixed, moving)), fixed.grid, moving.grid)
    points = np.random.default_rng(3).uniform(-50, 50, (100, 3)) @ np.eye(3, 4) + [0, 0, 0, 1]
    far, near = (np.linalg.norm(points @ (m - truth).T, axis=1).mean() for m in (found, end))
    assert far < 8 and near < 4 and near <= far + 0.5


def test_the_placements_are_apart_and_sorted(fixed):
    places = search.search(fixed, scan(contrast=negative))
    assert len(places) == search.COUNT
    assert [p.cost for p in places] == sorted(p.cost for p in places)
    for i, one in enumerate(places):
        assert all(np.abs(one.shift - other.shift).max() > search.DIFFERENT for other in places[:i])


def test_the_cost_of_a_placement_is_the_mismatch_where_grids_coincide(fixed):
    moving = scan(contrast=negative)
    pair = placement.compared(fixed, moving)
    assert float(placement.cost(jnp.zeros(6), pair)) == pytest.approx(coarse.mismatch(fixed, moving), rel=0.02)
    at = np.array([0.23, -0.31, 0.17, 0.1, -0.2, 0.15])  # between voxels, where interpolation has a slope
    slope = np.asarray(jax.grad(placement.cost)(jnp.asarray(at, jnp.float32), pair))
    step = 1e-2 * slope / np.linalg.norm(slope)
    ahead, behind = (float(placement.cost(jnp.asarray(at + sign * step, jnp.float32), pair)) for sign in (1, -1))
    assert ahead - behind == pytest.approx(2e-2 * np.linalg.norm(slope), rel=0.2)
    away = placement.cost(jnp.asarray([40.0, 0, 0, 0, 0, 0]), pair)
    assert float(away) > 1  # hardly any cover


def test_the_refitted_matrix_keeps_the_transform(fixed):
    rng = np.random.default_rng(4)
    truth = np.eye(4)
    truth[:3, :3] += rng.normal(0, 0.05, (3, 3))
    truth[:3, 3] = (8.0, -5.0, 12.0)
    before = resample.translation((100.0, 50.0, -20.0))
    index = np.moveaxis(np.indices(fixed.grid.shape), 0, -1)
    to_world = fixed.grid.affine
    own = np.linalg.inv(to_world) @ truth @ to_world
    u = (index @ own[:3, :3].T + own[:3, 3] - index).astype(np.float32)
    transform = Transform(fixed.grid, before, u)
    found = start.refitted(transform, fixed)
    np.testing.assert_allclose(found.matrix, before @ truth, atol=1e-2)
    assert np.abs(found.displacement).max() < 0.05
    points = rng.uniform(-40, 40, (20, 3))
    np.testing.assert_allclose(transforms.to_moving(found, points), transforms.to_moving(transform, points), atol=0.05)


@pytest.fixture(scope="module")
def bent():
    """The moving scan, 20 % darker inside out and bent by 12 mm, in a frame of its own; and its true map."""
    offset = np.array([300.0, 120.0, -80.0])

    def truth(points):
        wave = 12 * np.sin(points[..., [1, 2, 0]] / 25)
        return points + wave + offset

    shape = (59, 51, 53)
    grid = affine_scans.grid(SPACING, shape, centre=offset)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    there = index @ grid[:3, :3].T + grid[:3, 3]
    own = there - offset
    for _ in range(30):  # the inverse of the map, by fixed-point iteration
        own = there - offset - 12 * np.sin(own[..., [1, 2, 0]] / 25)
    return Image(anatomy(own, negative).astype(np.float32), grid, "bent.nii.gz"), truth


@pytest.mark.usefixtures("few")
def test_the_start_follows_a_deformation_in_another_frame(fixed, bent):
    image, truth = bent
    found = start.find_start(fixed, coarse.coarse_scan(image, image, "mr"), headers=False)
    points = np.random.default_rng(5).uniform(-40, 40, (200, 3))
    affine_only = dataclasses.replace(found.transform, displacement=0 * found.transform.displacement)
    errors = [
        np.linalg.norm(transforms.to_moving(each, points) - truth(points), axis=1).mean()
        for each in (affine_only, found.transform)
    ]
    assert errors[1] < 6 and errors[1] < errors[0] < 16
    best = found.candidates[0]
    assert best.mismatch_deformed < best.mismatch and not best.from_headers
    lowest = min(c.cost for c in found.candidates)
    close = [c for c in found.candidates if c.cost <= 1.05 * lowest]
    assert best in close and best.merit == max(c.merit for c in close)
    others = [c.cost for c in found.candidates if c not in close]
    assert others == sorted(others)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("shift", "right"), [((0.0, 0.0, 0.0), True), ((90.0, 60.0, -70.0), False)])
def test_headers_win_only_where_they_are_right(fixed, shift, right):
    moving = scan(resample.translation(shift), negative)
    found = start.find_start(fixed, moving, headers=True)
    if right:
        assert found.candidates[0].from_headers
    points = np.random.default_rng(6).uniform(-50, 50, (100, 3))
    away = transforms.to_moving(found.transform, points) - points - shift
    assert np.linalg.norm(away, axis=1).mean() < 10


def test_mutual_information_by_hand():
    shape, grid = (8, 8, 8), Grid((8, 8, 8), np.diag([6.0, 6.0, 6.0, 1.0]))
    inside = np.ones(shape, bool)
    random = np.random.default_rng(0).integers(0, 4, (2, *shape)).astype(np.float32) / 4
    one, other = (coarse.CoarseScan(values, inside, inside, grid) for values in random)
    assert coarse.mutual_information(one, one) == pytest.approx(2)
    assert coarse.mutual_information(one, dataclasses.replace(one, intensities=1 - one.intensities)) == pytest.approx(2)
    assert 1 <= coarse.mutual_information(one, other) < 1.02
    assert coarse.mutual_information(one, dataclasses.replace(other, body=~inside)) == 1
    half = inside.copy()
    half[:4] = False
    mixed = dataclasses.replace(other, intensities=np.where(half, one.intensities, other.intensities), body=half)
    assert coarse.mutual_information(one, mixed) == pytest.approx(2)  # only voxels of both bodies count


def test_information_decides_among_close_costs():
    def candidate(cost, information, from_headers=False):
        return start.Candidate(from_headers, np.eye(4), np.zeros((1, 1, 1, 3)), cost / 2, cost / 2, information)

    far, close, best = candidate(0.22, 1.9), candidate(0.2, 1.02), candidate(0.209, 1.03)
    assert start.ordered([far, close, best]) == [best, close, far]
    trusted = candidate(0.2, 1.0295, from_headers=True)
    assert start.ordered([best, trusted])[0] is trusted


def test_bodies_that_never_meet_are_an_error():
    shape = (16, 16, 16)
    grid = Grid(shape, np.diag([6.0, 6.0, 6.0, 1.0]), "far.nii.gz")
    full, none = np.ones(shape, bool), np.zeros(shape, bool)
    one = coarse.CoarseScan(np.random.default_rng(0).random(shape, np.float32), full, full, grid)
    with pytest.raises(UserError, match=r"far.nii.gz: no position shows half of the body of far.nii.gz"):
        start.find_start(one, dataclasses.replace(one, body=none, seen=none), headers=False)


def test_a_placement_maps_centre_to_centre():
    grid, there = Grid((8, 8, 8), np.diag([6.0, 6.0, 6.0, 1.0])), Grid((16, 8, 8), np.diag([6.0, 6.0, 6.0, 1.0]))
    place = Placement(np.array([1.0, 2.0, 3.0]), np.log([1.1, 1.0, 0.9]), 0.0)
    matrix = search.matrix_of(place, grid, there)
    np.testing.assert_allclose((matrix @ [*search.centre(grid), 1])[:3], np.add(search.centre(there), (1, 2, 3)))
