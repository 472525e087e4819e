"""Benchmark jobs in PyTorch: the same network, the network of the package `voxelmorph`, and convolutions.

PyTorch uses its fastest settings: channels last on all devices. On a GPU these are also torch.compile, cuDNN's search
for the fastest algorithms, TF32 (JAX's default there) and, if the JAX network computes in bfloat16, autocast.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from f3r_jax.benchmark.job import LAM, LEARNING_RATE, MIB, ReadyJob, no_memory, peak_mib, random_arrays

CHANNELS_LAST = torch.channels_last_3d


class Autocast(nn.Module):
    """A network with bfloat16 features and float32 output, as in f3r_jax."""

    def __init__(self, network: nn.Module, device: str):
        super().__init__()
        self.network = network
        self.device = device

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Maps (moving, fixed) to the displacement, as the network does."""
        with torch.autocast(self.device, dtype=torch.bfloat16):
            displacement = self.network(moving, fixed)
        return displacement.float()


def best_settings() -> str:
    """Applies the settings described above; returns the device."""
    if not torch.cuda.is_available():
        return "cpu"
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    return "cuda"


def prepare(
    function: Callable[..., Any], inputs: list[Tensor], *, imported_mib: float, compiled: bool, inference: bool = False
) -> ReadyJob:
    """A job that calls the function with the inputs and waits for the device; `compiled` only matters on a GPU."""
    device = inputs[0].device.type

    def runner(function: Callable[..., Any]) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode(inference):
                function(*inputs)
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    if device == "cpu":
        return ReadyJob(runner(function), imported_mib, "cpu", lambda: None)
    run, facts = runner(function), {}
    if compiled:
        run, facts = first_that_runs(runner(torch.compile(function)), run)
    run()
    torch.cuda.reset_peak_memory_stats()  # later runs do not need the memory of the search for algorithms
    peak = lambda: torch.cuda.max_memory_allocated() / MIB  # noqa: E731
    return ReadyJob(run, imported_mib, torch.cuda.get_device_name(), peak, facts=facts)


def first_that_runs(compiled: Callable[[], None], plain: Callable[[], None]) -> tuple[Callable[[], None], dict]:
    """(compiled, {}), or if that raises (plain, {"note": reason})."""
    try:
        compiled()
    except Exception as error:  # torch.compile has no common error type
        if no_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [""])[0]
        return plain, {"note": f"torch.compile failed ({type(error).__name__}: {reason}), so it ran without it"}
    return compiled, {}


def network_of(job: dict) -> tuple[nn.Module, Callable]:
    """(network on the device, function that makes its train step)."""
    device = best_settings()
    if job["who"] == "voxelmorph":
        from f3r_jax.benchmark import torch_voxelmorph as baseline

        network = baseline.network(tuple(job["shape"]))
    else:
        from f3r_jax.benchmark import torch_f3rnet as baseline

        network = baseline.F3RNet(job["variant"])
    network = network.to(device)
    if device == "cuda":
        network = network.to(memory_format=CHANNELS_LAST)
    return Autocast(network, device) if job.get("dtype") == "bfloat16" else network, baseline.train_step


def volumes_of(job: dict) -> list[Tensor]:
    """The moving and the fixed volume, on the device."""
    return [torch.from_numpy(array).to(best_settings()) for array in random_arrays([(1, 1, *job["shape"])] * 2)]


def with_parameter_count(prepared: ReadyJob, network: nn.Module) -> ReadyJob:
    """Adds the number of parameters to the facts of a job."""
    count = sum(parameter.numel() for parameter in network.parameters())
    return prepared._replace(facts={**prepared.facts, "parameters": count})


def forward(job: dict) -> ReadyJob:
    """A forward pass of the network."""
    network, _ = network_of(job)
    imported = peak_mib()  # VoxelMorph is imported as its network is built
    return with_parameter_count(
        prepare(network, volumes_of(job), imported_mib=imported, compiled=True, inference=True), network
    )


def train(job: dict) -> ReadyJob:
    """A train step."""
    network, train_step = network_of(job)
    imported = peak_mib()
    step = train_step(network, lam=LAM, learning_rate=LEARNING_RATE)
    return with_parameter_count(prepare(step, volumes_of(job), imported_mib=imported, compiled=True), network)


def conv(job: dict) -> ReadyJob:
    """One convolution with its bias, or its gradient; not compiled, as it is a single kernel."""
    imported = peak_mib()
    device = best_settings()
    channels, padding = job["channels"], [size // 2 for size in job["kernel"]]
    volume = (1, channels, *job["shape"])
    arrays = random_arrays([volume, (channels, channels, *job["kernel"]), (channels,), volume])
    x, kernel, bias, cotangent = (torch.from_numpy(array).to(device) for array in arrays)
    x, kernel, cotangent = (t.contiguous(memory_format=CHANNELS_LAST) for t in (x, kernel, cotangent))

    def convolve(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.conv3d(x, kernel, bias, padding=padding)

    inputs = [x, kernel, bias]
    if job["what"] == "conv":
        return prepare(convolve, inputs, imported_mib=imported, compiled=False, inference=True)
    result = convolve(*(t.requires_grad_() for t in inputs))

    def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(result, inputs, cotangent, retain_graph=True)

    return prepare(gradient, inputs, imported_mib=imported, compiled=False)


PREPARE = {
    ("torch", "forward"): forward,
    ("torch", "train"): train,
    ("torch", "conv"): conv,
    ("torch", "conv_gradient"): conv,
    ("voxelmorph", "forward"): forward,
    ("voxelmorph", "train"): train,
}
