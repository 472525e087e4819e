"""Reading of the two scans of a registration, and their common working grid.

Volumes are read in canonical orientation; `stored` keeps the axes of the file. Letters: x y z voxels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from f3r_jax.common.arrays import Numbers
from f3r_jax.common.errors import UserError
from f3r_jax.config import CT_WINDOW, MR_PERCENTILES
from f3r_jax.data import nifti, preprocess, resample, stored, volumes
from f3r_jax.data.affine.coarse import CoarseScan
from f3r_jax.data.landmarks import read_landmarks
from f3r_jax.data.nifti import Grid, Image, PathLike

MULTIPLE = 16  # voxels: few different grid sizes, so that compiled functions are reused for other pairs
THINNEST = 8.0  # mm: the coarsest voxels of the affine step; a thinner scan has no shape along that axis
SMALLEST_MASK = 27  # voxels: MIND compares patches
MARGIN = 16.0  # mm around the shared field of view, as a displacement may point there


@dataclasses.dataclass(frozen=True)
class Scan:
    """One scan with its mask, labels and landmarks, all on the image's canonical grid."""

    image: Image  # as stored: HU for CT
    normalised: Image  # in [0, 1]
    modality: str  # "ct" | "mr"
    stored: Grid  # with the axes as stored in the file
    mask: Image | None = None  # voxels to compare; None: the whole field of view
    labels: Image | None = None
    landmarks: Float[np.ndarray, "n 3"] | None = None  # mm, RAS+
    notes: tuple[str, ...] = ()  # lines that a user should know about the files
    rigid: Image | None = None  # each connected part of a label moves rigidly
    preserve: Image | None = None  # each connected part of a label keeps its volume
    extra: "tuple[Scan, ...]" = ()  # further sequences in the same frame


@dataclasses.dataclass(frozen=True)
class OrganLabels:
    """The label maps of both scans, and the label values of each organ to score."""

    fixed: Image
    moving: Image
    values: Mapping[str, tuple[int, ...]]


def read(
    path: PathLike,
    *,
    modality: str | None = None,
    mask: PathLike | None = None,
    labels: PathLike | None = None,
    landmarks: PathLike | None = None,
    exclude: PathLike | None = None,
    rigid: PathLike | None = None,
    preserve: PathLike | None = None,
    extra: Sequence[PathLike] = (),
    ct_window: Sequence[float] = CT_WINDOW,
    unoriented: str | None = None,
    check_modality: bool = True,
) -> Scan:
    """Reads a scan; a modality of None is detected from the intensities.

    `unoriented` declares the axes of files without orientation codes. `check_modality` makes intensities that
    contradict a stated modality an error.

    Raises:
      UserError: a file is missing, invalid or on another grid than the image, or the modality cannot be detected.
    """
    opened = volumes.open_volume(path, unoriented=unoriented)
    image, notes = stored.image_of(opened), list(opened.notes)
    check_size(image.grid)
    if modality is None:
        modality = preprocess.recognise_modality(image)
    elif check_modality:
        preprocess.check_modality(image, modality)
    label_map = _on_same_grid(image, labels, "label map", unoriented)
    compared = _without(_mask(mask, image, unoriented, notes), _on_same_grid(image, exclude, "mask", unoriented))
    normalised = preprocess.normalise(image, modality, ct_window=ct_window, mr_percentiles=MR_PERCENTILES)
    if compared is not None:
        _check_mask(compared, normalised)
    return Scan(
        image,
        normalised,
        modality,
        opened.grid,
        mask=compared,
        labels=label_map,
        landmarks=read_landmarks(Path(landmarks)) if landmarks else None,
        notes=tuple(notes),
        rigid=_on_same_grid(image, rigid, "mask", unoriented),
        preserve=_on_same_grid(image, preserve, "mask", unoriented),
        extra=tuple(read(file, ct_window=ct_window, unoriented=unoriented) for file in extra),
    )


def _on_same_grid(image: Image, file: PathLike | None, what: str, unoriented: str | None) -> Image | None:
    """Reads the label map, or `what` it is, of a scan, and checks its grid; None without a file."""
    if not file:
        return None
    found = volumes.read_labels(file, unoriented=unoriented)
    nifti.check_same_grid(image, found, what)
    return found


def _without(mask: Image | None, exclude: Image | None) -> Image | None:
    """The mask of voxels to compare without those of `exclude`; None: all voxels."""
    if exclude is None:
        return mask
    kept = (exclude.data <= 0) if mask is None else (exclude.data <= 0) & (mask.data > 0)
    return dataclasses.replace(exclude if mask is None else mask, data=kept.astype(np.uint8))


def check_size(grid: Grid) -> None:
    """Raises a UserError for a scan that is too thin to be registered."""
    length = np.asarray(grid.shape) * grid.spacing
    axis = int(np.argmin(length))
    if length[axis] < THINNEST:
        raise UserError(
            f"{grid.path}: is {length[axis]:.3g} mm long along {'xyz'[axis]} ({grid.shape[axis]} voxels of "
            f"{grid.spacing[axis]:.3g} mm); expected a volume of at least {THINNEST:g} mm: a slice cannot be "
            "registered, and voxels of a wrong size need a corrected header"
        )


def check_mask_grid(image: Grid, mask: Grid) -> None:
    """Raises a UserError for a mask of another grid that does not overlap the image; others are resampled."""
    if not resample.has_overlap(image, mask):
        raise UserError(f"{mask.path}: the mask does not overlap its image {image.path}; expected one in its frame")


