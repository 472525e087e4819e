"""Benchmark jobs in JAX: networks, train steps, convolutions, and the peak performance of the device.

JAX is imported inside the functions, because the peak memory after a job's imports is reported separately.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from f3r_jax.benchmark.job import (
    GIB,
    LAM,
    LEARNING_RATE,
    MIB,
    Job,
    ReadyJob,
    SetUp,
    available_bytes,
    peak_mib,
    random_arrays,
    timed,
)

MIND = "mind_ssc"
LAMBDAS = (0.5, 1.5, 3.0)


def prepare(function: Any, arguments: tuple[Any, ...], *, imported_mib: float, feedback: bool = False) -> ReadyJob:
    """Compiles a jitted function. With `feedback`, its first result is the first argument of the next run.

    Raises:
      MemoryError: the compiled function needs more memory than is available.
    """
    import jax

    given = list(jax.device_put(arguments))
    compiled, cost = timed(lambda: function.lower(*given).compile())
    if jax.default_backend() == "cpu":
        check_fits(compiled.memory_analysis(), available_bytes())

    def run() -> None:
        results = jax.block_until_ready(compiled(*given))
        if feedback:
            given[0] = results[0]

    def device_peak_mib() -> float | None:
        stats = jax.devices()[0].memory_stats()
        return stats and stats["peak_bytes_in_use"] / MIB

    return ReadyJob(run, SetUp(imported_mib, device_name(), cost), device_peak_mib)


def check_fits(needs: Any, available: float) -> None:
    """Raises a MemoryError if there is too little memory; the system might otherwise kill another process."""
    needed = needs.temp_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
    if needed > available:
        raise MemoryError(f"needs {needed / GIB:.1f} GiB, {available / GIB:.1f} GiB are free")


def device_name() -> str:
    """Name of the device that JAX runs on."""
    import jax

    device = jax.devices()[0]
    return "cpu" if device.platform == "cpu" else device.device_kind


def network_of(job: Job) -> tuple[Any, dict[str, Any]]:
    """The network and random parameters, drawn with NumPy because initialising the network would need a compilation."""
    import jax

    from f3r_jax.models import initialise
    from f3r_jax.models.f3rnet import VARIANTS, F3RNet
    from f3r_jax.models.voxelmorph import DECODERS, VoxelMorph

    network: F3RNet | VoxelMorph
    if job.variant in VARIANTS:
        network = F3RNet(VARIANTS[job.variant], dtype=job.dtype, remat=job.remat)
    else:
        network = VoxelMorph(DECODERS[job.variant], dtype=job.dtype)
    generator, shapes = np.random.default_rng(0), jax.eval_shape(lambda: initialise(network, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: generator.normal(scale=0.05, size=leaf.shape).astype(np.float32), shapes)
    return network, {"params": params}


def with_parameter_count(prepared: ReadyJob, params: Any) -> ReadyJob:
    """Adds the number of parameters to a job."""
    import jax

    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return prepared._replace(set_up=dataclasses.replace(prepared.set_up, parameters=count))


def forward(job: Job) -> ReadyJob:
    """A forward pass of the network."""
    import jax

    import f3r_jax.models  # noqa: F401  its memory counts as imports

    imported = peak_mib()
    network, params = network_of(job)
    volumes = random_arrays([(1, *job.shape, 1)] * 2)
    prepared = prepare(jax.jit(network.apply), (params, *volumes), imported_mib=imported)
    return with_parameter_count(prepared, params)


def train(job: Job, *, lams: tuple[float, ...] = (LAM,)) -> ReadyJob:
    """A train step: network, warp, loss, gradient and Adam; for several lambdas one step trains all of them."""
    import jax
    import jax.numpy as jnp
    import optax

    from f3r_jax.ops.losses import Batch, Objective
    from f3r_jax.train.step import State, make_train_step

    imported = peak_mib()
    network, params = network_of(job)
    optimiser = optax.adam(LEARNING_RATE)
    lam, together = jnp.asarray(lams if len(lams) > 1 else lams[0], jnp.float32), len(lams) > 1
    state = State(jnp.zeros((), jnp.int32), params["params"], optimiser.init(params["params"]))
    if together:
        state = State(state.step, *jax.tree.map(lambda leaf: jnp.stack([leaf] * len(lams)), tuple(state[1:])))
    batch = Batch(*map(jnp.asarray, random_arrays([(1, *job.shape, 1)] * 2)))
    step = make_train_step(network, optimiser, Objective(mind=MIND), together=together)
    prepared = prepare(step, (state, batch, lam), imported_mib=imported, feedback=True)
    return with_parameter_count(prepared, params)


def sweep(job: Job) -> ReadyJob:
    """One train step for each of `LAMBDAS`, together (`who` is "jax") or one after another ("alone")."""
    if job.who == "jax":
        return train(job, lams=LAMBDAS)
    alone = train(job)

    def run() -> None:
        for _ in LAMBDAS:
            alone.run()

    return alone._replace(run=run)


def conv(job: Job) -> ReadyJob:
    """One convolution with its bias, or the gradient with respect to its input, kernel and bias."""
    import jax

    from f3r_jax.ops.conv import conv3d

    imported = peak_mib()
    channels = job.channels

    def convolve(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        if job.who == "jax":
            return conv3d(x, kernel, bias)
        layout = ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=layout) + bias

    def gradient(x: jax.Array, kernel: jax.Array, bias: jax.Array, cotangent: jax.Array) -> tuple:
        return jax.vjp(convolve, x, kernel, bias)[1](cotangent)

    volume = (1, *job.shape, channels)
    x, kernel, bias, cotangent = random_arrays([volume, (*job.kernel, channels, channels), (channels,), volume])
    if job.what == "conv":
        return prepare(jax.jit(convolve), (x, kernel, bias), imported_mib=imported)
    return prepare(jax.jit(gradient), (x, kernel, bias, cotangent), imported_mib=imported)


def device(_: Job) -> ReadyJob:
    """Does nothing; reports the name of the device."""
    return ReadyJob(lambda: None, SetUp(peak_mib(), device_name()), lambda: None)


def peaks(job: Job) -> ReadyJob:
    """Measures and reports the peak FLOP/s and bytes/s of the device."""
    from f3r_jax.benchmark import roofline

    ready, found = device(job), roofline.peaks(dtype=job.dtype)
    return ready._replace(set_up=dataclasses.replace(ready.set_up, peaks=found._asdict()))


PREPARE: dict[tuple[str, str], Callable[[Job], ReadyJob]] = {
    ("jax", "forward"): forward,
    ("jax", "train"): train,
    ("jax", "sweep"): sweep,
    ("alone", "sweep"): sweep,
    ("jax", "conv"): conv,
    ("jax", "conv_gradient"): conv,
    ("xla", "conv"): conv,
    ("xla", "conv_gradient"): conv,
    ("jax", "device"): device,
    ("jax", "peaks"): peaks,
}
