"""Methods that `launch/placements.py` measures: the search of `register`, all of `register`, greedy and SyN.

`register-landmarks` and `register-labels` are `register` with what a user may know, `landmarks-alone` and
`labels-alone` the trivial controls: a least squares fit to the same landmarks or labels, without the scans.

Each takes a `PlacedPair` and returns where it maps points of the fixed frame: after its affine step, and at its end.
greedy and SyN begin with the centres of the volumes or of the intensities, and have an affine step of their own.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial

import numpy as np

from f3r_jax.common.arrays import Matrix
from f3r_jax.data import transforms
from f3r_jax.data.affine import guided
from f3r_jax.data.affine.start import Start
from f3r_jax.data.itk_affine import FLIP
from f3r_jax.data.nifti import Image
from f3r_jax.data.transforms import Transform, apply_matrix, to_moving
from f3r_jax.register import evidence, verdict
from f3r_jax.register.alignment import align, coarse_copies
from f3r_jax.register.guidance import UNGUIDED, Guidance
from f3r_jax.register.pipeline import Settings, register_scans
from f3r_jax.register.scans import Scan
from f3r_jax.register.verdict import Verdict
from guided_pairs import GUIDED
from placed_pairs import PlacedPair, Points

DRIVE = (1, 2)  # liver and spleen
GREEDY_AFFINE, GREEDY = "100x50x10", "100x100x50"  # iterations per level, as in greedy's manual and in `classical`


@dataclasses.dataclass(frozen=True)
class Result:
    """The points after the affine step and at the end, in mm of the moving frame, and the verdict if there is one.

    `candidates` has the points of all candidates of a search, and `transform` is the whole transform.
    """

    affine: Points
    end: Points
    verdict: Verdict | None = None
    candidates: tuple[Points, ...] = ()
    transform: Transform | None = None


def search(pair: PlacedPair) -> Result:
    """The affine step of `register` with the coarse deformation, if it has one, and the verdict on it."""
    copies = coarse_copies(pair.fixed, pair.moving)
    alignments, start = align(pair.fixed, pair.moving, copies, "affine", both=False)
    best, grid = alignments[0], copies[0].grid
    still = Transform(grid, best.matrix, np.zeros((*grid.shape, 3), np.float32))
    transform = still if best.start is None else best.start.transform
    found = verdict.judge(evidence.gather(*copies, transform, start))
    return _result(pair, transform, found, start)


def register(pair: PlacedPair) -> Result:
    """`register` with its default settings."""
    return _registered(pair, pair.fixed, pair.moving, UNGUIDED)


def register_with_landmarks(pair: PlacedPair) -> Result:
    """`register` with the eight landmarks of the pair."""
    sides = zip((pair.fixed, pair.moving), pair.landmarks, strict=True)
    fixed, moving = (dataclasses.replace(scan, landmarks=points) for scan, points in sides)
    return _registered(pair, fixed, moving, Guidance(landmarks_weight=GUIDED["landmarks_weight"]))


def register_with_labels(pair: PlacedPair) -> Result:
    """`register` with liver and spleen, as far as both scans show them; without guidance if they show neither."""
    drive = _driving(pair)
    sides = zip((pair.fixed, pair.moving), pair.labels, strict=True)
    fixed, moving = (dataclasses.replace(scan, labels=labels) for scan, labels in sides)
    guidance = Guidance(labels_weight=GUIDED["labels_weight"], labels_drive=drive) if drive else UNGUIDED
    return _registered(pair, fixed, moving, guidance)


def _driving(pair: PlacedPair) -> tuple[int, ...]:
    return tuple(value for value in DRIVE if all((labels.data == value).any() for labels in pair.labels))


def _registered(pair: PlacedPair, fixed: Scan, moving: Scan, guidance: Guidance) -> Result:
    result = register_scans(fixed, moving, Settings(guidance=guidance))
    return _result(pair, result.transform, result.verdict, result.search)


def landmarks_alone(pair: PlacedPair, *, fit: Callable[[Points, Points], Matrix]) -> Result:
    """A least squares fit to the eight landmarks."""
    return _of_matrix(pair, fit(*pair.landmarks))


def labels_alone(pair: PlacedPair) -> Result:
    """The shift and scales at which liver and spleen overlap best; the headers' frame if there is neither."""
    drive = _driving(pair)
    return _of_matrix(pair, guided.from_labels(*pair.labels, drive) if drive else np.eye(4))


def affine(x: Points, y: Points) -> Matrix:
    """The least squares affine map from points to points."""
    matrix = np.eye(4)
    matrix[:3] = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0].T
    return matrix