def _mask(file: PathLike | None, image: Image, unoriented: str | None, notes: list[str]) -> Image | None:
    """The mask on the image's grid, without the image's padding; None if all voxels are to be compared."""
    mask = None
    if file is not None:
        mask, line = volumes.read_mask(file, unoriented=unoriented)
        notes += [line] if line else []
        try:
            nifti.check_same_grid(image, mask, "mask")
        except UserError:
            check_mask_grid(image.grid, mask.grid)
            notes.append(f"{mask.path}: the mask is on another grid than {image.path}; it is resampled")
            mask = dataclasses.replace(mask, data=resample.resample_labels(mask, image.grid), affine=image.affine)
    if image.outside is None:
        return mask
    notes.append(f"{image.path}: {100 * image.outside.mean():.3g} % of voxels are NaN; they count as outside the scan")
    inside = ~image.outside if mask is None else (mask.data > 0) & ~image.outside
    return Image(inside.astype(np.uint8), image.affine, image.path if mask is None else mask.path)


def _check_mask(mask: Image, normalised: Image) -> None:
    """Raises a UserError for a mask that leaves nothing to compare."""
    inside = mask.data > 0
    if not inside.any():
        raise UserError(f"{mask.path}: the mask is empty, expected values above 0 at the voxels to compare")
    if (count := np.count_nonzero(inside)) < SMALLEST_MASK:
        raise UserError(
            f"{mask.path}: the mask holds {count} voxels; expected a region to compare of at least {SMALLEST_MASK}"
        )
    if np.ptp(normalised.data[inside]) == 0:
        raise UserError(
            f"{mask.path}: the scan {normalised.path} has one intensity inside the mask (air?); expected anatomy to "
            "compare"
        )


def common_grid(fixed: Grid, moving: Grid, matrix: Float[np.ndarray, "4 4"], *, spacing: float) -> Grid:
    """The working grid: along the fixed scan's axes, over the shared field of view, with cubic voxels of `spacing` mm.

    `matrix` maps mm of the fixed frame to mm of the moving frame. The grid covers the part of the fixed field of view
    that the moving one covers too, and a margin. Its sizes are multiples of 16 voxels.

    Raises:
      UserError: the two fields of view do not overlap.
    """
    voxels = _shared_voxels(fixed, moving, matrix)
    if voxels is None:
        raise UserError(
            f"{moving.path}: does not overlap {fixed.path} after the affine step; expected scans of the same part of "
            "the body"
        )
    margin = MARGIN / fixed.spacing
    low = np.maximum(voxels.min(axis=0) - margin, -0.5)
    high = np.minimum(voxels.max(axis=0) + margin, np.asarray(fixed.shape) - 0.5)
    centre = fixed.affine[:3, :3] @ ((low + high) / 2) + fixed.affine[:3, 3]
    return _over(fixed, centre, (high - low) * fixed.spacing, np.full(3, spacing))


def covering(grid: Grid, *, spacing: Numbers) -> Grid:
    """A grid of another spacing (mm) over the same field of view; its sizes are multiples of 16 voxels."""
    centre = grid.affine[:3, :3] @ ((np.asarray(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    return _over(grid, centre, np.asarray(grid.shape) * grid.spacing, np.asarray(spacing, np.float64))


def no_finer(grid: Grid, spacing: float) -> Grid:
    """The grid itself, or a grid of `spacing` mm over its field of view if its voxels are finer than that."""
    if (grid.spacing >= spacing * (1 - 1e-6)).all():
        return grid
    return covering(grid, spacing=np.maximum(grid.spacing, spacing))


def on_grid(
    scan: Scan, grid: Grid, coarse: CoarseScan | None = None
) -> tuple[Float[np.ndarray, "x y z"], Bool[np.ndarray, "x y z"]]:
    """Resamples a scan on a grid in its frame: (intensities in [0, 1], mask of the voxels to compare).

    With the coarse copy of the scan, the mask is limited to its body, and an MR keeps its darkest tissues.
    """
    inside = resample.field_of_view(scan.image.grid, grid)
    if scan.mask is not None:
        inside &= resample.resample_labels(scan.mask, grid) > 0
    if coarse is not None:
        body = Image(coarse.body.astype(np.float32), coarse.grid.affine)
        inside &= resample.resample(body, grid) > 0.5
    shown = scan.normalised if coarse is None else preprocess.full_range(scan.image, scan.normalised, scan.modality)
    return resample.resample(shown, grid), inside


def _over(like: Grid, centre: np.ndarray, length: np.ndarray, spacing: np.ndarray) -> Grid:
    """A grid along the axes of `like` that covers at least `length` mm around `centre` (mm)."""
    shape = (np.ceil(length / spacing / MULTIPLE - 1e-6).astype(int) * MULTIPLE).clip(MULTIPLE)
    affine = np.eye(4)
    affine[:3, :3] = like.affine[:3, :3] / like.spacing * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    x, y, z = (int(size) for size in shape)
    return Grid((x, y, z), affine, like.path)


def _shared_voxels(fixed: Grid, moving: Grid, matrix: np.ndarray) -> np.ndarray | None:
    """Regular points of the fixed field of view that the moving one covers, in fixed voxels (n 3); None without any."""
    ticks = [np.linspace(-0.5, size - 0.5, resample.OVERLAP_POINTS * 2 + 1) for size in fixed.shape]
    points = np.stack(np.meshgrid(*ticks, indexing="ij"), axis=-1).reshape(-1, 3)
    to_moving = np.linalg.inv(moving.affine) @ matrix @ fixed.affine
    there = points @ to_moving[:3, :3].T + to_moving[:3, 3]
    covered = ((there >= -0.5) & (there <= np.asarray(moving.shape) - 0.5)).all(axis=1)
    return points[covered] if covered.any() else None
