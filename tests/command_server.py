"""Runs the package's entry points, one process each, without importing JAX anew for each.

A server that has imported everything but the entry points reads a JSON line a command and forks; the child becomes
`python -m f3r_jax.<module> <arguments>`, with changes to the environment, in a folder. The server answers with the
child's id, then with its exit status. The network "tiny" is known to it beside the real ones: it compiles in a second.
"""

import json
import os
import runpy
import sys
import traceback
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp

import fake_runs
from f3r_jax import models
from f3r_jax.evaluate import curves, figures
from f3r_jax.train import loop  # noqa: F401  imported once, for all children

TINY_PARAMETERS = (27 * 2 * 4 + 4) + (27 * 4 * 3 + 3)


class Tiny(nn.Module):
    """Two convolutions."""

    flow_init: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, moving: jax.Array, fixed: jax.Array) -> jax.Array:
        """The displacement."""
        features = nn.leaky_relu(nn.Conv(4, (3, 3, 3))(jnp.concatenate([moving, fixed], axis=-1)))
        return nn.Conv(3, (3, 3, 3), kernel_init=nn.initializers.normal(self.flow_init))(features)


def register_tiny() -> None:
    """Makes `model.name=tiny` a network."""
    models.NETWORKS["tiny"] = lambda model: Tiny
    models.LABELS["tiny"] = "Tiny"


def _become(module: str, arguments: list[str], out: str, err: str, env: dict[str, str], cwd: str) -> None:
    os.environ.update(env)
    os.chdir(cwd)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [module, *arguments]
    try:
        if module == "launch":  # a launcher, with fake runs
            status = fake_runs.launch(arguments)
        else:
            runpy.run_module(f"f3r_jax.{module}", run_name="__main__", alter_sys=True)
            status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Serves until standard input ends."""
    warnings.filterwarnings("ignore", message="os.fork")
    register_tiny()
    for module in (figures, curves):  # small figures are drawn sooner
        module.DPI = int(os.environ.get("COMMAND_SERVER_DPI", module.DPI))
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(**json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
