"""Writes the parameters of a training run to one file, which `config.init` and `register --checkpoint` read.

python launch/export_weights.py --workdir=runs/mrb --output=mrb.npz [--step=4000]
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from f3r_jax.common import cli
from f3r_jax.common.errors import UserError
from f3r_jax.workdir import weights
from f3r_jax.workdir.trained_network import load_network

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training run.")
_OUTPUT = flags.DEFINE_string("output", None, f"The file to write, NAME{weights.SUFFIX}; it must not exist.")
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the newest.")
GROUPS = {"Weights": ("workdir", "output", "step")}


def main(argv: Sequence[str]) -> int:
    """Writes the file; returns the exit status."""
    if argv[1:] or _WORKDIR.value is None or _OUTPUT.value is None:
        raise UserError(f"expected --workdir=FOLDER --output=NAME{weights.SUFFIX}, without other arguments")
    output = Path(_OUTPUT.value)
    if output.suffix != weights.SUFFIX:
        raise UserError(f"{output}: expected a name that ends in {weights.SUFFIX}")
    if output.exists():
        raise UserError(f"{output}: exists; choose another name with --output")
    if not output.parent.is_dir():
        raise UserError(f"{output}: no folder {output.parent}")
    _, params, config, step = load_network(Path(_WORKDIR.value), _STEP.value)
    weights.write(output, params, config, step)
    print(f"{output}: parameters of step {step}, {output.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    cli.run_main(main, GROUPS)
