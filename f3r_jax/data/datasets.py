"""Cases ready for the network, from the phantom or from a folder of NIfTI pairs, and how they are split.

A case is a fixed and a moving volume on one grid, the working grid of `preprocess`, with intensities in [0, 1], and
what is known about them. `data.direction` says which of the two moves: the CT for "ct_to_mr", the MR for "mr_to_ct".

The phantom's cases are generated on first use into `data.root`, one file each, in a folder named after the settings and
the generator's source, so that neither another setting nor a change of the generator reads stale cases. NIfTI pairs are
described in `pairs`. A split that the data do not name is drawn by the seed.

A training on synthetic pairs reads tissue maps of anatomies instead of pairs (`synthesis`); they are painted on first
use and kept in the same way. Its validation and test cases are the phantom's.

Letters: x y z voxels of the working grid, n landmarks.
"""

import dataclasses
import hashlib
import os
import tempfile
import threading
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Integer
from ml_collections import ConfigDict

from f3r_jax.data.affine.fit import fit
from f3r_jax.data import nifti, pairs, preprocess
from f3r_jax.data.phantom import generate
from f3r_jax.data.phantom.appearance import CT_PHASES, MR_SEQUENCES
from f3r_jax.data.synthesis.labels import tissue_map
from f3r_jax.common.errors import UserError

CACHE_BYTES = 2 << 30  # holds the paper's 50 pairs (27 MB each) and leaves room for a train step on an 8 GB machine
MIN_TRAINING_CASES = 2  # with one there is nothing to generalise from, and a batch order to speak of
DIRECTIONS = ("ct_to_mr", "mr_to_ct")
SOURCES = ("phantom", "nifti", "synthetic")


@dataclasses.dataclass(frozen=True)
class Case:
    """A pair on the working grid. Arrays are read-only: the cache hands the same ones out again.

    `affine` takes a voxel of the grid to mm (RAS+) in the fixed scan's frame, `moving_affine` to mm in the moving
    scan's own; they differ by the initial matrix. So u(p) in voxels sends affine p to moving_affine (p + u(p)).
    """

    name: str
    fixed: Float32[np.ndarray, "x y z"]
    moving: Float32[np.ndarray, "x y z"]
    fixed_labels: Integer[np.ndarray, "x y z"] | None
    moving_labels: Integer[np.ndarray, "x y z"] | None
    displacement: Float32[np.ndarray, "x y z 3"] | None  # the truth, voxels, pull
    spacing: Float64[np.ndarray, "3"]  # mm
    affine: Float64[np.ndarray, "4 4"]
    moving_affine: Float64[np.ndarray, "4 4"]
    fixed_landmarks: Float64[np.ndarray, "n 3"] | None = None  # voxels of the grid, as are the moving ones
    moving_landmarks: Float64[np.ndarray, "n 3"] | None = None

    def arrays(self) -> list[np.ndarray]:
        """All arrays that the case holds."""
        return [value for value in vars(self).values() if isinstance(value, np.ndarray)]


class _Cache:
    """The cases used last, bounded by bytes; a case is made by one thread, and others that want it wait."""

    def __init__(self) -> None:
        self._cases: OrderedDict[str, Case] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._making: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def get(self, name: str, make: Callable[[], Case]) -> Case:
        with self._lock:
            making = self._making[name]
        with making:
            with self._lock:
                if name in self._cases:
                    self._cases.move_to_end(name)
                    return self._cases[name]
            case = make()
            for array in case.arrays():
                array.setflags(write=False)
            with self._lock:
                self._cases[name] = case
                self._bytes += _bytes(case)
                while self._bytes > CACHE_BYTES and len(self._cases) > 1:
                    self._bytes -= _bytes(self._cases.popitem(last=False)[1])
            return case


