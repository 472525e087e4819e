"""Data sets: cases ready for the network and their split, from the phantom or from a folder of NIfTI pairs.

A case is a fixed and a moving volume on the working grid (see `preprocess`) with intensities in [0, 1], and possibly
labels, landmarks and a ground truth. `data.direction` sets the moving scan: the CT for "ct_to_mr", the MR for
"mr_to_ct".

Phantom cases are generated on first use and stored in `data.root`, one file per case. The name of their folder contains
the settings and a hash of the generator's source, so that stale cases are never read. NIfTI pairs are described in
`pairs`. A split that the data do not define is drawn at random with the seed.

Training on synthetic pairs (`synthesis`) reads tissue maps of anatomies instead of pairs. They are generated on first
use and stored in the same way. Validation and test cases then come from the phantom.

Letters: x y z voxels of the working grid, n landmarks.
"""

import dataclasses
import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import Integer
from ml_collections import ConfigDict

from f3r_jax.common import memory
from f3r_jax.common.errors import UserError
from f3r_jax.data import pairs, preprocess
from f3r_jax.data.cases import DIRECTIONS, Case, Matrices, check_overlap, load_pair
from f3r_jax.data.nifti_geometry import check_axes
from f3r_jax.data.phantom import held_out
from f3r_jax.data.phantom.appearance import CT_PHASES, MR_SEQUENCES
from f3r_jax.data.phantom.cases import kept_tissue_map, phantom_case, phantom_folder

CACHE_BYTES = 2 << 30  # enough for the paper's 50 pairs (27 MB each) and a train step on a machine of 8 GB
MOST_CASES = 1_000_000
MIN_TRAINING_CASES = 2  # with a single case there is nothing to shuffle and nothing to generalise from
SOURCES = ("phantom", "nifti", "synthetic")


class _Cache:
    """Cache of the most recently used cases, limited in bytes.

    One thread loads a case; other threads that need it wait.
    """

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


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Names of cases by split (always train, validation and test) and the functions that load them. Thread-safe."""

    split: dict[str, tuple[str, ...]]
    makers: dict[str, Callable[[], Case]]
    painters: dict[str, Callable[[], np.ndarray]] = dataclasses.field(default_factory=dict)  # of tissue maps
    notes: tuple[str, ...] = ()  # what a user should know about the headers of the files
    _cache: _Cache = dataclasses.field(default_factory=_Cache, repr=False, compare=False)

    def load(self, name: str) -> Case:
        """Loads a preprocessed case; raises a UserError for invalid voxels."""
        return self._cache.get(name, self.makers[name])

    def tissue_map(self, name: str) -> Integer[np.ndarray, "x y z"]:
        """The tissue map of an anatomy, from which synthetic pairs are made."""
        return self.painters[name]()

    def check(self, done: Callable[[], object] = lambda: None) -> None:
        """Loads every case once, so that invalid data is reported before anything is written.

        Several threads share the work, most of which is done by NumPy and SciPy. Phantom cases are generated on first
        use. `done` is called after each case.
        """
        with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="cases") as pool:
            loading: list[Future] = [pool.submit(self.load, name) for name in self.makers]
            loading += [pool.submit(paint) for paint in self.painters.values()]
            try:
                for each in loading:
                    each.result()
                    done()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def open_dataset(data_config: ConfigDict, *, seed: int) -> Dataset:
    """Opens the data set of `config.data` and checks its settings and headers; raises a UserError for a mistake."""
    _check_config(data_config)
    if data_config.source == "phantom":
        return _open_phantom(data_config, seed=seed)
    if data_config.source == "synthetic":
        return _open_synthetic(data_config, seed=seed)
    found = pairs.read_pairs(Path(data_config.root), unoriented=data_config.unoriented)
    if data_config.cases > len(found):
        raise UserError(f"{data_config.root}: data.cases is {data_config.cases}, but there are {len(found)} pairs")
    found = found[: data_config.cases or None]
    for pair in found:
        check_overlap(pair, data_config)
    if found[0].split is None:
        split = _random_split([pair.name for pair in found], data_config, seed=seed, where=data_config.root)
    else:
        split = {key: tuple(pair.name for pair in found if pair.split == key) for key in pairs.SPLITS}
        _check_named_split(split, data_config)
    fitted = Matrices()
    makers: dict[str, Callable[[], Case]] = {
        pair.name: partial(load_pair, pair, data_config, fitted=fitted) for pair in found
    }
    return Dataset(split, makers, notes=pairs.notes_on(found, unoriented=data_config.unoriented))


def organs_of(data_config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Label values by organ, sorted by value, because a config does not keep the order of its keys."""
    organs = {name: tuple(values) for name, values in data_config.organs.items()}  # lists after JSON
    return dict(sorted(organs.items(), key=lambda item: item[1]))


