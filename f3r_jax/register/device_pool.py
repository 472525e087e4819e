"""Registration of several pairs at once, one per device."""

import os
import queue
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait

import jax

from f3r_jax.common.errors import EXIT_INTERRUPTED
from f3r_jax.register.batch_summary import Row
from f3r_jax.register.pair_spec import PairSpec
from f3r_jax.workdir.trained_network import Network


def register_on_devices(
    tasks: Mapping[str, PairSpec],
    devices: Sequence[jax.Device],
    network: Network | None,
    register: Callable[[str, PairSpec, Network | None], Row],
    note: Callable[[str], None],
) -> Generator[Row]:
    """Yields a row as each pair finishes, one pair per device.

    With one device the work runs in this thread, so Ctrl-C stops it. With several, the first Ctrl-C waits for running
    pairs and keeps their results; the second exits at once.
    """
    free: queue.SimpleQueue[tuple[jax.Device, Network | None]] = queue.SimpleQueue()
    for device in devices:
        free.put((device, None if network is None else network.on(device)))

    def work(name: str) -> Row:
        device, own = free.get()
        try:
            with jax.default_device(device):
                return register(name, tasks[name], own)
        finally:
            free.put((device, own))

    if len(devices) == 1:
        yield from map(work, tasks)
        return
    pool = ThreadPoolExecutor(len(devices))
    futures = [pool.submit(work, name) for name in tasks]
    try:
        for done in as_completed(futures):
            yield done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        _wait_for([future for future in futures if not future.done()], note)


def _wait_for(futures: Sequence[Future], note: Callable[[str], None]) -> None:
    if not futures:
        return
    try:
        note(f"waiting for {len(futures)} running pairs; Ctrl-C again exits at once")
        wait(futures)
    except KeyboardInterrupt:
        os._exit(EXIT_INTERRUPTED)  # threads cannot be stopped; the next run deletes their temporary folders
