"""Runs one registration in its own process: `python -m f3r_jax.benchmark.registration_worker JOB`, where JOB is JSON.

A job has the keys `method` (a name of `OURS`, `NETWORKS` or `classical.BASELINES`), `folder` (which holds the pair) and
`checkpoint` (the folder of a training run, or null). The process writes the displacement and its cost into the folder.
It imports only what the method needs, so the peak memory is the method's. Imports are not timed.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from f3r_jax.benchmark.job import MIB, peak_mib, timed
from f3r_jax.common.arrays import VoxelField
from f3r_jax.common.malloc import keep_freed_memory
from f3r_jax.evaluate.classical import BASELINES, VolumePair

# Events that JAX reports while it compiles: tracing, lowering, and compilation or a cache read.
COMPILING = tuple(
    f"/jax/core/compile/{part}_duration" for part in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)
PAIR_FILE, FIELD_FILE, COST_FILE = "pair.npz", "displacement.npy", "cost.json"

Register = Callable[[VolumePair], VoxelField]


@dataclass(frozen=True)
class RegistrationCost:
    """The cost of a registration."""

    seconds: float
    cpu_seconds: float
    imported_mib: float  # peak memory of the process after its imports
    peak_mib: float
    device: str
    device_peak_mib: float | None  # of an accelerator's own memory
    compile_seconds: float | None = None  # of tracing and cache reads, with JAX

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict, without `compile_seconds` if it is None."""
        return {name: value for name, value in vars(self).items() if value is not None or name != "compile_seconds"}

    @property
    def peak(self) -> float:
        """Peak memory in MiB; with an accelerator, that of its own memory."""
        return self.device_peak_mib or self.peak_mib


def main(argument: str) -> None:
    """Registers the pair in the folder of the job."""
    job = json.loads(argument)
    folder, method = Path(job["folder"]), job["method"]
    with np.load(folder / PAIR_FILE) as stored:
        pair = VolumePair(**stored)
    if method in BASELINES:
        register, facts = BASELINES[method].prepare(), on_cpu
    else:
        register, facts = prepare_jax(method, job["checkpoint"])
    imported = peak_mib()
    field, clocks = timed(lambda: register(pair))
    cost = RegistrationCost(clocks.wall, clocks.cpu, imported, peak_mib(), **facts())
    np.save(folder / FIELD_FILE, field)
    (folder / COST_FILE).write_text(json.dumps(cost.to_json()))


def on_cpu() -> dict[str, Any]:
    """The last fields of the cost, for a method that uses no accelerator."""
    return {"device": "cpu", "device_peak_mib": None}


def prepare_jax(method: str, checkpoint: str | None) -> tuple[Register, Callable[[], dict[str, Any]]]:
    """(register, facts) for an f3r_jax method; call `facts` after the registration for its device and compile time."""
    import jax

    from f3r_jax.common.compilation_cache import keep_compiled_programs

    keep_freed_memory()  # this and the next call as in the entry points
    keep_compiled_programs()
    register = (OURS | NETWORKS)[method](checkpoint)
    device = jax.devices()[0]
    compiling: list[float] = []

    def listen(event: str, duration_secs: float, **_: object) -> None:
        if event in COMPILING:
            compiling.append(duration_secs)

    def facts() -> dict[str, Any]:
        stats = device.memory_stats()
        return {
            "device": "cpu" if device.platform == "cpu" else device.device_kind,
            "device_peak_mib": stats and stats["peak_bytes_in_use"] / MIB,  # memory of the accelerator
            "compile_seconds": sum(compiling),
        }

    jax.monitoring.register_event_duration_secs_listener(listen)
    return register, facts


def refinement(_: str | None = None, **changes: Any) -> Register:
    """Instance optimisation from zero, with the settings of `f3r_jax.register` and the given changes."""
    import dataclasses

    from f3r_jax.ops import instance_optimisation
    from f3r_jax.ops.shapes import as_volume

    settings = dataclasses.replace(instance_optimisation.DEFAULT, **changes)

    def register(pair: VolumePair) -> VoxelField:
        return np.asarray(
            instance_optimisation.refine(as_volume(pair.fixed), as_volume(pair.moving), settings=settings)
        )[0]

    return register


def network(checkpoint: str | None, *, refined: bool) -> Register:
    """A trained network, applied at its training spacing as in `f3r_jax.register`; optionally refined."""
    import jax.numpy as jnp

    from f3r_jax.ops import instance_optimisation
    from f3r_jax.ops.shapes import as_volume
    from f3r_jax.register import network_stage
    from f3r_jax.register.volumes import WorkingVolumes
    from f3r_jax.workdir import trained_network

    assert checkpoint is not None
    loaded = trained_network.load(Path(checkpoint))

    def register(pair: VolumePair) -> VoxelField:
        fixed, moving = scan_of(pair, "fixed"), scan_of(pair, "moving")
        volumes = WorkingVolumes(fixed, moving, fixed.image.grid, np.eye(4))
        field = network_stage.predict_displacement(loaded, fixed, moving, volumes)
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
    """One volume of the pair as a scan; the fixed volume is the MR, the moving one the CT."""
    from f3r_jax.data.nifti import Image
    from f3r_jax.register.scans import Scan

    image = Image(getattr(pair, which), np.diag([*pair.spacing, 1.0]), which)
    return Scan(image, image, {"fixed": "mr", "moving": "ct"}[which], image.grid)


Method = Callable[[str | None], Register]  # from the checkpoint, which only the networks use

OURS: dict[str, Method] = {
    "f3r_jax": refinement,
    "f3r_jax, not diffeomorphic": partial(refinement, diffeomorphic=False, lam=0.4),
}
NETWORKS: dict[str, Method] = {
    "network": partial(network, refined=False),
    "network + instance optimisation": partial(network, refined=True),
}

if __name__ == "__main__":
    main(sys.argv[1])