def _open_phantom(config: ConfigDict, *, seed: int) -> Dataset:
    if config.initialisation != "header":
        raise UserError(
            f'data.initialisation is {config.initialisation}; the scans of a phantom share a frame, expected "header"'
        )
    names = [f"phantom_{index:04d}" for index in range(config.cases)]
    split = _random_split(names, config, seed=seed, where="phantom (data.cases)")
    folder = phantom_folder(config, seed=seed)
    makers: dict[str, Callable[[], Case]] = {
        name: partial(phantom_case, name, index, folder, config, seed=seed) for index, name in enumerate(names)
    }
    return Dataset(split, makers)


def _open_synthetic(config: ConfigDict, *, seed: int) -> Dataset:
    """`data.cases` anatomies to train on, and phantom cases for validation and test."""
    if config.cases < MIN_TRAINING_CASES:
        raise UserError(
            f"data.cases is {config.cases}, expected the number of anatomies to train on, {MIN_TRAINING_CASES} or more"
        )
    phantom_config = config.copy_and_resolve_references()
    phantom_config.cases = config.validation_cases + config.test_cases + MIN_TRAINING_CASES
    phantoms = _open_phantom(phantom_config, seed=seed)
    folder = phantom_folder(config, seed=seed)
    anatomies = {f"anatomy_{index:04d}": index for index in range(config.cases)}
    return Dataset(
        split=phantoms.split | {"train": tuple(anatomies)},
        makers={name: phantoms.makers[name] for split in ("validation", "test") for name in phantoms.split[split]},
        painters={
            name: cache(partial(kept_tissue_map, index, folder, config, seed)) for name, index in anatomies.items()
        },
    )


def _random_split(names: list[str], config: ConfigDict, *, seed: int, where: str) -> dict[str, tuple[str, ...]]:
    """Draws the configured numbers of validation and test cases with the seed; the rest is for training.

    Cases within a split keep the order of the files.
    """
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
    """Raises a UserError for a setting that is invalid for any data."""
    for key, allowed in (
        ("source", SOURCES),
        ("direction", DIRECTIONS),
        ("initialisation", preprocess.INITIALISATIONS),
    ):
        if config[key] not in allowed:
            raise UserError(f"data.{key} is {config[key]!r}; expected one of {', '.join(allowed)}")
    if config.unoriented:
        check_axes(config.unoriented, "data.unoriented")
    if config.source != "nifti":
        _check_protocols(config)
    shape, spacing = tuple(config.shape), tuple(config.spacing)
    if len(shape) != 3 or any(not isinstance(size, int) or size < 1 for size in shape):
        raise UserError(f"data.shape is {shape}; expected three whole numbers of voxels, each at least 1")
    memory.check_voxels(float(np.prod(np.array(shape, np.float64))), f"data.shape={','.join(map(str, shape))}")
    if len(spacing) != 3 or not all(np.isfinite(length) and length > 0 for length in spacing):
        raise UserError(f"data.spacing is {spacing}; expected three positive lengths in mm")
    for key in ("cases", "validation_cases", "test_cases"):
        if not isinstance(config[key], int) or not 0 <= config[key] <= MOST_CASES:
            raise UserError(f"data.{key} is {config[key]!r}; expected a whole number from 0 to {MOST_CASES}")
    for key, low, high in (("ct_window", -np.inf, np.inf), ("mr_percentiles", 0, 100)):
        bounds = tuple(config[key])
        if len(bounds) != 2 or not low <= bounds[0] < bounds[1] <= high:
            raise UserError(
                f"data.{key} is {bounds}; expected a lower and a greater upper bound in {low:g} to {high:g}"
            )


def _check_protocols(config: ConfigDict) -> None:
    for key, known in (
        ("ct_phases", (*CT_PHASES, *held_out.PHASES)),
        ("mr_sequences", (*MR_SEQUENCES, *held_out.SEQUENCES)),
    ):
        found = tuple(config[key])
        if not found or not set(found) <= set(known):
            raise UserError(f"data.{key} is {found}, expected some of {', '.join(known)}")


def _bytes(case: Case) -> int:
    return sum(array.nbytes for array in case.arrays())
