"""The interactive viewer of a registration: NiiVue and the volumes that it shows, for the page `report.html`.

All volumes are on the working grid, or on a coarser one if that has more than `MOST_VOXELS` voxels. They are NIfTI
files of 8 bits, compressed and in base64. NiiVue is embedded in the same way, so that the page needs no other file and
no network. Letters: x y z voxels of that grid.
"""

import base64
import dataclasses
import importlib.resources
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt
from matplotlib.colors import to_hex

from f3r_jax.common.arrays import Intensities
from f3r_jax.data import nifti_images
from f3r_jax.data.grids import Grid, Image
from f3r_jax.data.resample import resample, resample_labels
from f3r_jax.data.resample import working_grid as grid_of
from f3r_jax.evaluate import metrics
from f3r_jax.evaluate.drawing import as_words
from f3r_jax.evaluate.grey_scale import grey_scale
from f3r_jax.evaluate.slices import organ_colour
from f3r_jax.register.shown import Shown

VERSION = "0.69.0"  # of NiiVue
LIBRARY, LICENCE = "niivue.umd.js.gz", "LICENSE"
MOST_VOXELS = 1_500_000  # per volume, so that a page has a few MB
ONE = 127  # the stored value of a Jacobian determinant of 1: 0 is 0 or less, 254 is 2 or more
HIGH = 99.5  # percentile of a map in mm that has the last colour
TITLES = {"fixed": "fixed scan", "warped": "warped scan", "moving": "moving scan after the affine step"}


@dataclasses.dataclass(frozen=True)
class Volume:
    """A volume of the viewer: `data * slope` is its value in `unit`."""

    name: str
    kind: str  # "scan" | "map" | "labels"
    title: str
    data: UInt[np.ndarray, "x y z"]
    slope: float = 1.0
    unit: str = ""
    colours: str = "gray"
    low: float = 0.0  # value of the first colour
    high: float = 255.0  # value of the last colour
    note: str = ""

    def facts(self) -> dict[str, Any]:
        """All but the voxels."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "data"}


@dataclasses.dataclass(frozen=True)
class Viewer:
    """What the page embeds.

    Attributes:
      settings: what the script of the page reads: titles and ranges of the volumes, colours of the organs.
      data: the volumes by name, as text.
      about: a sentence about the voxels.
    """

    settings: Mapping[str, Any]
    data: Mapping[str, str]
    about: str
    version: str = VERSION

    @property
    def niivue(self) -> str:
        """NiiVue's script, compressed, as text."""
        return base64.b64encode(packaged_file(LIBRARY)).decode()

    @property
    def licence(self) -> str:
        """The licences of NiiVue and of the packages that it contains."""
        return packaged_file(LICENCE).decode()


def make_viewer(shown: Shown) -> Viewer:
    """The viewer of the volumes that the figures show."""
    grid = _coarser(shown.grid)
    volumes = [*_scans(shown, grid), *_maps(shown, grid), *_labels(shown, grid)]
    size = " x ".join(f"{edge:.3g}" for edge in grid.spacing)
    about = f"Voxels of {size} mm, "
    about += "as on the working grid." if grid is shown.grid else "coarser than the working grid: the page stays small."
    return Viewer(
        settings={
            "volumes": [volume.facts() for volume in volumes],
            "organs": [
                {"name": as_words(name), "colours": _colours(number)}
                for number, name in enumerate(shown.organs if shown.labels else ())
            ],
            "start": _start(volumes, grid),
        },
        data={volume.name: _text(volume, grid) for volume in volumes},
        about=about,
    )


def _coarser(grid: Grid) -> Grid:
    """The grid itself, or one of at most `MOST_VOXELS` over the same field of view; the finest axes get coarser."""
    length, spacing = np.asarray(grid.shape) * grid.spacing, grid.spacing
    shape = np.asarray(grid.shape)
    while math.prod(shape.tolist()) > MOST_VOXELS:
        spacing = np.maximum(spacing, 1.02 * spacing.min())
        shape = np.maximum(np.floor(length / spacing + 1e-6), 1).astype(int)
    return grid if shape.tolist() == list(grid.shape) else grid_of(grid, shape=shape.tolist(), spacing=spacing)


