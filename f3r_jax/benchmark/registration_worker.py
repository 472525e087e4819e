"""One registration in a process of its own: `python -m f3r_jax.registration_job JOB`, where JOB is JSON.

A job: `method`, a name of OURS, of NETWORKS or of `classical.RIVALS`; `folder`, which holds the pair; `checkpoint`, the
folder of a training run or null. The process writes the displacement and what it cost into the folder. What a method
needs is imported before its clock starts, and nothing that only others need is imported at all: peak memory is its own.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from f3r_jax.benchmark.job import MIB, peak_mib, timed
from f3r_jax.common.arrays import VoxelField
from f3r_jax.common.malloc import keep_freed_memory
from f3r_jax.evaluate.classical import BASELINES, VolumePair

# What JAX reports while it turns Python into programs: tracing, lowering, and compiling or reading from the cache.
COMPILING = tuple(
    f"/jax/core/compile/{part}_duration" for part in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)
PAIR_FILE, FIELD_FILE, COST_FILE = "pair.npz", "displacement.npy", "cost.json"

Register = Callable[[VolumePair], VoxelField]


def main(argument: str) -> None:
    """Registers the pair of the folder."""
    job = json.loads(argument)
    folder, method = Path(job["folder"]), job["method"]
    with np.load(folder / PAIR_FILE) as stored:
        pair = VolumePair(**stored)
    if method in BASELINES:
        register, told = BASELINES[method].prepare(), lambda: {"device": "cpu", "device_peak_mib": None}
    else:
        register, told = prepare_jax(method, job["checkpoint"])
    imported = peak_mib()
    field, clocks = timed(lambda: register(pair))
    cost = {"seconds": clocks["wall"], "cpu_seconds": clocks["cpu"], "imported_mib": imported, "peak_mib": peak_mib()}
    np.save(folder / FIELD_FILE, field)
    (folder / COST_FILE).write_text(json.dumps(cost | told()))


def prepare_jax(method: str, checkpoint: str | None) -> tuple[Register, Callable[[], dict]]:
    """How to register with one of ours, and what else there is to tell of it afterwards."""
    import jax

    from f3r_jax.common.compilation_cache import keep_compiled_programs

    keep_freed_memory()  # both as the entry points do
    keep_compiled_programs()
    register = (OURS | NETWORKS)[method](checkpoint)
    device, compiling = jax.devices()[0], []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event in COMPILING:
            compiling.append(seconds)

    def told() -> dict:
        stats = device.memory_stats()
        return {
            "device": "cpu" if device.platform == "cpu" else device.device_kind,
            "device_peak_mib": stats and stats["peak_bytes_in_use"] / MIB,  # of an accelerator's own memory
            "compile_seconds": sum(compiling),
        }

    jax.monitoring.register_event_duration_secs_listener(listen)
    return register, told


def refinement(_: None = None, **changes: object) -> Register:
    """The refinement alone, from zero, with the settings of `f3r_jax.register` or changes of them."""
    import dataclasses

    from f3r_jax.ops import instance_optimisation
    from f3r_jax.ops.shapes import as_volume

    settings = dataclasses.replace(instance_optimisation.DEFAULT, **changes)

    def register(pair: VolumePair) -> VoxelField:
        return np.asarray(
            instance_optimisation.refine(as_volume(pair.fixed), as_volume(pair.moving), settings=settings)
        )[0]

    return register


def network(checkpoint: str, *, refined: bool) -> Register:
    """A trained network, at the spacing that it was trained at, as in `f3r_jax.register`; then refined if so wished."""
    import jax.numpy as jnp

    from f3r_jax.ops import instance_optimisation
    from f3r_jax.ops.shapes import as_volume
    from f3r_jax.register import pipeline
    from f3r_jax.workdir import trained_network

    loaded = trained_network.load(Path(checkpoint))

    def register(pair: VolumePair) -> VoxelField:
        fixed, moving = scan_of(pair, "fixed"), scan_of(pair, "moving")
        volumes = pipeline.WorkingVolumes(fixed, moving, fixed.image.grid, np.eye(4))
        field = pipeline.predict_displacement(loaded, fixed, moving, volumes)
        if not refined:
            return field
        start = jnp.asarray(field)[None]
        return np.asarray(
            instance_optimisation.refine(
                as_volume(pair.fixed), as_volume(pair.moving), start=start, settings=instance_optimisation.AFTER_NETWORK
            )
        )[0]

    return register


def scan_of(pair: VolumePair, which: str) -> Any:
    """One volume of the pair as a scan: the fixed one is the MR, the moving one the CT."""
    from f3r_jax.data.nifti import Image
    from f3r_jax.register.scans import Scan

    image = Image(getattr(pair, which), np.diag([*pair.spacing, 1.0]), which)
    return Scan(image, image, {"fixed": "mr", "moving": "ct"}[which], image.grid)


OURS = {
    "ours": refinement,
    "ours, not diffeomorphic": partial(refinement, diffeomorphic=False, lam=0.4),
}
NETWORKS = {
    "network": partial(network, refined=False),
    "network + refinement": partial(network, refined=True),
}

if __name__ == "__main__":
    main(sys.argv[1])
