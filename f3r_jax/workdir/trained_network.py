"""A trained network as a registration takes it: loaded once, for all pairs and devices of a process."""

from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from f3r_jax.evaluate import inference
from f3r_jax.data.nifti import PathLike
from f3r_jax.common.errors import UserError


class Network(NamedTuple):
    """What is compiled for one pair serves the next of that size."""

    predict: inference.Predictor
    params: dict
    config: ConfigDict
    step: int
    source: Path

    def on(self, device: jax.Device) -> "Network":
        """The same with its parameters on that device."""
        return self._replace(params=jax.device_put(self.params, device))


def load(source: Path, step: int | None = None) -> Network:
    """The network of a run's checkpoint of `step`, or of the newest.

    Raises:
      UserError: no such checkpoint, or it doesn't fit its config.
    """
    network, *loaded = inference.load_network(source, step)
    return Network(inference.make_predictor(network), *loaded, source)


def check_direction(network: Network, modality: str, moving: PathLike) -> None:
    """Raises a UserError unless the network was trained to warp a scan of that modality."""
    expected = "ct" if network.config.data.direction == "ct_to_mr" else "mr"
    if modality != expected:
        raise UserError(
            f"{network.source}: was trained with the {expected.upper()} as the moving scan, found that "
            f"{moving} is {modality.upper()}; swap fixed and moving, or give another checkpoint"
        )
