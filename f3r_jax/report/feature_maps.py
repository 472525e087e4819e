"""The features inside a trained F3RNet for one case, as in the paper's Fig. 6."""

from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from f3r_jax.data.cases import Case
from f3r_jax.ops.shapes import as_volume
from f3r_jax.workdir.trained_network import load_network

STREAMS = {"l": "Full-resolution stream", "h": "Multi-scale residual stream"}


def feature_slices(
    workdir: Path, case: Case, *, step: int | None, index: int
) -> dict[str, dict[str, Float[np.ndarray, "c x y"]]]:
    """An axial slice of the features after every block: {stream: {block: channels}}, in the order of the blocks.

    Args:
      workdir: the run's folder.
      case: the input of the network.
      step: step of the checkpoint; the newest if None.
      index: index of the slice, in voxels of the case; a coarse block shows the slice that contains it.

    Raises:
      UserError: the checkpoint can't be read.
    """
    network, params, _, _ = load_network(workdir, step)

    @jax.jit
    def slices(params: dict, moving: jax.Array, fixed: jax.Array) -> dict[str, jax.Array]:
        _, state = network.apply({"params": params}, moving, fixed, mutable="features")
        # Cut inside the compiled function, so that the volumes of all blocks are never in memory at once.
        depth = max(value.shape[3] for (value,) in state["features"].values())
        return {
            name: value[0, :, :, index * value.shape[3] // depth].transpose(2, 0, 1)
            for name, (value,) in state["features"].items()
        }

    cut = slices(params, as_volume(case.moving), as_volume(case.fixed))
    return {
        title: {words(name): np.asarray(cut[name]) for name in _in_order(cut) if name.startswith(f"{stream}_")}
        for stream, title in STREAMS.items()
    }


def words(name: str) -> str:
    """Display name of a block: "l_encoder_1" becomes "encoder 1/2"."""
    _, part, number = name.split("_")
    return f"extra {int(number) + 1}" if part == "extra" else f"{part} 1/{2 ** int(number)}"


def _in_order(names: Iterable[str]) -> list[str]:
    """Sorts blocks: encoder down, extra blocks, decoder up. JAX returns mappings sorted by name."""

    def place(name: str) -> tuple[int, int]:
        _, part, number = name.split("_")
        return ("encoder", "extra", "decoder").index(part), -int(number) if part == "decoder" else int(number)

    return sorted(names, key=place)
