"""Affine registration by MIND: shifts, then rotations, then scales and shears, from coarse to fine.

What is maximised over the matrix M (mm of the fixed frame to mm of the moving frame) is the similarity

    s(M) = sum_p v(p) v'(Mp) (u - |f(p) - m_M(p)|^2) / (u min(sum v, sum v'))

of the descriptors f of the fixed scan and m_M of the moving one sampled through M, squares averaged over the channels;
v and v' are 1 where a scan is seen (field of view and mask; v less towards the skin) and 0 elsewhere, and u is the mean
of |f - m|^2 over places drawn at random. So s is 1 for equal scans and 0 for unrelated ones, and a point that drops out
of view counts as an unrelated one: a small overlap is never a gain. Strain costs `STIFFNESS`, as a thin slab says
little about the scale across it.

1. All shifts by whole voxels of the first lattice are scored at once, as sums of correlations, by Fourier transforms.
   The peaks are the starts.
2. Each is refined by L-BFGS on the shift alone, and the best goes on to the rigid parameters.
3. On the finer lattice L-BFGS goes on with the rigid parameters, then with all twelve.

Letters: x y z voxels of a lattice, s starts.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float64
from scipy import optimize

from f3r_jax.common.arrays import Mask, Matrix
from f3r_jax.common.errors import UserError
from f3r_jax.data.affine import grids, similarity
from f3r_jax.data.affine.grids import Frame, ReducedScan
from f3r_jax.data.affine.similarity import Views
from f3r_jax.data.nifti import Image
from f3r_jax.ops.mind import mind

DEGREES = {"translation": 3, "rigid": 6, "affine": 12}  # how many of the parameters are free
# Measured on a real CT and MR of different people (a slab of 60 mm, mean Dice of four organs; 0.40 by the centres of
# the bodies, 0.61 by shift and scales fitted to the labels): rigid 0.57, affine 0.57. On one lattice alone, with less
# smoothing, affine gave 0.54 at 8 mm, 0.53 at 6, 0.56 at 5, 0.49 at 10 and 0.45 at 12 mm; at 8 mm and a stiffness of
# 1, 3, 10 0.52, 0.54, 0.55, and known scales of 1.04, 0.96, 1.03 came out 1.1 mm off at 3, 1.9 mm at 10.
COARSE, FINE = 8.0, 5.0  # mm of the lattices
PRESET = "mind_ssc"
STIFFNESS = 3.0  # loss of s for a strain (log-scale or shear) of 1
REACH = 48.0  # mm: more than a deep breath
STARTS = 4  # peaks
APART = 2  # voxels between peaks
ITERATIONS = 60  # of L-BFGS at most
TOLERANCE = 1e-5  # gain of s that ends it, ten times what single precision can tell
LEAST_OVERLAP = 0.1  # of the scan that sees less: below it there is hardly anything to compare


@dataclasses.dataclass(frozen=True)
class Fit:
    """What was found.

    Attributes:
      matrix: mm of the fixed frame to mm of the moving frame, RAS+.
      similarity_before, similarity_after: s of the initial matrix and of this one, both on the fine lattice.
      overlap: the part that both scans see, of the scan that sees less.
    """

    matrix: Matrix
    similarity_before: float
    similarity_after: float
    overlap: float


def fit(
    fixed: Image,
    moving: Image,
    *,
    initial: Matrix,
    degrees: str = "affine",
    related: bool = True,
    fixed_mask: Mask | None = None,
    moving_mask: Mask | None = None,
) -> Fit:
    """The matrix of the highest similarity found about `initial`, or `initial` itself where nothing better is.

    Args:
      fixed: intensities in [0, 1], as `preprocess.normalise` gives them.
      moving: the same.
      initial: mm of the fixed frame to mm of the moving frame.
      degrees: "translation", "rigid" or "affine".
      related: whether `initial` is right to `REACH` mm; if not, all heights at which the scans meet are searched.
      fixed_mask: where the fixed scan may be compared, on its own grid.
      moving_mask: the same of the moving scan.

    Raises:
      UserError: an empty mask, or scans that do not overlap.
    """
    scans = (
        grids.reduce(fixed, fixed_mask, spacing=FINE / 2),
        grids.reduce(moving, moving_mask, spacing=FINE / 2),
    )
    frame = grids.frame_of(fixed)
    start = np.asarray(initial, np.float64) @ frame.to_world
    reach = np.full(3, REACH)
    if not related:
        reach[2] = max(REACH, (grids.height(fixed, frame) + grids.height(moving, frame)) / 2)
    coarse, both = _views(*scans, frame, start, COARSE, reach)
    starts = _starts(both, coarse.unrelated, COARSE)
    theta, _ = max((_ascend(each, coarse, DEGREES["translation"]) for each in starts), key=lambda end: end[1])
    most = DEGREES[degrees]
    theta, _ = _ascend(theta, coarse, min(most, DEGREES["rigid"]))
    fine, _ = _views(*scans, frame, start, FINE, reach)
    for free in sorted({min(most, DEGREES["rigid"]), most}):
        theta, _ = _ascend(theta, fine, free)
    before, overlap_before = _agreement(np.zeros(12), fine)
    after, overlap = _agreement(theta, fine)
    if before >= after:
        theta, after, overlap = np.zeros(12), before, overlap_before
    if overlap < LEAST_OVERLAP:
        raise UserError(
            f"{moving.path}: shares {100 * overlap:.0f} % of the field of view with {fixed.path} after registration; "
            f"expected at least {100 * LEAST_OVERLAP:.0f} %: give a start nearer to the truth"
        )
    change = np.asarray(similarity.affine_map(jnp.asarray(theta, jnp.float32), frame.radius), np.float64)
    return Fit(start @ change @ np.linalg.inv(frame.to_world), before, after, overlap)


def _views(
    fixed: ReducedScan, moving: ReducedScan, frame: Frame, start: Matrix, spacing: float, reach: np.ndarray
) -> tuple[Views, tuple[np.ndarray, np.ndarray]]:
    """What L-BFGS compares; and both scans on lattices, that of the moving one wider by `reach` mm, for `_starts`.

    The latter are descriptors and, in the last channel, where they are seen.
    """
    size, wider = grids.lattice_size(frame, spacing), np.ceil(reach / spacing).astype(int)
    to_local, to_local_there = grids.lattice(size, spacing), grids.lattice(size + 2 * wider, spacing)
    data, v = grids.sample(fixed, size, frame.to_world @ to_local)
    data_there, v_there = grids.sample(moving, size + 2 * wider, start @ to_local_there)
    v = v * grids.interior(data, spacing)
    if not v.any() or not v_there.any():
        raise UserError(
            f"{moving.image.path}: nothing of it lies within reach of {fixed.image.path}; expected scans that overlap: "
            "give a start nearer to the truth"
        )
    f, m = (np.asarray(mind(image[None, ..., None], preset=PRESET)[0]) for image in (data, data_there))
    unrelated = np.float32(similarity.unrelated(f[v > 0], m[v_there > 0]))
    stack, to_stack = grids.stack(moving, spacing)
    views = Views(
        fixed=f,
        weights=np.float32(v / (unrelated * min(v.sum(), v_there.sum()))),
        moving=stack,
        to_local=np.float32(to_local),
        to_moving=np.float32(to_stack @ start),
        unrelated=unrelated,
        radius=np.float32(frame.radius),
    )
    both = tuple(np.concatenate([d, seen[..., None]], axis=-1) for d, seen in ((f, v), (m, v_there)))
    return jax.tree.map(jnp.asarray, views), both


def _starts(both: tuple[np.ndarray, np.ndarray], unrelated: Array, spacing: float) -> Float64[np.ndarray, "s 12"]:
    """The parameters of the shifts that score best, of all by whole voxels that keep one lattice within the other."""
    wider = (np.array(both[1].shape[:3]) - both[0].shape[:3]) // 2
    scores = np.asarray(similarity.shift_scores(*map(jnp.asarray, both), unrelated))
    window = scores[tuple(slice(2 * n + 1) for n in wider)]
    shifts = (similarity.peaks(window, count=STARTS, apart=APART) - wider) * spacing
    return np.pad(shifts, ((0, 0), (0, 9)))


def _ascend(theta: np.ndarray, views: Views, free: int) -> tuple[np.ndarray, float]:
    """Where L-BFGS ends with the first `free` parameters moving, and s there, the cost of strain taken off."""

    def loss(first: np.ndarray) -> tuple[float, np.ndarray]:
        whole = jnp.asarray(np.concatenate([first, theta[free:]]), jnp.float32)
        (value, _), gradient = similarity.similarity_and_gradient(whole, views, STIFFNESS, preset=PRESET)
        return -float(value), -np.asarray(gradient, np.float64)[:free]

    options = {"maxiter": ITERATIONS, "ftol": TOLERANCE, "gtol": 1e-7}
    end = optimize.minimize(loss, theta[:free], jac=True, method="L-BFGS-B", options=options)
    return np.concatenate([end.x, theta[free:]]), -float(end.fun)


def _agreement(theta: np.ndarray, views: Views) -> tuple[float, float]:
    """s, free of the cost of strain, and the overlap."""
    at = jnp.asarray(theta, jnp.float32)
    (_, (score, overlap)), _ = similarity.similarity_and_gradient(at, views, STIFFNESS, preset=PRESET)
    return float(score), float(overlap)
