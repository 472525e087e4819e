"""Batches of a training: which cases a step sees, how they are loaded, and what is done to them on the device.

A batch depends on (seed, step) alone, so that a run that was killed and started again sees the batches that it would
have seen. Letters: x y z voxels.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from f3r_jax import devices
from f3r_jax.augment import augment, of_config
from f3r_jax.data.datasets import Dataset
from f3r_jax.losses import Batch, GroundTruth

Loaded = Any  # arrays of a batch as they are sent to the devices: a Batch, or label maps
Prepare = Callable[[Loaded, Array], tuple[Batch, GroundTruth | None]]


class Source(NamedTuple):
    """Where the training's pairs come from."""

    load: Callable[[Dataset, str], Loaded]  # one example, NumPy arrays
    example: Loaded  # its shapes and types
    prepare: Prepare  # within the step: from loaded examples and the step's number to what the network is given


def source_of(config: ConfigDict) -> Source:
    """The source that a config describes."""
    volume = jax.ShapeDtypeStruct((*config.data.shape, 1), jnp.float32)
    return Source(load_pair, Batch(volume, volume), partial(_augmented, config))


def load_pair(dataset: Dataset, name: str) -> Batch:
    """The volumes of a case, (x y z 1)."""
    case = dataset.load(name)
    return Batch(case.moving[..., None], case.fixed[..., None])


def _augmented(config: ConfigDict, batch: Batch, step: Array) -> tuple[Batch, None]:
    key = step_key(config.seed, step)
    spacing = tuple(config.data.spacing)
    return Batch(*augment(key, *batch, of_config(config.augment), spacing=spacing)), None


def step_key(seed: int, step: Array) -> Array:
    """The random key of a step; initialisation uses that of the seed itself."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step)


def batch_names(names: tuple[str, ...], *, seed: int, step: int, size: int) -> list[str]:
    """The cases of one step: each epoch goes through a new permutation of all of them."""
    first = step * size
    return [names[_order(seed, n // len(names), len(names))[n % len(names)]] for n in range(first, first + size)]


def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def load_batch(dataset: Dataset, source: Source, names: list[str], mesh: Mesh) -> Loaded:
    """Stacks the named examples and sends them to the devices; this process loads its share of them."""
    examples = [source.load(dataset, name) for name in devices.share(names)]
    return jax.tree.map(lambda *arrays: devices.divided(mesh, np.stack(arrays)), *examples)


def batches(
    dataset: Dataset, source: Source, config: ConfigDict, first: int, mesh: Mesh
) -> Iterator[tuple[list[str], Loaded]]:
    """(names, batch) of the steps from `first` on; the next batch is loaded while the current one is used."""

    def load(step: int) -> tuple[list[str], Loaded]:
        names = batch_names(dataset.split["train"], seed=config.seed, step=step, size=config.train.batch_size)
        return names, load_batch(dataset, source, names, mesh)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        ahead = pool.submit(load, first)
        for step in range(first, config.train.steps):
            batch = ahead.result()
            if step + 1 < config.train.steps:
                ahead = pool.submit(load, step + 1)
            yield batch