def _on(grid: Grid, data: Float[np.ndarray, "_x _y _z"], shown: Shown) -> Intensities:
    """An array of the working grid on another grid."""
    return data if grid is shown.grid else resample(Image(data, shown.grid.affine), grid)


def _scans(shown: Shown, grid: Grid) -> Iterator[Volume]:
    of_moving = grey_scale(shown.moving)
    for name, scale in (("fixed", grey_scale(shown.fixed)), ("warped", of_moving), ("moving", of_moving)):
        levels = np.rint(255 * scale.levels(_on(grid, getattr(shown, name), shown)))
        yield Volume(name, "scan", TITLES[name], levels.astype(np.uint8))


def _maps(shown: Shown, grid: Grid) -> Iterator[Volume]:
    vectors = shown.displacement @ shown.grid.affine[:3, :3].T.astype(np.float32)
    in_mm = {"displacement": np.linalg.norm(vectors, axis=-1)}
    notes = {"displacement": "Length of the displacement, without the affine part."}
    if shown.spread is not None:
        in_mm["uncertainty"] = shown.spread
        notes["uncertainty"] = "Spread of the displacement over other settings and positions."
    for name, values in in_mm.items():
        values = _on(grid, values, shown)
        most = max(float(values.max()), 1e-3)
        data, high = np.rint(values * (255 / most)).astype(np.uint8), max(float(np.percentile(values, HIGH)), 1e-3)
        yield Volume(name, "map", name, data, most / 255, "mm", "length", high=high, note=notes[name])
    determinant = _on(grid, metrics.jacobian_determinant(shown.displacement) - 1, shown) + 1
    stored = np.where(determinant > 0, np.clip(np.rint(ONE * determinant), 1, 2 * ONE), 0).astype(np.uint8)
    note = "Above 1 the moving tissue is larger than the fixed, below 1 smaller; magenta: folds."
    yield Volume("jacobian", "map", "Jacobian determinant", stored, 1 / ONE, "", "volume", high=2.0, note=note)


def _labels(shown: Shown, grid: Grid) -> Iterator[Volume]:
    """Label maps whose values are the numbers of the organs, from 1."""
    for side, labels in shown.labels.items():
        numbers = np.zeros(labels.shape, np.min_scalar_type(len(shown.organs)))
        for number, values in enumerate(shown.organs.values(), 1):
            numbers[np.isin(labels, values)] = number
        if grid is not shown.grid:
            numbers = resample_labels(Image(numbers, shown.grid.affine), grid)
        yield Volume(f"{side}_labels", "labels", f"{side} labels", numbers)


def _colours(number: int) -> tuple[str, str]:
    """The colour of an organ in the fixed scan and in the other ones."""
    return to_hex(organ_colour(number, fixed=True)), to_hex(organ_colour(number, fixed=False))


def _start(volumes: Sequence[Volume], grid: Grid) -> list[int]:
    """The voxel of the crosshair at first: in the largest section of the largest fixed organ, or in the middle."""
    for volume in volumes:
        if volume.name == "fixed_labels" and volume.data.any():
            organ = volume.data == 1 + np.bincount(volume.data.ravel())[1:].argmax()
            z = int(organ.sum(axis=(0, 1)).argmax())
            x, y = np.rint(np.argwhere(organ[:, :, z]).mean(axis=0)).astype(int).tolist()
            return [x, y, z]
    return [size // 2 for size in grid.shape]


def _text(volume: Volume, grid: Grid) -> str:
    return base64.b64encode(nifti_images.compressed(volume.data, grid.affine, slope=volume.slope)).decode()


def packaged_file(name: str) -> bytes:
    """The bytes of a file of the package `niivue`."""
    return (importlib.resources.files("f3r_jax.register") / "niivue" / name).read_bytes()
