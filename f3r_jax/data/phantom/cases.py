"""Phantom cases, generated on first use and stored on disk."""

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import replacing
from f3r_jax.data import nifti
from f3r_jax.data.cases import Case, in_order, normalised
from f3r_jax.data.phantom import generate
from f3r_jax.data.synthesis.labels import tissue_map

# Modules that determine the voxels
GENERATOR = ("anatomy", "appearance", "body", "generate", "held_out", "motion", "shapes")


def kept_tissue_map(index: int, folder: Path, config: ConfigDict, seed: int) -> np.ndarray:
    """The tissue map of one anatomy, read from the folder or generated."""

    def paint() -> dict[str, np.ndarray]:
        return {"tissues": tissue_map(seed, index, shape=tuple(config.shape), spacing=tuple(config.spacing))}

    return _kept(folder / f"anatomy_{index:04d}.npz", paint)["tissues"]


def phantom_folder(config: ConfigDict, *, seed: int) -> Path:
    """The folder of the cache, named after shape, spacing, seed and a hash of the generator's source and protocols."""
    source = b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in GENERATOR)
    source += repr((tuple(config.ct_phases), tuple(config.mr_sequences))).encode()
    shape = "x".join(str(size) for size in config.shape)
    spacing = "x".join(f"{length:g}" for length in config.spacing)
    return Path(config.root) / f"phantom_{shape}_{spacing}mm_seed{seed}_{hashlib.sha256(source).hexdigest()[:8]}"


def phantom_case(name: str, index: int, folder: Path, config: ConfigDict, *, seed: int) -> Case:
    """One case, read from the folder or generated."""
    path = folder / f"case_{index:04d}.npz"
    volumes = _kept(path, lambda: _generated(index, config, seed=seed))
    affine = np.diag([*map(float, config.spacing), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(config.shape) - 1) / 2)
    ct, mr = (
        normalised(nifti.Image(volumes[modality], affine, f"{path} ({modality})"), modality, config).data
        for modality in ("ct", "mr")
    )
    moving, fixed = in_order(ct, mr, config.direction)
    moving_labels, fixed_labels = in_order(volumes["ct_labels"], volumes["mr_labels"], config.direction)
    return Case(
        name=name,
        fixed=fixed,
        moving=moving,
        fixed_labels=fixed_labels,
        moving_labels=moving_labels,
        displacement=volumes[config.direction],
        spacing=np.array(config.spacing, np.float64),
        affine=affine,
        moving_affine=affine.copy(),
    )


def _generated(index: int, config: ConfigDict, *, seed: int) -> dict[str, np.ndarray]:
    protocols = {"ct_phases": tuple(config.ct_phases), "mr_sequences": tuple(config.mr_sequences)}
    case = generate.make_case(seed, index, shape=tuple(config.shape), spacing=tuple(config.spacing), **protocols)
    return dataclasses.asdict(case)


def _kept(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Reads the arrays of a file; generates it on first use, under a temporary name so that no partial file remains."""
    if not path.exists():
        arrays = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]  # no array is named allow_pickle
    try:
        with np.load(path) as stored:
            return dict(stored)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable phantom case ({error}); delete it to generate it again") from error