def _of_matrix(pair: PlacedPair, matrix: Matrix) -> Result:
    grid = pair.fixed.image.grid
    return _result(pair, Transform(grid, matrix, np.zeros((*grid.shape, 3), np.float32)), None, None)


def _result(pair: PlacedPair, transform: Transform, found: Verdict | None, start: Start | None) -> Result:
    candidates = () if start is None else tuple(map(start.transform_of, start.candidates))
    return Result(
        affine=_mapped(transform.matrix, pair.points),
        end=to_moving(transform, pair.points),
        verdict=found,
        candidates=tuple(to_moving(each, pair.points) for each in candidates),
        transform=transform,
    )


def greedy(pair: PlacedPair, *, begin: str = "-ia-image-centers") -> Result:
    """Greedy with normalised mutual information: shift, rotation and one scale, then the deformation.

    With twelve parameters its line search failed, and the matrix was hundreds of mm off, on all pairs that were tried.
    """
    import SimpleITK
    from picsl_greedy import Greedy3D

    def image(scan: Image) -> SimpleITK.Image:
        converted = SimpleITK.GetImageFromArray(np.ascontiguousarray(scan.data.T))  # SimpleITK's arrays are (z y x)
        converted.SetSpacing(scan.spacing.tolist())
        converted.SetOrigin((FLIP @ scan.affine)[:3, 3].tolist())
        converted.SetDirection(FLIP[:3, :3].ravel().tolist())
        return converted

    program = Greedy3D()
    images = {"fixed": image(pair.fixed.normalised), "moving": image(pair.moving.normalised)}
    program.execute(
        f"-i fixed moving -a -dof 7 -m NMI -n {GREEDY_AFFINE} {begin} -o matrix -V 0", **images, matrix=None
    )
    matrix = np.asarray(program["matrix"], np.float64)
    # -wp 0: the field isn't rounded to a tenth of a voxel.
    program.execute(f"-i fixed moving -m NMI -n {GREEDY} -it matrix -o field -wp 0 -V 0", field=None)
    field = SimpleITK.GetArrayFromImage(program["field"]).transpose(2, 1, 0, 3) @ FLIP[:3, :3].astype(np.float32)
    return Result(
        _mapped(matrix, pair.points),
        _mapped(matrix, pair.points + transforms.sample_field(field, pair.fixed.image.grid, pair.points)),
    )


def syn(pair: PlacedPair) -> Result:
    """SyN with the defaults of ANTsPy: centres of the intensities, affine step, deformation; mutual information."""
    import ants
    import pandas

    def image(scan: Image) -> "ants.ANTsImage":
        origin, mm = (FLIP @ scan.affine)[:3, 3].tolist(), scan.spacing.tolist()
        return ants.from_numpy(scan.data.astype(np.float32), origin=origin, spacing=mm, direction=FLIP[:3, :3])

    def mapped(files: list[str]) -> Points:
        table = pandas.DataFrame(_mapped(FLIP, pair.points), columns=["x", "y", "z"])
        there = ants.apply_transforms_to_points(3, table, files)
        return _mapped(FLIP, there[["x", "y", "z"]].to_numpy(np.float64))

    with tempfile.TemporaryDirectory(prefix="syn-") as folder:
        volumes = {"fixed": image(pair.fixed.normalised), "moving": image(pair.moving.normalised)}
        result = ants.registration(**volumes, type_of_transform="SyN", outprefix=f"{folder}/", random_seed=1)
        files = result["fwdtransforms"]
        return Result(mapped(files[-1:]), mapped(files))


def _mapped(matrix: Matrix, points: Points) -> Points:
    return apply_matrix(matrix, points.T).T


METHODS: dict[str, Callable[[PlacedPair], Result]] = {
    "search": search,
    "register": register,
    "register-landmarks": register_with_landmarks,
    "landmarks-alone": partial(landmarks_alone, fit=partial(guided.rigid_motion, scaled=True)),
    "landmarks-alone-rigid": partial(landmarks_alone, fit=guided.rigid_motion),
    "landmarks-alone-affine": partial(landmarks_alone, fit=affine),
    "register-labels": register_with_labels,
    "labels-alone": labels_alone,
    "greedy": greedy,
    "greedy-moments": partial(greedy, begin="-moments 2"),
    "syn": syn,
}
PACKAGES = {"greedy": "picsl_greedy", "greedy-moments": "picsl_greedy", "syn": "ants"}  # the module that each needs
