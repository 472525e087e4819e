"""Scans of one anatomy of round organs, at any place and in two contrasts, for tests of the affine step."""

import numpy as np

from f3r_jax.data.nifti import Image

BLOBS = np.random.default_rng(0).uniform(-1, 1, (60, 5))


def anatomy(points, contrast):
    """An ellipsoid of 180 x 132 x 144 mm with round organs in it, at points in mm; zero around it."""
    value = np.full(points.shape[:-1], 0.4)
    for x, y, z, size, gray in BLOBS:
        distance = np.sum((points - np.array([66 * x, 48 * y, 54 * z])) ** 2, axis=-1)
        value += 0.35 * gray * np.exp(-0.5 * distance / (10 + 4 * size) ** 2)
    value = contrast(np.clip(value, 0.05, 1))
    return np.where(np.sum((points / (90, 66, 72)) ** 2, axis=-1) < 1, value, 0)


def image(shape, matrix, to_world=None, contrast=np.asarray, path="scan.nii.gz"):
    """The anatomy on a grid; `to_world` takes it from its own place to the scan's frame."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    own = np.linalg.inv(np.eye(4) if to_world is None else to_world) @ matrix
    return Image(anatomy(index @ own[:3, :3].T + own[:3, 3], contrast).astype(np.float32), matrix, path)


def grid(spacing, shape, degrees=0.0, centre=(0.0, 0.0, 0.0)):
    """An affine with these spacings, turned about z and x, its field of view centred."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn * spacing
    matrix[:3, 3] = np.array(centre) - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    return matrix


def negative(value):
    return 1.05 - value
