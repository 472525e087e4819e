"""The Python interface: `f3r_jax.register(fixed, moving)` and `f3r_jax.load(folder)`.

A registration writes the files of the command, to a folder of the caller or to a temporary one, and the result reads
them. So a result that was loaded behaves like a new one. Letters: x y z voxels of the fixed scan, n points.
"""

import dataclasses
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from f3r_jax.common import result_folder
from f3r_jax.common.arrays import Matrix, WorldField
from f3r_jax.common.errors import UserError
from f3r_jax.config import CT_WINDOW
from f3r_jax.data import chains, itk_affine, nifti, nifti_images, points, sampling, series, volumes
from f3r_jax.data.grids import Grid
from f3r_jax.register import image_kinds, output_files, pair_spec, pipeline, transform_files
from f3r_jax.register.image_kinds import Make
from f3r_jax.register.network_choice import with_network
from f3r_jax.register.pair_spec import SIDES, Files, PairSpec

IMAGES = ("mask", "labels")  # of a scan
DEFAULTS = {"organs": None, "ct_window": CT_WINDOW, "learn2reg": False}
COMMON = ("unoriented", "check_modality")  # options for both scans
Points = Float[np.ndarray, "n 3"]


def register(
    fixed: Any,
    moving: Any,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> "Result":
    """Registers a moving scan to a fixed scan; `f3r_jax.register` documents the arguments."""
    inputs = tempfile.TemporaryDirectory(prefix="f3r_jax-")
    with inputs:
        task = _task({"fixed": fixed, "moving": moving}, options, Path(inputs.name))
        network = pair_spec.network_of(task.settings)
        pair_spec.check_pair(task, network)
        temporary = tempfile.TemporaryDirectory(prefix="f3r_jax-") if output is None else None
        folder = Path(temporary.name if temporary else str(output))
        with result_folder.reserved(folder, output_files.FILES, size=pair_spec.least_size(task)):
            output_files.check_folder(folder, overwrite=overwrite)
            pair_spec.register_pair(task, folder, network=network, command="f3r_jax.register", note=progress)
    return Result(folder, image_kinds.make_like(moving, "moving"), temporary)


def load(folder: str | Path) -> "Result":
    """The result in a folder that a registration wrote; raises a UserError if it holds none that is complete."""
    transform_files.field_file(Path(folder), inverse=False)
    return Result(Path(folder), nifti_images.to_memory)


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a registration. Arrays are read from its folder when they are asked for.

    Attributes:
      folder: with the files of the result. It is temporary if the registration was given no `output`.
      make: makes images of the moving scan's kind.
    """

    folder: Path
    make: Make = dataclasses.field(repr=False)
    temporary: tempfile.TemporaryDirectory | None = dataclasses.field(default=None, repr=False)

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`: scores, similarity, seconds, settings."""
        return json.loads((self.folder / output_files.SUMMARY).read_text(encoding="utf-8"))

    @property
    def verdict(self) -> Any:
        """The verdict in `summary.json` on whether the registration worked; None where there is none."""
        return self.summary.get("verdict")

    @property
    def warped(self) -> Any:
        """The moving scan on the fixed scan's grid, in the moving scan's kind; for a path an image of NiBabel."""
        stored = volumes.open_volume(self.folder / "warped.nii.gz")
        return self.make(stored.load(np.float32), stored.affine)

    @property
    def affine(self) -> Matrix:
        """The affine part: 4 x 4, from mm of the fixed frame to mm of the moving frame, RAS+."""
        return itk_affine.read_matrix(self.folder / "affine.txt")

    @property
    def displacement(self) -> WorldField:
        """The whole transform: (x y z 3) in mm, RAS+, at the voxels of `grid`; x + displacement(x) is in moving."""
        return nifti.read_field(transform_files.field_file(self.folder, inverse=False))[0]

    @property
    def grid(self) -> Grid:
        """The grid of the fixed scan with its axes as stored; its affine maps voxels to mm, RAS+."""
        return volumes.open_volume(self.folder / "warped.nii.gz").grid

    def apply(
        self,
        image: Any,
        *,
        labels: bool = False,
        interpolation: str | None = None,
        outside: float | int | None = None,
        inverse: bool = False,
        reference: Any = None,
    ) -> Any:
        """Warps another image or series from the moving to the fixed scan.

        Args:
          image: a path, or an image of any kind, (x y z) or with further axes.
          labels: whether it is a label map.
          interpolation: "linear" (default), "nearest" (default for labels), "bspline" or "label".
          outside: the value outside the image; by default its lowest value, 0 for labels and vectors.
          inverse: warps from the fixed to the moving scan.
          reference: an image that defines the output grid.

        Returns:
          An image of the same kind and type of voxels; for a path an image of NiBabel.

        Raises:
          UserError: an image that cannot be read, or an interpolation that does not fit.
        """
        allowed = sampling.LABELS if labels else sampling.IMAGE
        interpolation = interpolation or ("nearest" if labels else "linear")
        if interpolation not in allowed:
            raise UserError(f"interpolation is {interpolation!r}, expected one of {', '.join(allowed)}")
        stored = image_kinds.open_image(image, "image")
        chain = transform_files.read_chain([str(self.folder)], inverse=inverse)
        target = chains.target_grid(chain)
        if reference is not None:
            target = image_kinds.open_image(reference, "reference").grid
        outside = None if outside is None else float(outside)
        whole, affine = series.warped(
            stored, chain, target, interpolation=interpolation, outside=outside, labels=labels
        )
        return image_kinds.make_like(image, "image")(whole, affine)

    def map_points(self, positions: Points, *, inverse: bool = False) -> Points:
        """Maps points (n 3) in mm, RAS+, from the moving to the fixed scan; with `inverse` the other way."""
        return transform_files.carry_points([str(self.folder)], np.asarray(positions, np.float64), inverse=inverse)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Copies the files of the result to a folder, which it returns; `load` reads them.

        Raises:
          UserError: the folder cannot be written, or holds another result and `overwrite` is not set.
        """
        target = Path(folder)
        with result_folder.reserved(target, output_files.FILES):
            output_files.check_folder(target, overwrite=overwrite)
            with result_folder.staged(target, output_files.FILES) as staged:
                for name in output_files.FILES:
                    if (self.folder / name).exists():
                        shutil.copy2(self.folder / name, staged / name)
        return target


def _task(scans: Mapping[str, Any], options: dict[str, Any], folder: Path) -> PairSpec:
    """The pair as the command has it; images in memory are written to the folder."""
    of_files, of_settings, of_pair = (
        {field.name for field in dataclasses.fields(kind)} for kind in (Files, pipeline.Settings, PairSpec)
    )
    known = {f"{side}_{name}" for side in SIDES for name in of_files - {"path", *COMMON}} | set(COMMON)
    known |= of_settings | of_pair - {*SIDES, "settings"}
    if unknown := sorted(options.keys() - known):
        raise TypeError(
            f"register() got the unknown option {unknown[0]!r}, expected some of {', '.join(sorted(known))}"
        )
    sides: dict[str, Any] = {}
    for side, scan in scans.items():
        given = {name: options[f"{side}_{name}"] for name in of_files if options.get(f"{side}_{name}") is not None}
        given |= {name: options[name] for name in COMMON if name in options}
        for name in set(IMAGES) & given.keys():
            given[name] = image_kinds.file_of(given[name], folder, f"{side}_{name}")
        if isinstance(landmarks := given.get("landmarks"), np.ndarray):
            given["landmarks"] = folder / f"{side}_landmarks.csv"
            points.write_points(given["landmarks"], landmarks)
        given |= {name: str(value) for name, value in given.items() if isinstance(value, Path)}
        sides[side] = Files(image_kinds.file_of(scan, folder, side), **given)
    given = {name: value for name, value in options.items() if name in of_settings - {"checkpoint"}}
    settings = with_network(pipeline.Settings(**given), options.get("checkpoint"), tuple(sides.values()))
    rest = {name: value for name, value in options.items() if name in of_pair}
    return PairSpec(**sides, settings=settings, **(DEFAULTS | rest))
