"""Transforms against naive evaluation, against themselves composed, and through files against SimpleITK and ANTs."""

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from f3r_jax.data import nifti, resample, transforms
from f3r_jax.data.itk_affine import write_matrix
from f3r_jax.data.nifti import Grid, Image
from f3r_jax.data.transforms import Transform
from f3r_jax.ops.fields import exponential

WORKING = (26, 22, 18)


def rotation(x, y, z):
    (cx, cy, cz), (sx, sy, sz) = np.cos((x, y, z)), np.sin((x, y, z))
    about = ([[1, 0, 0], [0, cx, -sx], [0, sx, cx]], [[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return np.array(about[0]) @ about[1] @ [[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]


def centred(shape, axes, spacing, centre=(0.0, 0.0, 0.0)):
    """A grid with its middle at `centre`, its axes the columns of `axes`."""
    affine = np.eye(4)
    affine[:3, :3] = axes * np.asarray(spacing)
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return Grid(shape, affine)


# Stored grids as scanners write them: axis order and directions of the file, isotropic or not, oblique or not.
STORED = {
    "straight": centred((24, 20, 16), np.eye(3), (2.0, 2.0, 2.0)),
    "anisotropic": centred((30, 26, 9), np.eye(3), (1.6, 1.5, 4.2)),
    "flipped": centred((24, 20, 16), np.diag([-1.0, -1.0, 1.0]), (2.0, 2.1, 2.2)),
    "swapped": centred((16, 24, 20), np.array([[0.0, -1, 0], [0, 0, 1], [-1, 0, 0]]), (2.4, 2.0, 2.1)),
    "oblique": centred((24, 20, 12), rotation(0.2, -0.15, 0.3) @ np.diag([-1.0, 1, 1]), (2.0, 2.0, 3.3)),
}


def smooth(rng, shape, sigma, largest):
    noise = [ndimage.gaussian_filter(rng.normal(size=shape), sigma, mode="nearest") for _ in range(3)]
    field = np.stack(noise, -1)
    return (field * largest / np.abs(field).max()).astype(np.float32)


@pytest.fixture(scope="module")
def transform():
    """An oblique working grid, an affine that turns, scales and shifts, and a smooth displacement."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(0.1, 0.05, -0.15) @ np.diag([1.05, 0.95, 1.1])
    matrix[:3, 3] = (30.0, -20.0, 12.0)
    grid = centred(WORKING, rotation(0.05, 0.1, -0.2), (2.0, 2.2, 2.5))
    return Transform(grid, matrix, smooth(np.random.default_rng(1), WORKING, 4, 2.0))


def textured(shape, dtype=np.float32, seed=0):
    data = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    data = (data - data.min()) / np.ptp(data)
    return (data * 2000 - 1000).round().astype(dtype) if dtype == np.int16 else data.astype(dtype)


def points_of(grid):
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def naive(transform, point, matrix):
    """One point at a time: clamp to the working grid, mix eight corners, go back to mm."""
    p = np.linalg.solve(transform.grid.affine, [*point, 1])[:3]
    inside = np.clip(p, 0, np.array(transform.grid.shape) - 1)
    low = np.minimum(np.floor(inside).astype(int), np.array(transform.grid.shape) - 2)
    u = np.zeros(3)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, inside - low, 1 - (inside - low)))
        u += weight * transform.displacement[tuple(low + corner)]
    return (matrix @ transform.grid.affine @ [*(p + u), 1])[:3]


# Stored grids in voxels of the working grid of `transform`, along its axes: larger, flipped, swapped, of one slice.
ALONG = {
    "along": ((30, 20, 21), np.array([[0.9, 0, 0, -1.3], [0, 1.1, 0, 2.2], [0, 0, 1, -2]])),
    "along, flipped": ((20, 13, 8), np.array([[-0.9, 0, 0, 20], [0, 1.7, 0, 0.1], [0, 0, -2.3, 16.4]])),
    "along, swapped": ((16, 24, 1), np.array([[0, 1.1, 0, -0.4], [0, 0, 2, 4.5], [-1.2, 0, 0, 18]])),
}


@pytest.mark.parametrize("name", [*STORED, *ALONG])
def test_field_and_points_agree_with_a_loop(transform, name):
    if name in ALONG:
        shape, voxels = ALONG[name]
        grid = Grid(shape, transform.grid.affine @ np.vstack([voxels, [0, 0, 0, 1]]))
    else:
        grid = STORED[name]
    points = points_of(grid)
    total, deformation = transforms.field_on(transform, grid), transforms.deformation_on(transform, grid)
    assert total.shape == deformation.shape == (*grid.shape, 3) and total.dtype == deformation.dtype == np.float32
    chosen = [tuple(np.random.default_rng(2).integers(grid.shape)) for _ in range(20)] + [(0, 0, 0)]
    for index in chosen:
        x = points[index]
        np.testing.assert_allclose(total[index], naive(transform, x, transform.matrix) - x, atol=1e-4)
        np.testing.assert_allclose(deformation[index], naive(transform, x, np.eye(4)) - x, atol=1e-4)
    np.testing.assert_allclose(transforms.followed_by(deformation, transform.matrix, grid), total, atol=1e-4)
    replaced = transforms.followed_by(deformation, transform.matrix, grid, in_place=True)
    assert replaced.base is deformation.base or np.shares_memory(replaced, deformation)
    np.testing.assert_allclose(deformation, total, atol=1e-4)
    corners = np.array([points[index] for index in chosen])
    expected = [naive(transform, x, transform.matrix) for x in corners]
    np.testing.assert_allclose(transforms.to_moving(transform, corners), expected, atol=1e-5)


def test_slabs_leave_no_seam(transform, monkeypatch):
    grid = STORED["oblique"]
    whole = transforms.field_on(transform, grid)
    image = Image(textured(grid.shape), grid.affine)
    warped = transforms.warp_image(image, whole, grid)
    monkeypatch.setattr(resample, "VOXELS", 1)
    np.testing.assert_array_equal(transforms.field_on(transform, grid), whole)
    np.testing.assert_array_equal(transforms.warp_image(image, whole, grid), warped)


def test_beyond_the_working_grid_the_displacement_keeps_its_edge_value(transform):
    a = transform.grid.affine
    beyond = (a @ [40.0, 3, 4, 1])[:3]
    expected = (transform.matrix @ a @ [*(np.array([40, 3, 4]) + transform.displacement[-1, 3, 4]), 1])[:3]
    np.testing.assert_allclose(transforms.to_moving(transform, beyond[None])[0], expected, atol=1e-5)


def inverse_field_on(transform, grid):
    """(field of the inverse on a grid of the moving frame, statistics of what could not be inverted)."""
    back, residual = transforms.inverse(transform)
    return transforms.field_on(back, grid), residual


@pytest.mark.parametrize("name", STORED)
def test_forward_then_inverse_is_the_identity(transform, name):
    """On points of any fixed grid, through the inverse field sampled on a grid of the moving frame."""
    grid = STORED[name]
    moving = Grid(transform.grid.shape, transform.matrix @ transform.grid.affine)
    inverse, residual = inverse_field_on(transform, moving)
    assert residual["max"] < 0.01 and residual["unsolved_percent"] == 0
    assert residual["mean"] <= residual["p99"] <= residual["max"]
    points = points_of(grid).reshape(-1, 3)
    there = transforms.to_moving(transform, points)
    index = (there - moving.affine[:3, 3]) @ np.linalg.inv(moving.affine[:3, :3]).T
    inside = ((index >= 0) & (index <= np.array(moving.shape) - 1)).all(1)
    assert inside.mean() > 0.5
    step = [ndimage.map_coordinates(inverse[..., k], index[inside].T, order=1, mode="nearest") for k in range(3)]
    back = there[inside] + np.stack(step, -1)
    assert np.linalg.norm((back - points[inside]) / transform.grid.spacing, axis=1).max() < 0.1


def test_inverse_then_forward_is_the_identity(transform):
    grid = STORED["oblique"]
    moving = Grid(grid.shape, transform.matrix @ grid.affine)
    field, _ = inverse_field_on(transform, moving)
    points = points_of(moving).reshape(-1, 3)
    there = points + field.reshape(-1, 3)
    index = np.linalg.solve(transform.matrix @ transform.grid.affine, np.c_[points, np.ones(len(points))].T)[:3].T
    inside = ((index >= 0) & (index <= np.array(WORKING) - 1)).all(1)
    assert inside.mean() > 0.8
    away = transforms.to_moving(transform, there[inside]) - points[inside]
    assert np.linalg.norm(away / transform.grid.spacing, axis=1).max() < 0.1


def test_points_are_carried_back_exactly_where_the_inverse_field_is_coarse(transform):
    """Of a velocity as rough as registrations give; between voxels its inverse field misses by a tenth of a voxel."""
    velocity = smooth(np.random.default_rng(5), WORKING, 2.5, 3.0)
    rough = Transform(transform.grid, transform.matrix, np.asarray(exponential(velocity[None]))[0])
    rng = np.random.default_rng(6)
    points = points_of(transform.grid).reshape(-1, 3) + rng.uniform(-1, 1, (np.prod(WORKING), 3))
    there, back = transforms.to_moving(rough, points), transforms.inverse(rough)[0]
    coarse = np.linalg.norm(transforms.to_moving(back, there) - points, axis=1)
    exact = np.linalg.norm(transforms.to_fixed(rough, back, there) - points, axis=1)
    assert coarse.max() > 0.1 and exact.max() < 0.005


def test_points_that_nothing_is_taken_to_keep_the_nearest_that_was_found():
    """x^2 + 1 never is 0: Newton's method alone would leap about."""
    points, error = transforms.solve(lambda x: x**2 + 1, np.zeros((4, 3)), np.full((4, 3), 0.4))
    assert np.isfinite(points).all() and (np.abs(points) < 0.4).all()
    np.testing.assert_allclose(error, np.linalg.norm(points**2 + 1, axis=1))


def test_without_displacement_the_inverse_is_that_of_the_matrix(transform):
    still = Transform(transform.grid, transform.matrix, np.zeros_like(transform.displacement))
    points = points_of(STORED["straight"])
    field, residual = inverse_field_on(still, STORED["straight"])
    back = np.linalg.inv(transform.matrix)
    np.testing.assert_allclose(points + field, points @ back[:3, :3].T + back[:3, 3], atol=1e-4)
    assert residual["max"] == 0


def test_a_linear_field_is_sampled_exactly_and_keeps_its_edge():
    grid, target = STORED["oblique"], centred((5, 4, 3), np.eye(3), (3.0, 3.0, 3.0))
    slope = np.array([[0.1, 0, 0.2], [0, -0.1, 0], [0.3, 0, 0.1]])
    field = (points_of(grid) @ slope.T + 5).astype(np.float32)
    points = points_of(target)
    resampled = transforms.resample_field(field, grid, target)
    np.testing.assert_allclose(resampled, points @ slope.T + 5, atol=1e-4)
    sampled = transforms.sample_field(field, grid, points.reshape(-1, 3))
    np.testing.assert_allclose(sampled, resampled.reshape(-1, 3), atol=1e-4)
    beyond = (grid.affine @ [-9.0, 5, 6, 1])[:3]
    np.testing.assert_allclose(transforms.sample_field(field, grid, beyond[None])[0], field[0, 5, 6], atol=1e-4)


def test_the_displacement_of_another_working_grid_is_the_same_transform(transform):
    """Exactly where each cell of the other grid lies within one of the first, as trilinear stays trilinear."""
    shape = tuple(2 * n - 1 for n in WORKING)
    finer = Grid(shape, transform.grid.affine @ np.diag([0.5, 0.5, 0.5, 1.0]))
    again = Transform(finer, transform.matrix, transforms.resampled(transform, finer))
    points = points_of(STORED["straight"]).reshape(-1, 3)
    np.testing.assert_allclose(transforms.to_moving(again, points), transforms.to_moving(transform, points), atol=1e-3)


def test_warping_by_whole_voxels_shifts_and_fills():
    grid = centred((6, 5, 4), np.eye(3), (2.0, 1.0, 3.0))
    image = Image(textured(grid.shape), grid.affine)
    field = np.zeros((*grid.shape, 3), np.float32)
    field[..., 0] = 4.0
    warped = transforms.warp_image(image, field, grid, outside=-7.0)
    np.testing.assert_allclose(warped[:4], image.data[2:], atol=1e-6)
    np.testing.assert_array_equal(warped[4:], -7)
    field[..., 0] = 0.9  # 0.45 voxel: the last plane is still within its voxels' reach
    np.testing.assert_allclose(transforms.warp_image(image, field, grid)[-1], image.data[-1], atol=1e-6)
    field[..., 0] = 1.1
    np.testing.assert_array_equal(transforms.warp_image(image, field, grid)[-1], 0)


def test_labels_stay_labels():
    grid = centred((6, 5, 4), np.eye(3), (1.0, 1.0, 1.0))
    labels = Image((np.arange(120).reshape(6, 5, 4) % 7).astype(np.uint8), grid.affine)
    field = np.full((6, 5, 4, 3), 0.4, np.float32)
    warped = transforms.warp_image(labels, field, grid, order=0)
    assert warped.dtype == np.uint8
    np.testing.assert_array_equal(warped, labels.data)


def test_a_field_must_lie_on_the_grid(transform):
    grid = STORED["straight"]
    image = Image(textured(grid.shape), grid.affine)
    with pytest.raises(ValueError, match="both must be equal"):
        transforms.warp_image(image, np.zeros((2, 2, 2, 3), np.float32), grid)


def test_learn2reg_warps_by_adding_voxels(transform, tmp_path):
    """The challenge's evaluator: order-0 samples at index + field. The moving scan lies on the fixed one's grid."""
    grid = STORED["flipped"]
    near = Transform(transform.grid, np.eye(4), transform.displacement)
    path = tmp_path / "disp_0001_0001.nii.gz"
    nifti.write(path, transforms.learn2reg_field(near, grid), grid.affine)
    field = nibabel.load(path).get_fdata()
    assert field.shape == (*grid.shape, 3)
    labels = (textured(grid.shape) * 5).round().astype(np.uint8)
    index = np.moveaxis(np.indices(grid.shape), 0, -1) + field
    theirs = ndimage.map_coordinates(labels, np.moveaxis(index, -1, 0), order=0)
    ours = transforms.warp_image(Image(labels, grid.affine), transforms.field_on(near, grid), grid, order=0)
    inside = ((index > 0.5) & (index < np.array(grid.shape) - 1.5)).all(-1)
    assert np.mean(theirs[inside] == ours[inside]) > 0.999  # but for positions half-way between two voxels
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.fixture(params=[(name, dtype) for name in STORED for dtype in (np.float32, np.int16)], ids=str)
def on_disk(request, transform, tmp_path):
    """Fixed and moving scan, affine and fields as files; our warped image; where it is not near an edge."""
    (name, dtype), grid = request.param, STORED[request.param[0]]
    other = STORED["oblique" if name != "oblique" else "swapped"]
    axes = other.affine[:3, :3] / other.spacing
    moving = centred(other.shape, axes, other.spacing, transform.matrix[:3, 3])
    for path, where, seed in (("fixed", grid, 3), ("moving", moving, 4)):
        nifti.write(tmp_path / f"{path}.nii.gz", textured(where.shape, dtype, seed), where.affine)
    image = nifti.read(tmp_path / "moving.nii.gz")
    stored = nifti.read_stored_grid(tmp_path / "fixed.nii.gz")
    total = transforms.field_on(transform, stored)
    nifti.write_field(tmp_path / "total.nii.gz", total, stored.affine)
    nifti.write_field(tmp_path / "deformation.nii.gz", transforms.deformation_on(transform, stored), stored.affine)
    write_matrix(tmp_path / "affine.txt", transform.matrix)
    index = (points_of(stored) + total - image.affine[:3, 3]) @ np.linalg.inv(image.affine[:3, :3]).T
    interior = ((index > 0.01) & (index < np.array(image.shape) - 1.01)).all(-1)
    assert interior.mean() > 0.3
    return tmp_path, transforms.warp_image(image, total, stored), interior, np.ptp(image.data)


def test_simpleitk_warps_the_same(sitk, on_disk):
    folder, ours, interior, span = on_disk
    fixed, moving = (sitk.ReadImage(str(folder / f"{name}.nii.gz"), sitk.sitkFloat32) for name in ("fixed", "moving"))
    fields = {name: sitk.ReadImage(str(folder / f"{name}.nii.gz")) for name in ("total", "deformation")}
    total, deformation = (
        sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64)) for field in fields.values()
    )
    # SimpleITK applies the last of a list first.
    parts = sitk.CompositeTransform([sitk.ReadTransform(str(folder / "affine.txt")), deformation])
    for whole in (total, parts):
        warped = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, whole, sitk.sitkLinear, 0.0)).T
        np.testing.assert_allclose(ours[interior], warped[interior], atol=1e-3 * span)


def test_ants_warps_the_same(ants, on_disk):
    folder, ours, interior, span = on_disk
    fixed, moving = (ants.image_read(str(folder / f"{name}.nii.gz")) for name in ("fixed", "moving"))
    # ANTs takes a point through the first of a list first.
    for files in (["total.nii.gz"], ["deformation.nii.gz", "affine.txt"]):
        warped = ants.apply_transforms(fixed, moving, [str(folder / file) for file in files], interpolator="linear")
        np.testing.assert_allclose(ours[interior], warped.numpy()[interior], atol=1e-3 * span)