class Matrices:
    """Initial matrices by case, each made once: a case that the cache has dropped is not fitted again."""

    def __init__(self) -> None:
        self._matrices: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The case's matrix; other threads wait while one makes it."""
        with self._lock:
            if name not in self._matrices:
                self._matrices[name] = make()
            return self._matrices[name]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Names by split (always train, validation and test) and the cases behind them. Threads may share it."""

    split: dict[str, tuple[str, ...]]
    makers: dict[str, Callable[[], Case]]
    painters: dict[str, Callable[[], np.ndarray]] = dataclasses.field(default_factory=dict)  # of tissue maps
    _cache: _Cache = dataclasses.field(default_factory=_Cache, repr=False, compare=False)

    def load(self, name: str) -> Case:
        """The preprocessed case; UserError where its voxels are not fit for use."""
        return self._cache.get(name, self.makers[name])

    def tissue_map(self, name: str) -> Integer[np.ndarray, "x y z"]:
        """The tissue map of an anatomy that synthetic pairs are made from."""
        return self.painters[name]()

    def check(self, done: Callable[[], object] = lambda: None) -> None:
        """Loads every case once, so that a bad voxel shows before a run writes anything; the cache keeps the work.

        Several threads share the work: most of it is NumPy's and SciPy's, and a phantom is generated on first use.
        `done` is called after each case.
        """
        with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="cases") as pool:
            loading = [pool.submit(self.load, name) for name in self.makers]
            loading += [pool.submit(paint) for paint in self.painters.values()]
            try:
                for each in loading:
                    each.result()
                    done()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def open_dataset(data_config: ConfigDict, *, seed: int) -> Dataset:
    """The data set that `config.data` describes, settings and headers checked; UserError for a mistake in either."""
    _check_config(data_config)
    if data_config.source == "phantom":
        return _open_phantom(data_config, seed=seed)
    if data_config.source == "synthetic":
        return _open_synthetic(data_config, seed=seed)
    found = pairs.read_pairs(Path(data_config.root))
    if data_config.cases > len(found):
        raise UserError(f"{data_config.root}: data.cases is {data_config.cases}, but there are {len(found)} pairs")
    found = found[: data_config.cases or None]
    for pair in found:
        _check_overlap(pair, data_config)
    if found[0].split is None:
        split = _random_split([pair.name for pair in found], data_config, seed=seed, where=data_config.root)
    else:
        split = {key: tuple(pair.name for pair in found if pair.split == key) for key in pairs.SPLITS}
        _check_named_split(split, data_config)
    fitted = Matrices()
    return Dataset(
        split, {pair.name: (lambda pair=pair: load_pair(pair, data_config, fitted=fitted)) for pair in found}
    )


def organs_of(data_config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Label values by organ, in the order of the values: a config doesn't keep the order it was written in."""
    organs = {name: tuple(values) for name, values in data_config.organs.items()}  # lists after JSON
    return dict(sorted(organs.items(), key=lambda item: item[1]))


def load_pair(pair: pairs.Pair, data_config: ConfigDict, *, fitted: Matrices | None = None) -> Case:
    """Reads a pair and brings it onto the working grid, each image interpolated once; `fitted` keeps its matrix."""
    fitted = fitted or Matrices()
    moving, fixed = _in_order(pair.ct, pair.mr, data_config.direction)
    fixed_image, moving_image = nifti.read(fixed.image), nifti.read(moving.image)
    matrix = fitted.get(pair.name, lambda: _initial_matrix(fixed, fixed_image, moving, moving_image, data_config))
    grid = preprocess.working_grid(fixed_image.grid, shape=data_config.shape, spacing=data_config.spacing)
    moving_grid = dataclasses.replace(grid, affine=preprocess.moving_affine(grid, matrix))
    return Case(
        name=pair.name,
        fixed=_on_grid(fixed_image, fixed.modality, grid, data_config),
        moving=_on_grid(moving_image, moving.modality, moving_grid, data_config),
        fixed_labels=_labels(fixed, fixed_image, grid),
        moving_labels=_labels(moving, moving_image, moving_grid),
        displacement=None,
        spacing=grid.spacing,
        affine=grid.affine,
        moving_affine=moving_grid.affine,
        fixed_landmarks=_landmarks(fixed, grid),
        moving_landmarks=_landmarks(moving, moving_grid),
    )


def _initial_matrix(
    fixed: pairs.Scan, fixed_image: nifti.Image, moving: pairs.Scan, moving_image: nifti.Image, config: ConfigDict
) -> np.ndarray:
    """What takes mm of the fixed frame to mm of the moving one, by `data.initialisation`."""
    how = config.initialisation
    related = preprocess.has_overlap(fixed_image.grid, moving_image.grid)
    if how == "header" or (related and how != "body_centre"):
        initial = np.eye(4)
    else:
        shift = preprocess.body_translation(fixed_image, fixed.modality, moving_image, moving.modality)
        initial = preprocess.translation(shift)
    if how in ("header", "body_centre"):
        return initial
    scans = _normalised(fixed_image, fixed.modality, config), _normalised(moving_image, moving.modality, config)
    return fit(*scans, initial=initial, degrees=how, related=related).matrix


