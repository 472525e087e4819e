"""One thing to measure, in a process of its own: `python -m f3r_jax.measurements JOB`, where JOB is JSON.

The process prepares what the job names and runs it once, then says in a line of JSON what that cost. For every line it
reads it runs once more and says the seconds; at the end of its input it says the peak memory. Several such processes
can so be timed in turn. JAX and PyTorch are imported where they are used: neither is to weigh on the other's memory.

A job: `who` ("jax", "xla": JAX with XLA's own convolution, "torch"), `what` ("forward", "train", "conv",
"conv_gradient"), `shape`, and for a network `variant`, for a convolution `kernel` and `channels`. Of `what` "sweep" are
"jax", a train step of `LAMBDAS` as one program, and "alone", their steps one after another.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from f3r_jax.memory import keep_freed_memory

LEARNING_RATE, LAM, MIND = 1e-5, 1.5, "mind_ssc"  # Section 3.1; speed hangs on none of them
LAMBDAS = (0.5, 1.5, 3.0)
MIB = 2**20


class Prepared(NamedTuple):
    """A job ready to run."""

    run: Callable[[], Any]  # returns when the device has finished
    imported_mib: float  # peak memory of the process after its imports
    device: str
    device_peak_mib: Callable[[], float | None]  # of an accelerator's own memory
    compile: dict[str, float] | None = None


def main(argument: str) -> None:
    """Serves the job until the end of standard input."""
    job = json.loads(argument)
    if job["who"] != "torch":
        keep_freed_memory()  # as the entry points do
    prepared = PREPARE[job["who"], job["what"]](job)
    prepared.run()
    say(imported_mib=prepared.imported_mib, device=prepared.device, compile=prepared.compile)
    for _ in sys.stdin:
        say(**timed(prepared.run)[1])
    say(peak_mib=peak_mib(), device_peak_mib=prepared.device_peak_mib())


def say(**values: object) -> None:
    """A line of JSON."""
    print(json.dumps(values), flush=True)


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What the function returns, and its wall-clock seconds and CPU seconds over all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def peak_mib() -> float:
    """Peak resident memory of this process in MiB."""
    # Linux hands ru_maxrss of the parent down to the child; the figure in /proc belongs to this program alone.
    if (status := Path("/proc/self/status")).exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / MIB
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)


def random_arrays(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Uniform on [0, 1), the same each time."""
    generator = np.random.default_rng(0)
    return [generator.random(shape, dtype=np.float32) for shape in shapes]


# JAX


def prepare_jax(function: Any, arguments: tuple, *, imported_mib: float, feedback: bool = False) -> Prepared:
    """Compiles a jitted function; with `feedback`, its first result replaces the first argument of the next run."""
    import jax

    arguments = list(jax.device_put(arguments))
    compiled, cost = timed(lambda: function.lower(*arguments).compile())

    def run() -> None:
        results = jax.block_until_ready(compiled(*arguments))
        if feedback:
            arguments[0] = results[0]

    device = jax.devices()[0]
    stats = device.memory_stats
    name = "cpu" if device.platform == "cpu" else device.device_kind
    return Prepared(run, imported_mib, name, lambda: stats() and stats()["peak_bytes_in_use"] / MIB, cost)


def jax_network(job: dict) -> tuple[Any, Any]:
    """The network and random parameters: initialising it would take a compilation of its own."""
    import jax

    from f3r_jax.models import initialise
    from f3r_jax.models.f3rnet import VARIANTS, F3RNet

    network, generator = F3RNet(VARIANTS[job["variant"]]), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: initialise(network, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: generator.normal(scale=0.05, size=leaf.shape).astype(np.float32), shapes)
    return network, {"params": params}


def jax_forward(job: dict) -> Prepared:
    """The network alone."""
    import jax

    import f3r_jax.models  # noqa: F401  counted among the imports

    imported = peak_mib()
    network, params = jax_network(job)
    volumes = random_arrays([(1, *job["shape"], 1)] * 2)
    return prepare_jax(jax.jit(network.apply), (params, *volumes), imported_mib=imported)


def jax_train(job: dict, *, lam: float | tuple[float, ...] = LAM) -> Prepared:
    """A step of the training: network, warp, loss, gradient and Adam; of several lambdas, as one program."""
    import jax
    import jax.numpy as jnp
    import optax

    from f3r_jax.train import Batch, State, make_train_step

    imported = peak_mib()
    network, params = jax_network(job)
    optimiser = optax.adam(LEARNING_RATE)
    state, lam = State(jnp.zeros((), jnp.int32), params["params"], optimiser.init(params["params"])), jnp.float32(lam)
    if lam.ndim:
        state = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(lam)), state)
    batch = Batch(*random_arrays([(1, *job["shape"], 1)] * 2))
    step = make_train_step(network, optimiser, mind=MIND, together=lam.ndim > 0)
    return prepare_jax(step, (state, batch, lam), imported_mib=imported, feedback=True)


