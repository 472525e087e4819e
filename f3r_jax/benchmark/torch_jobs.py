"""Benchmark jobs in PyTorch: the same network, the network of the package `voxelmorph`, and convolutions.

PyTorch uses its fastest settings: channels last on all devices. On a GPU these are also torch.compile, cuDNN's search
for the fastest algorithms, TF32 (JAX's default there) and, if the JAX network computes in bfloat16, autocast.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from f3r_jax.benchmark.job import LAM, LEARNING_RATE, MIB, Job, ReadyJob, SetUp, no_memory, peak_mib, random_arrays
from f3r_jax.benchmark.torch_f3rnet import F3RNet, train_step

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
        return ReadyJob(runner(function), SetUp(imported_mib, "cpu"), lambda: None)
    run, note = runner(function), None
    if compiled:
        run, note = first_that_runs(runner(torch.compile(function)), run)
    run()
    torch.cuda.reset_peak_memory_stats()  # later runs do not need the memory of the search for algorithms
    set_up = SetUp(imported_mib, torch.cuda.get_device_name(), note=note)
    return ReadyJob(run, set_up, lambda: torch.cuda.max_memory_allocated() / MIB)


def first_that_runs(compiled: Callable[[], None], plain: Callable[[], None]) -> tuple[Callable[[], None], str | None]:
    """(compiled, None), or if that raises (plain, reason)."""
    try:
        compiled()
    except Exception as error:  # torch.compile has no common error type
        if no_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [""])[0]
        return plain, f"torch.compile failed ({type(error).__name__}: {reason}), so it ran without it"
    return compiled, None


def network_of(job: Job) -> nn.Module:
    """The network, on the device."""
    device = best_settings()
    if job.who == "voxelmorph":
        from f3r_jax.benchmark import torch_voxelmorph

        network = torch_voxelmorph.network(job.shape).to(device)
    else:
        network = F3RNet(job.variant).to(device)
    if device == "cuda":
        network = network.to(memory_format=CHANNELS_LAST)  # type: ignore[call-overload]  # PyTorch's stubs lack it
    return Autocast(network, device) if job.dtype == "bfloat16" else network


def volumes_of(job: Job) -> list[Tensor]:
    """The moving and the fixed volume, on the device."""
    return [torch.from_numpy(array).to(best_settings()) for array in random_arrays([(1, 1, *job.shape)] * 2)]


def with_parameter_count(prepared: ReadyJob, network: nn.Module) -> ReadyJob:
    """Adds the number of parameters to a job."""
    count = sum(parameter.numel() for parameter in network.parameters())
    return prepared._replace(set_up=dataclasses.replace(prepared.set_up, parameters=count))


def forward(job: Job) -> ReadyJob:
    """A forward pass of the network."""
    network = network_of(job)
    imported = peak_mib()  # VoxelMorph is imported as its network is built
    return with_parameter_count(
        prepare(network, volumes_of(job), imported_mib=imported, compiled=True, inference=True), network
    )


def train(job: Job) -> ReadyJob:
    """A train step."""
    network = network_of(job)
    imported = peak_mib()
    step = train_step(network, lam=LAM, learning_rate=LEARNING_RATE)
    return with_parameter_count(prepare(step, volumes_of(job), imported_mib=imported, compiled=True), network)


def conv(job: Job) -> ReadyJob:
    """One convolution with its bias, or its gradient; not compiled, as it is a single kernel."""
    imported = peak_mib()
    device = best_settings()
    channels, padding = job.channels, [size // 2 for size in job.kernel]
    volume = (1, channels, *job.shape)
    arrays = random_arrays([volume, (channels, channels, *job.kernel), (channels,), volume])
    x, kernel, bias, cotangent = (torch.from_numpy(array).to(device) for array in arrays)
    x, kernel, cotangent = (t.contiguous(memory_format=CHANNELS_LAST) for t in (x, kernel, cotangent))

    def convolve(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.conv3d(x, kernel, bias, padding=padding)

    inputs = [x, kernel, bias]
    if job.what == "conv":
        return prepare(convolve, inputs, imported_mib=imported, compiled=False, inference=True)
    result = convolve(*(t.requires_grad_() for t in inputs))

    def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(result, inputs, cotangent, retain_graph=True)

    return prepare(gradient, inputs, imported_mib=imported, compiled=False)


PREPARE: dict[tuple[str, str], Callable[[Job], ReadyJob]] = {
    ("torch", "forward"): forward,
    ("torch", "train"): train,
    ("torch", "conv"): conv,
    ("torch", "conv_gradient"): conv,
    ("voxelmorph", "forward"): forward,
    ("voxelmorph", "train"): train,
}
