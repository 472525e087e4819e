"""Trains configs at several lambdas (Eq. 3): the paper's Fig. 3.

  python launch/lambda_sweep.py configs/mrb.py configs/vm2.py --lambdas=0.1,0.25,0.5,1,2 --output=runs/lambda_sweep
  python launch/lambda_sweep.py configs/mrb.py --data=/data/pairs

  python launch/lambda_sweep.py configs/mrb.py --together

--together trains the lambdas of a config as one compiled function. Without configs, the seven variants of Fig. 3 are
trained. With --data, or for a config with :paper, the default lambdas are those of the paper's figure.
"""

from argparse import Namespace
from collections.abc import Sequence

from ablation import VARIANTS
from f3r_jax.common.errors import UserError
from f3r_jax.config import is_trained
from study.arguments import DIRECTIONS, make_parser, numbers, parse, runs_of, spec_of
from study.launcher import launch, run_launcher
from study.runs import Run, config_path, load_config

LAMBDAS = (0.1, 0.25, 0.5, 1.0, 2.0)  # around the best one on the phantom
PAPER_LAMBDAS = (0.5, 1.0, 1.5, 2.0, 3.0)


def plan(
    configs: Sequence[str], options: Namespace, *, lambdas: Sequence[float] | None = None, direction: str = "ct_to_mr"
) -> list[Run]:
    """One run per config, lambda and seed."""
    runs = []
    for config in configs:
        spec = spec_of(config, options)
        if not is_trained(load_config(spec, ())):
            raise UserError(f"{spec}: has no lambda to sweep, because it is not trained")
        chosen = lambdas or (PAPER_LAMBDAS if spec.endswith(":paper") else LAMBDAS)
        runs += runs_of([config], options, lambdas=chosen, directions=[direction])
    return runs


def main(argv: Sequence[str]) -> int:
    """Runs the sweep; returns the exit status."""
    parser = make_parser(__doc__, "runs/lambda_sweep")
    parser.add_argument("configs", nargs="*", help="config files, optionally with :option")
    parser.add_argument("--lambdas", type=numbers(float), help="values of loss.lam, such as 0.5,1,2")
    parser.add_argument("--direction", choices=DIRECTIONS, default=DIRECTIONS[0])
    options = parse(parser, argv)
    configs = options.configs or [config_path(name) for name in VARIANTS]
    return launch(plan(configs, options, lambdas=options.lambdas, direction=options.direction), options)


if __name__ == "__main__":
    run_launcher(main)
