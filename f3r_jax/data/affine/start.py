"""A start for two scans that may be anywhere: placement, coarse deformation, and the matrix that fits it best.

1. `search` finds the best placements at all shifts and several scales. If the headers overlap in space, the identity is
   one of them.
2. `placement` optimises each of them.
3. Each is deformed on the coarse grid. Placements whose sum of mismatches, before and after the deformation, is within
   `CLOSE` of the lowest are close. Of these, the result is the one with the highest normalised mutual information. The
   sums often differ by one percent where the Dice differs by 30, and mutual information is independent of MIND.

   On 16 real pairs the mean Dice on the coarse grid was 67.4 by the sum alone, 69.3 by this rule, and 71.1 if the
   labels chose. With 16 to 64 bins and `CLOSE` from 0.03 to 0.08 it was 68.2 to 69.6.
4. The matrix of twelve parameters is fitted to the deformation, and the deformation is expressed relative to it.

Fitting the matrix and deforming again does not help: on 16 real pairs the mean Dice after the deformation was 69, then
64, then 62. The coarse deformation is therefore kept, and finer levels continue from it.

5. Scans that are `ALIKE` after the deformation are of one person, who may be turned. Then a rotation is optimised from
   that matrix, and the deformation from there is a further candidate.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from f3r_jax.common.arrays import Matrix, VoxelField
from f3r_jax.common.errors import UserError
from f3r_jax.data.affine import coarse
from f3r_jax.data.affine.coarse import CoarseScan
from f3r_jax.data.affine.placement import End, compared, distinct, optimise, optimise_turned
from f3r_jax.data.affine.search import Placement, centre, matrix_of, search
from f3r_jax.data.transforms import Transform
from f3r_jax.ops.instance_optimisation import NONE, Level, Refinement, refine
from f3r_jax.ops.restraints import Restraints
from f3r_jax.ops.shapes import Displacement, as_volume
from f3r_jax.ops.sources import Source
from f3r_jax.ops.threads import in_threads
from f3r_jax.ops.warp import warp

MARGIN = 4  # voxels around the fixed grid, from where the moving scan can be pulled in
MULTIPLE = 16  # voxels: few different grid sizes, so that compiled functions are reused
DEFORMATION = Refinement(mind=coarse.PRESET, lam=0.3, levels=tuple(Level(spacing, 80, 0.3) for spacing in (8, 4, 2)))
CLOSE = 0.05  # of the lowest cost
# The identity of the headers wins unless another placement is better by this fraction.
TRUST = 0.03
# Scans with a higher mismatch after the coarse deformation are of different people: 16 real pairs had 0.117 and more,
# five of six phantom pairs at most 0.07. Instance optimisation without the coarse deformation then ends far worse.
ALIKE = 0.1
ROBUST = 18.0  # mm: points further from the fitted matrix hardly count
ROUNDS = 8  # of the reweighted fit
EVERY = 7  # of the body's voxels, one is used in the fit


@dataclasses.dataclass(frozen=True, eq=False)  # of arrays
class Candidate:
    """A placement and the deformation from it.

    Attributes:
      from_headers: whether it began at the identity of the headers.
      matrix: mm of the fixed frame to mm of the moving frame, before the deformation.
      displacement: on the coarse grid of `Start`, in its voxels.
      mismatch: of the placement, with the penalty of its scales.
      mismatch_deformed: after the deformation.
      information: normalised mutual information after the deformation, 1 to 2.
    """

    from_headers: bool
    matrix: Matrix
    displacement: VoxelField
    mismatch: float
    mismatch_deformed: float
    information: float

    @property
    def cost(self) -> float:
        """The sum of both mismatches; the headers are given some credit."""
        return (self.mismatch + self.mismatch_deformed) * (1 - TRUST * self.from_headers)

    @property
    def merit(self) -> float:
        """The information above that of independent scans; the headers are given some credit."""
        return (self.information - 1) * (1 + TRUST * self.from_headers)


@dataclasses.dataclass(frozen=True)
class Start:
    """The result: the transform on the coarse grid, both scans there, and all candidates, the chosen one first."""

    transform: Transform
    fixed: CoarseScan
    moving: CoarseScan  # on its own grid
    candidates: tuple[Candidate, ...]

    @property
    def alike(self) -> bool:
        """Whether the scans match well after the deformation, as those of one person do."""
        return self.candidates[0].mismatch_deformed <= ALIKE

    def transform_of(self, candidate: Candidate) -> Transform:
        """The transform of one of the candidates, on the coarse grid."""
        return Transform(self.fixed.grid, candidate.matrix, candidate.displacement)

    def close_candidates(self) -> list[Candidate]:
        """The other candidates whose cost is about that of the chosen one, or less."""
        best, *others = self.candidates
        return [each for each in others if each.cost <= (1 + CLOSE) * best.cost]


def find_start(fixed: CoarseScan, moving: CoarseScan, *, headers: bool) -> Start:
    """Finds the start.

    Args:
      fixed: the fixed scan.
      moving: the moving scan.
      headers: whether the identity of the headers is a candidate.

    Raises:
      UserError: no placement shows half of a body in the other scan, and the headers give none.
    """
    begins = [(False, place) for place in search(fixed, moving)]
    if headers:
        begins.append((True, Placement(centre(fixed.grid) - centre(moving.grid), np.zeros(3), 0.0)))
    if not begins:
        raise UserError(
            f"{moving.grid.path}: no position shows half of the body of {fixed.grid.path}; expected scans of the same "
            "part of the body: give a matrix file with --affine"
        )
    pair, wide = compared(fixed, moving), coarse.widened(fixed, MARGIN, MULTIPLE)

    def optimised(begin: tuple[bool, Placement]) -> End:
        from_headers, place = begin
        end = optimise(place, pair)
        return End(from_headers, matrix_of(end, fixed.grid, moving.grid), end.cost)

    def candidate(end: End) -> Candidate:
        return deformed(end.matrix, wide, moving, cost=end.cost, from_headers=end.from_headers)

    ends = distinct(in_threads(optimised, begins), fixed)
    start = chosen(in_threads(candidate, ends), wide, moving)
    if not start.alike:
        return start
    matrix, cost = optimise_turned(start.transform.matrix, pair, fixed.grid, moving.grid)
    turned = deformed(matrix, wide, moving, cost=cost, from_headers=start.candidates[0].from_headers)
    return chosen([*start.candidates, turned], wide, moving)


def chosen(candidates: Sequence[Candidate], fixed: CoarseScan, moving: CoarseScan) -> Start:
    """The start from the best candidate; `fixed` is the fixed scan on the candidates' grid."""
    best, *others = ordered(candidates)
    transform = refitted(Transform(fixed.grid, best.matrix, best.displacement), fixed)
    return Start(transform, fixed, moving, (best, *others))


