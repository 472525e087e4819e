"""Training on several devices and hosts: the batch is divided among the devices, everything else is on each of them.

Every device computes the gradient of its share of the batch. The shares are equal, so the mean over the devices is the
gradient of the batch. Across hosts, only process 0 reads checkpoints and writes files.
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

from f3r_jax.common import events
from f3r_jax.common.errors import EXIT_USER_ERROR, UserError

AXIS = "batch"
T = TypeVar("T")


def join_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the processes of one training. It must be called before any other use of JAX.

    Args:
      coordinator: host:port of process 0. None if JAX can get it from the launcher, such as SLURM or Open MPI.
      processes: the number of processes; None as above.
      process: the number of this process, from 0; None as above.

    Raises:
      UserError: the processes cannot be joined.
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
    """Shuts down the distributed run. Every process must call it; JAX must not be used afterwards."""
    jax.distributed.shutdown()


@contextlib.contextmanager
def exit_on_failure() -> Iterator[None]:
    """On an error, exits at once instead of waiting in the distributed shutdown.

    The other processes then fail too instead of waiting forever.
    """
    try:
        yield
    except UserError as error:
        events.error(str(error), status=EXIT_USER_ERROR)
        os._exit(EXIT_USER_ERROR)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def is_main() -> bool:
    """Whether this process writes files: it is the only one, or number 0."""
    return jax.process_index() == 0


def main_first(function: Callable[[], T]) -> T:
    """Calls `function` in process 0, and after that in the other processes. Returns each process's own result."""
    if is_main():
        result = function()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(getattr(function, "__name__", "main_first"))
    return result if is_main() else function()


def mesh_for(batch_size: int) -> Mesh:
    """The devices that share a batch: on each host, the largest number that divides its part of the batch evenly.

    Raises:
      UserError: the batch cannot be divided evenly among the hosts.
    """
    hosts = jax.process_count()
    if batch_size % hosts:
        raise UserError(f"train.batch_size is {batch_size}, expected a multiple of {hosts}, the number of processes")
    share = batch_size // hosts
    each = max(n for n in range(1, share + 1) if share % n == 0 and n <= jax.local_device_count())
    chosen = [[device for device in jax.devices() if device.process_index == host][:each] for host in range(hosts)]
    return Mesh(np.ravel(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def describe(mesh: Mesh, batch_size: int) -> str | None:
    """A line that reports the devices in use; None if there is only one device."""
    total = jax.device_count()
    if total == 1:
        return None
    idle = "" if mesh.size == total else "; the others stay idle, because the batch must be divided evenly"
    return f"training on {mesh.size} of {total} devices, train.batch_size is {batch_size}{idle}"


def data_parallel(mesh: Mesh, function: Callable[..., T]) -> Callable[..., T]:
    """Wraps `function(everywhere, batch, everywhere)`: the mean of its results for the devices' shares of the batch."""
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
        check_vma=False,  # `pmean` combines the results; with the check, gradients would be summed once more
    )


def first_example(mesh: Mesh | None, count: int) -> jax.Array | int:
    """The place in the batch of a device's first example, for use within `data_parallel` with `count` per device."""
    return 0 if mesh is None or mesh.size == 1 else lax.axis_index(AXIS) * count


def on_each_sharding(mesh: Mesh) -> NamedSharding | None:
    """The sharding of arrays that every device has whole; None if there is one device."""
    return None if mesh.size == 1 else NamedSharding(mesh, PartitionSpec())


def divided_sharding(mesh: Mesh) -> NamedSharding | None:
    """The sharding of a batch, whose first axis is divided among the devices; None if there is one device."""
    return None if mesh.size == 1 else NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(mesh: Mesh, tree: T) -> T:
    """A copy of the tree on every device of the mesh."""
    return tree if mesh.size == 1 else jax.device_put(tree, on_each_sharding(mesh))


def local_copy(tree: T) -> T:
    """The copy of the tree on this process's first device, for work on a single device."""
    one = jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
    # With several processes, Orbax treats an array on one device as a part of a larger array.
    return one if jax.process_count() == 1 else jax.device_get(one)


def local_names(names: Sequence[str]) -> Sequence[str]:
    """The names in a batch that this process loads."""
    each = len(names) // jax.process_count()
    return names[jax.process_index() * each :][:each]


def shard_batch(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """The batch, divided among the devices. `array` is this process's part of it."""
    if mesh.size == 1:
        return jax.device_put(array)
    return jax.make_array_from_process_local_data(divided_sharding(mesh), array)


def broadcast_from_main(tree: T) -> T:
    """The tree of process 0. In other processes, `tree` only gives structure, shapes and types."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)