def jax_sweep(job: dict) -> Prepared:
    """A step of each of the lambdas."""
    if job["who"] == "jax":
        return jax_train(job, lam=LAMBDAS)
    alone = jax_train(job)

    def run() -> None:
        for _ in LAMBDAS:
            alone.run()

    return alone._replace(run=run)


def jax_conv(job: dict) -> Prepared:
    """One convolution with its bias, or the gradient with respect to its input, kernel and bias."""
    import jax

    from f3r_jax.ops.conv import conv3d

    imported = peak_mib()
    channels = job["channels"]

    def convolve(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        if job["who"] == "jax":
            return conv3d(x, kernel, bias)
        layout = ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=layout) + bias

    def gradient(x: jax.Array, kernel: jax.Array, bias: jax.Array, cotangent: jax.Array) -> tuple:
        return jax.vjp(convolve, x, kernel, bias)[1](cotangent)

    volume = (1, *job["shape"], channels)
    x, kernel, bias, cotangent = random_arrays([volume, (*job["kernel"], channels, channels), (channels,), volume])
    if job["what"] == "conv":
        return prepare_jax(jax.jit(convolve), (x, kernel, bias), imported_mib=imported)
    return prepare_jax(jax.jit(gradient), (x, kernel, bias, cotangent), imported_mib=imported)


# PyTorch


def prepare_torch(run: Callable[[], Any], *, imported_mib: float) -> Prepared:
    """Waits for the device after each run."""
    import torch

    if not torch.cuda.is_available():
        return Prepared(run, imported_mib, "cpu", lambda: None)

    def synchronised() -> None:
        run()
        torch.cuda.synchronize()

    name = torch.cuda.get_device_name()
    return Prepared(synchronised, imported_mib, name, lambda: torch.cuda.max_memory_allocated() / MIB)


def torch_network(job: dict) -> tuple[Any, list]:
    """The network and two volumes on the device."""
    import torch

    from f3r_jax.torch_f3rnet import F3RNet

    device = "cuda" if torch.cuda.is_available() else "cpu"
    volumes = [torch.from_numpy(array).to(device) for array in random_arrays([(1, 1, *job["shape"])] * 2)]
    return F3RNet(job["variant"]).to(device), volumes


def torch_forward(job: dict) -> Prepared:
    """The network alone."""
    import torch

    imported = peak_mib()
    model, volumes = torch_network(job)
    return prepare_torch(torch.inference_mode()(lambda: model(*volumes)), imported_mib=imported)


def torch_train(job: dict) -> Prepared:
    """A step of the training."""
    from f3r_jax.torch_f3rnet import train_step

    imported = peak_mib()
    model, volumes = torch_network(job)
    step = train_step(model, lam=LAM, learning_rate=LEARNING_RATE)
    return prepare_torch(lambda: step(*volumes), imported_mib=imported)


def torch_conv(job: dict) -> Prepared:
    """As `jax_conv`, channels last."""
    import torch

    imported = peak_mib()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    channels, padding = job["channels"], [size // 2 for size in job["kernel"]]
    volume = (1, channels, *job["shape"])
    arrays = random_arrays([volume, (channels, channels, *job["kernel"]), (channels,), volume])
    x, kernel, bias, cotangent = (torch.from_numpy(array).to(device) for array in arrays)
    x, kernel, cotangent = (t.contiguous(memory_format=torch.channels_last_3d) for t in (x, kernel, cotangent))

    def convolve() -> torch.Tensor:
        return torch.nn.functional.conv3d(x, kernel, bias, padding=padding)

    if job["what"] == "conv":
        return prepare_torch(torch.inference_mode()(convolve), imported_mib=imported)
    inputs = [t.requires_grad_() for t in (x, kernel, bias)]
    result = convolve()
    run = lambda: torch.autograd.grad(result, inputs, cotangent, retain_graph=True)  # noqa: E731
    return prepare_torch(run, imported_mib=imported)


PREPARE = {
    ("jax", "forward"): jax_forward,
    ("jax", "train"): jax_train,
    ("jax", "sweep"): jax_sweep,
    ("alone", "sweep"): jax_sweep,
    ("jax", "conv"): jax_conv,
    ("jax", "conv_gradient"): jax_conv,
    ("xla", "conv"): jax_conv,
    ("xla", "conv_gradient"): jax_conv,
    ("torch", "forward"): torch_forward,
    ("torch", "train"): torch_train,
    ("torch", "conv"): torch_conv,
    ("torch", "conv_gradient"): torch_conv,
}

if __name__ == "__main__":
    main(sys.argv[1])
