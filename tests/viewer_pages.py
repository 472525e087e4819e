"""A small registration as the viewer shows it, and pages of it, for tests."""

import numpy as np

from f3r_jax.data.grids import Grid
from f3r_jax.register import page
from f3r_jax.register.shown import Shown
from f3r_jax.register.viewer import make_viewer

SHAPE, SPACING = (40, 32, 24), (3.0, 3.0, 4.0)
ORGANS = {"left_kidney</script>": (7,), 'liver "&': (1, 300)}
BLOB = (slice(6, 14), slice(18, 26), slice(10, 18))  # the first organ: towards the patient's left, and in front


def grid_of(shape=SHAPE, spacing=SPACING):
    """An oblique grid far from the origin."""
    angle = np.deg2rad(10)
    turned = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turned * spacing
    affine[:3, 3] = (-100.0, 250.0, 900.0)
    return Grid(shape, affine)


def shown_of(*, labels=True, spread=False, shape=SHAPE):
    """A body with one bright organ; the field moves 6 mm along x, folds at one place and stretches at another."""
    rng = np.random.default_rng(0)
    body = np.zeros(shape, np.float32)
    body[3:-3, 3:-3, 2:-2] = 0.3
    fixed, moving = body + 0.02 * rng.random(shape, np.float32), body + 0.02 * rng.random(shape, np.float32)
    fixed[BLOB] = 1.0
    moving[tuple(slice(part.start - 2, part.stop - 2) for part in BLOB)] = 0.9
    u = np.zeros((*shape, 3), np.float32)
    u[..., 0] = 2.0
    u[20, 16, 12, 0] = -4.0
    numbers = np.zeros(shape, np.int16)
    numbers[BLOB] = 7
    numbers[25:30, 5:10, 3:6] = 300
    maps = {"fixed": numbers, "moving": np.roll(numbers, -2, 0), "warped": np.roll(numbers, 1, 1)} if labels else {}
    given = rng.random(shape, np.float32) if spread else None
    return Shown(grid_of(shape), fixed, moving, np.roll(moving, 2, (0, 1, 2)), u, maps, ORGANS, given)


def summary_of(name="mr.nii.gz"):
    """What the page needs of `summary.json`."""
    scores = {"before": {}, "affine": {}}
    numbers = dict.fromkeys(("folding_percent", "nondiffeomorphic_percent", "sd_log_jacobian"), 0.0)
    return (
        scores
        | numbers
        | {
            "similarity": {"initial": 0.3, "affine": 0.2},
            "inverse_residual_voxels": {"mean": 0.0, "max": 0.1},
            "seconds": {"total": 1.0},
            "verdict": {"level": "ok", "reasons": []},
            "fixed_modality": "mr",
            "moving_modality": "ct",
            "settings": {"fixed": f"scans/{name}", "moving": "ct.nii.gz", "checkpoint": None},
            "versions": {},
            "command": f"python -m f3r_jax.register --fixed='scans/{name}'",
        }
    )


def html_of(shown, name="mr.nii.gz"):
    """The page with the viewer and without figures."""
    return page.page(summary_of(name), [], make_viewer(shown))