def ordered(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The close candidates by decreasing merit, then the others by increasing cost."""
    limit = (1 + CLOSE) * min(each.cost for each in candidates)
    close = [each for each in candidates if each.cost <= limit]
    others = [each for each in candidates if each.cost > limit]
    return sorted(close, key=lambda each: -each.merit) + sorted(others, key=lambda each: each.cost)


def deformed(
    matrix: Matrix,
    fixed: CoarseScan,
    moving: CoarseScan,
    *,
    cost: float,
    from_headers: bool,
    further: Sequence[Source] = (),
    restraints: Restraints = NONE,
) -> Candidate:
    """Deforms the moving scan from a matrix; `further` and `restraints` are those of `refine`, on the fixed grid.

    A deformation that increases the mismatch of scans that are `ALIKE` before it is dropped.
    """
    moved = coarse.moved_by(moving, matrix, fixed.grid)
    u = deformation(fixed, moved, further=further, restraints=restraints)
    after = warped(moved, u)
    mismatch = coarse.mismatch(fixed, after, moved.seen)
    # Where the moving field of view ended inside the fixed body, the deformation moved it by up to 65 mm. For scans of
    # different people nothing is dropped: eight real pairs with one of the CTs then ended at a Dice of 15 to 21.
    before = coarse.mismatch(fixed, moved, moved.seen)
    if before <= min(ALIKE, mismatch):
        u, after, mismatch = jnp.zeros_like(u), moved, before
    return Candidate(from_headers, matrix, np.asarray(u)[0], cost, mismatch, coarse.mutual_information(fixed, after))


def deformation(
    fixed: CoarseScan, moved: CoarseScan, *, further: Sequence[Source] = (), restraints: Restraints = NONE
) -> Displacement:
    """The coarse deformation inside both bodies, of two scans on one grid."""
    volumes = [as_volume(scan.intensities) for scan in (fixed, moved)]
    masks = [as_volume(scan.body.astype(np.float32)) for scan in (fixed, moved)]
    return refine(
        *volumes,
        fixed_mask=masks[0],
        moving_mask=masks[1],
        further=further,
        restraints=restraints,
        settings=DEFORMATION,
    )


def warped(scan: CoarseScan, u: jnp.ndarray) -> CoarseScan:
    """The scan after a displacement (1 x y z 3) on its grid."""

    def mask(data: np.ndarray) -> np.ndarray:
        return np.asarray(warp(as_volume(data.astype(np.float32)), u, padding="zero"))[0, ..., 0] > 0.5

    intensities = np.asarray(warp(as_volume(scan.intensities), u))[0, ..., 0]
    return CoarseScan(intensities, mask(scan.body), mask(scan.seen), scan.grid)


def refitted(transform: Transform, fixed: CoarseScan) -> Transform:
    """The same transform with the matrix that fits it best over the fixed body, and the rest as displacement.

    Points beyond the moving field of view count too: without them one of 16 real pairs lost 3.3 points of Dice after
    the affine step instead of 2.1.
    """
    inside = np.argwhere(fixed.body)[::EVERY]
    to_world, old = transform.grid.affine, transform.matrix @ transform.grid.affine
    points = np.c_[inside, np.ones(len(inside))] @ to_world.T
    goals = np.c_[inside + transform.displacement[tuple(inside.T)], np.ones(len(inside))] @ old.T
    weight = np.ones(len(inside))
    for _ in range(ROUNDS):
        root = np.sqrt(weight)[:, None]
        rows = np.linalg.lstsq(points * root, goals[:, :3] * root, rcond=None)[0]
        away = np.linalg.norm(goals[:, :3] - points @ rows, axis=1)
        weight = 1 / (1 + (away / ROBUST) ** 2)
    matrix = np.eye(4)
    matrix[:3] = rows.T
    if np.linalg.det(matrix[:3, :3]) < 0.1:  # the deformation has collapsed: keep the placement
        return transform
    carry = np.linalg.inv(matrix @ to_world) @ old
    index = np.moveaxis(np.indices(transform.grid.shape, np.float32), 0, -1)
    u = (index + transform.displacement) @ carry[:3, :3].T.astype(np.float32) + carry[:3, 3].astype(np.float32) - index
    return Transform(transform.grid, matrix, u.astype(np.float32))