def _in_order(ct: object, mr: object, direction: str) -> tuple:
    """(moving, fixed) of what belongs to the CT and what to the MR."""
    return (ct, mr) if direction == "ct_to_mr" else (mr, ct)


def _normalised(image: nifti.Image, modality: str, config: ConfigDict) -> nifti.Image:
    return preprocess.normalise(image, modality, ct_window=config.ct_window, mr_percentiles=config.mr_percentiles)


def _on_grid(image: nifti.Image, modality: str, grid: nifti.Grid, config: ConfigDict) -> np.ndarray:
    sampled = preprocess.resample(_normalised(image, modality, config), grid)
    if sampled.min() == sampled.max():
        raise UserError(
            f"{image.path}: nothing of it shows on the working grid, {tuple(config.shape)} voxels of "
            f"{tuple(config.spacing)} mm about the fixed image's centre; expected a larger data.shape or data.spacing"
        )
    return sampled


def _labels(scan: pairs.Scan, image: nifti.Image, grid: nifti.Grid) -> np.ndarray | None:
    if scan.labels is None:
        return None
    labels = nifti.read_labels(scan.labels)
    nifti.check_same_grid(image, labels)
    return preprocess.resample_labels(labels, grid)


def _landmarks(scan: pairs.Scan, grid: nifti.Grid) -> np.ndarray | None:
    return preprocess.to_voxels(pairs.read_landmarks(scan.landmarks), grid.affine) if scan.landmarks else None


def _check_overlap(pair: pairs.Pair, config: ConfigDict) -> None:
    if config.initialisation != "header":
        return
    moving, fixed = (nifti.read_grid(scan.image) for scan in _in_order(pair.ct, pair.mr, config.direction))
    if not preprocess.has_overlap(fixed, moving):
        raise UserError(
            f"{moving.path}: does not overlap {fixed.path} in space by their headers; for scans in unrelated frames "
            'set data.initialisation to "body_centre", "rigid" or "affine"'
        )


def _open_phantom(config: ConfigDict, *, seed: int) -> Dataset:
    if config.initialisation != "header":
        raise UserError(
            f'data.initialisation is {config.initialisation}; the scans of a phantom share a frame: expected "header"'
        )
    names = [f"phantom_{index:04d}" for index in range(config.cases)]
    split = _random_split(names, config, seed=seed, where="phantom (data.cases)")
    folder = _phantom_folder(config, seed=seed)
    makers = {
        name: (lambda name=name, index=index: _phantom_case(name, index, folder, config, seed=seed))
        for index, name in enumerate(names)
    }
    return Dataset(split, makers)


def _open_synthetic(config: ConfigDict, *, seed: int) -> Dataset:
    """`data.cases` anatomies to train on, and phantom cases for validation and test."""
    if config.cases < MIN_TRAINING_CASES:
        raise UserError(
            f"data.cases is {config.cases}, expected the number of anatomies to train on, {MIN_TRAINING_CASES} or more"
        )
    held_out = config.copy_and_resolve_references()
    held_out.cases = config.validation_cases + config.test_cases + MIN_TRAINING_CASES
    phantoms = _open_phantom(held_out, seed=seed)
    folder = _phantom_folder(config, seed=seed)
    anatomies = {f"anatomy_{index:04d}": index for index in range(config.cases)}
    return Dataset(
        split=phantoms.split | {"train": tuple(anatomies)},
        makers={name: phantoms.makers[name] for split in ("validation", "test") for name in phantoms.split[split]},
        painters={name: cache(partial(_tissue_map, index, folder, config, seed)) for name, index in anatomies.items()},
    )


def _tissue_map(index: int, folder: Path, config: ConfigDict, seed: int) -> np.ndarray:
    def paint() -> dict[str, np.ndarray]:
        return {"tissues": tissue_map(seed, index, shape=tuple(config.shape), spacing=tuple(config.spacing))}

    return _kept(folder / f"anatomy_{index:04d}.npz", paint)["tissues"]


def _phantom_folder(config: ConfigDict, *, seed: int) -> Path:
    """The cache's folder: shape, spacing and seed to read, and a hash of the generator's source and the protocols."""
    source = b"".join(path.read_bytes() for path in sorted(Path(generate.__file__).parent.glob("phantom*.py")))
    source += repr((tuple(config.ct_phases), tuple(config.mr_sequences))).encode()
    shape = "x".join(str(size) for size in config.shape)
    spacing = "x".join(f"{length:g}" for length in config.spacing)
    return Path(config.root) / f"phantom_{shape}_{spacing}mm_seed{seed}_{hashlib.sha256(source).hexdigest()[:8]}"


