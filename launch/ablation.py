"""Trains the seven variants of F3RNet, each at its config's lambda: the paper's Tables 1 and 2.

python launch/ablation.py --output=runs/ablation
python launch/ablation.py --data=/data/pairs --slurm --slurm_gpus=1
"""

from argparse import Namespace
from collections.abc import Sequence

from study.arguments import DIRECTIONS, make_parser, parse, runs_of
from study.launcher import launch, run_launcher
from study.runs import Run, config_path

VARIANTS = ("wo_f3d", "w_f3d", "enc", "dec", "fr", "ms", "mrb")


def plan(options: Namespace, *, lam: float | None = None, direction: str = "ct_to_mr") -> list[Run]:
    """One run per variant and seed; `lam` replaces the lambda of the configs."""
    return runs_of([config_path(name) for name in VARIANTS], options, lambdas=[lam], directions=[direction])


def main(argv: Sequence[str]) -> int:
    """Runs the ablation; returns the exit status."""
    parser = make_parser(__doc__, "runs/ablation")
    parser.add_argument("--direction", choices=DIRECTIONS, default=DIRECTIONS[0])
    options = parse(parser, argv)
    return launch(plan(options, direction=options.direction), options)


if __name__ == "__main__":
    run_launcher(main)
