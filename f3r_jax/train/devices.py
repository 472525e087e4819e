"""The devices and hosts that share a training: the batch is divided among them, everything else is on each.

Every device computes the gradient of its share of the batch; as the shares are equal, the mean over the devices is the
gradient of the batch. Across hosts, process 0 alone reads checkpoints and writes files.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from f3r_jax.common.errors import EXIT_USER_ERROR, UserError

AXIS = "batch"
T = TypeVar("T")


def join_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the processes of one training, before anything else is done with JAX.

    Args:
      coordinator: host:port of process 0; None where the cluster's launcher tells, as SLURM and Open MPI do.
      processes: how many there are.
      process: which one this is, from 0.

    Raises:
      UserError: they can't be joined.
    """
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--distributed: {reason}; expected a launcher that JAX knows, such as srun, or all of --coordinator, "
            "--processes and --process"
        ) from error


def leave_processes() -> None:
    """Takes leave of the other processes, which have to do the same; nothing is done with JAX after it."""
    jax.distributed.shutdown()


@contextlib.contextmanager
def exit_on_failure() -> Iterator[None]:
    """Ends a process that fails without taking leave of the others: they wait for it elsewhere, and end with it."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(EXIT_USER_ERROR)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def is_main() -> bool:
    """Whether this process writes files: the only one, or number 0."""
    return jax.process_index() == 0


def main_first(function: Callable[[], T]) -> T:
    """Calls `function` in process 0, and in the others once it is done there."""
    if is_main():
        result = function()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(getattr(function, "__name__", "main_first"))
    return result if is_main() else function()


def mesh_for(batch_size: int) -> Mesh:
    """The devices that share a batch: as many on each host as divide its part of the batch evenly.

    Raises:
      UserError: the batch can't be divided among the hosts.
    """
    hosts = jax.process_count()
    if batch_size % hosts:
        raise UserError(f"train.batch_size is {batch_size}, expected a multiple of {hosts}, the number of processes")
    share = batch_size // hosts
    each = max(n for n in range(1, share + 1) if share % n == 0 and n <= jax.local_device_count())
    chosen = [[device for device in jax.devices() if device.process_index == host][:each] for host in range(hosts)]
    return Mesh(np.ravel(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def describe(mesh: Mesh, batch_size: int) -> str | None:
    """A line that says who shares the batch; None for one device of one."""
    total = jax.device_count()
    if total == 1:
        return None
    idle = "" if mesh.size == total else "; the others stay idle, as a batch is divided evenly"
    return f"training on {mesh.size} of {total} devices, train.batch_size is {batch_size}{idle}"


def data_parallel(mesh: Mesh, function: Callable[..., T]) -> Callable[..., T]:
    """`function(everywhere, batch, everywhere)` of each device's share of the batch, its results' mean."""
    if mesh.size == 1:
        return function

    def of_share(*arguments: object) -> T:
        return lax.pmean(function(*arguments), AXIS)

    everywhere = PartitionSpec()
    return jax.shard_map(
        of_share,
        mesh=mesh,
        in_specs=(everywhere, PartitionSpec(AXIS), everywhere),
        out_specs=everywhere,
        check_vma=False,  # pmean says what varies; a checked gradient would be summed once more
    )


def first_example(mesh: Mesh | None, count: int) -> jax.Array | int:
    """The place in the batch of the first of a device's `count` examples, within a function of `data_parallel`."""
    return 0 if mesh is None or mesh.size == 1 else lax.axis_index(AXIS) * count


def on_each_sharding(mesh: Mesh) -> NamedSharding | None:
    """How arrays lie that every device has whole; None where there is one device."""
    return None if mesh.size == 1 else NamedSharding(mesh, PartitionSpec())


def divided_sharding(mesh: Mesh) -> NamedSharding | None:
    """How a batch lies, each device with its share of the first axis; None where there is one device."""
    return None if mesh.size == 1 else NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(mesh: Mesh, tree: T) -> T:
    """A copy of the tree on every device of the mesh."""
    return tree if mesh.size == 1 else jax.device_put(tree, on_each_sharding(mesh))


def local_copy(tree: T) -> T:
    """The tree as it lies on this process's first device, for what is done on one device alone."""
    one = jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
    # Orbax takes an array of one device for a part of a larger one when there are several processes.
    return one if jax.process_count() == 1 else jax.device_get(one)


def local_names(names: Sequence[str]) -> Sequence[str]:
    """Of the names of a batch those that this process loads."""
    each = len(names) // jax.process_count()
    return names[jax.process_index() * each :][:each]


def shard_batch(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """The batch of which this process holds `array`, each device with its share."""
    if mesh.size == 1:
        return jax.device_put(array)
    return jax.make_array_from_process_local_data(divided_sharding(mesh), array)


def broadcast_from_main(tree: T) -> T:
    """The tree as process 0 has it; the others' own gives structure, shapes and types."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)