def _phantom_case(name: str, index: int, folder: Path, config: ConfigDict, *, seed: int) -> Case:
    path = folder / f"case_{index:04d}.npz"
    volumes = _kept(path, lambda: _generated(index, config, seed=seed))
    affine = np.diag([*map(float, config.spacing), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(config.shape) - 1) / 2)
    scans = [
        _normalised(nifti.Image(volumes[modality], affine, f"{path} ({modality})"), modality, config).data
        for modality in ("ct", "mr")
    ]
    moving, fixed = _in_order(*scans, config.direction)
    moving_labels, fixed_labels = _in_order(volumes["ct_labels"], volumes["mr_labels"], config.direction)
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
    """The arrays of a file that is made on first use: under another name first, so that a kill leaves no half file."""
    if not path.exists():
        arrays = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
            temporary = Path(folder) / path.name
            np.savez_compressed(temporary, **arrays)
            os.replace(temporary, path)
    try:
        with np.load(path) as stored:
            return dict(stored)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not a readable phantom case ({error}); delete it and it is generated again"
        ) from error


def _random_split(names: list[str], config: ConfigDict, *, seed: int, where: str) -> dict[str, tuple[str, ...]]:
    """Validation and test cases of the configured numbers drawn by seed, the rest for training; file order within."""
    needed = config.validation_cases + config.test_cases + MIN_TRAINING_CASES
    if len(names) < needed:
        raise UserError(
            f"{where}: {len(names)} cases; {config.validation_cases} for validation, {config.test_cases} for the test "
            f"and at least {MIN_TRAINING_CASES} for training need {needed}"
        )
    order = np.random.default_rng([seed, len(names)]).permutation(len(names))
    test, validation, train = np.split(order, [config.test_cases, config.test_cases + config.validation_cases])
    drawn = {"train": train, "validation": validation, "test": test}
    return {key: tuple(names[index] for index in sorted(indices)) for key, indices in drawn.items()}


def _check_named_split(split: dict[str, tuple[str, ...]], config: ConfigDict) -> None:
    counts = ", ".join(f"{len(names)} {key}" for key, names in split.items())
    if len(split["train"]) < MIN_TRAINING_CASES:
        raise UserError(f"{config.root}: the split has {counts} cases; training needs at least {MIN_TRAINING_CASES}")
    if config.test_cases and not split["test"]:
        raise UserError(
            f"{config.root}: the split has {counts} cases; the test needs one (or set data.test_cases to 0)"
        )


def _check_config(config: ConfigDict) -> None:
    """UserError for a setting that no data could satisfy."""
    for key, allowed in (
        ("source", SOURCES),
        ("direction", DIRECTIONS),
        ("initialisation", preprocess.INITIALISATIONS),
    ):
        if config[key] not in allowed:
            raise UserError(f"data.{key} is {config[key]!r}; expected one of {', '.join(allowed)}")
    if config.source != "nifti":
        _check_protocols(config)
    shape, spacing = tuple(config.shape), tuple(config.spacing)
    if len(shape) != 3 or any(not isinstance(size, int) or size < 1 for size in shape):
        raise UserError(f"data.shape is {shape}; expected three whole numbers of voxels, each at least 1")
    if len(spacing) != 3 or not all(np.isfinite(length) and length > 0 for length in spacing):
        raise UserError(f"data.spacing is {spacing}; expected three positive lengths in mm")
    for key in ("cases", "validation_cases", "test_cases"):
        if not isinstance(config[key], int) or config[key] < 0:
            raise UserError(f"data.{key} is {config[key]!r}; expected a whole number, 0 or more")
    for key, low, high in (("ct_window", -np.inf, np.inf), ("mr_percentiles", 0, 100)):
        bounds = tuple(config[key])
        if len(bounds) != 2 or not low <= bounds[0] < bounds[1] <= high:
            raise UserError(
                f"data.{key} is {bounds}; expected a lower and a greater upper bound in {low:g} to {high:g}"
            )


def _check_protocols(config: ConfigDict) -> None:
    for key, known in (("ct_phases", CT_PHASES), ("mr_sequences", MR_SEQUENCES)):
        found = tuple(config[key])
        if not found or not set(found) <= set(known):
            raise UserError(f"data.{key} is {found}, expected some of {', '.join(known)}")


def _bytes(case: Case) -> int:
    return sum(array.nbytes for array in case.arrays())
