"""Compares F3RNet with the baselines in both directions, at each config's lambda: the paper's Tables 2 and 3.

python launch/compare.py --output=runs/compare
python launch/compare.py --data=/data/pairs --slurm --slurm_gpus=1
"""

from argparse import Namespace
from collections.abc import Sequence

from study.arguments import DIRECTIONS, make_parser, parse, runs_of
from study.launcher import launch, run_launcher
from study.runs import Run, config_path

SYSTEMS = ("syn", "vm1", "vm2", "faim", "wo_f3d", "mrb")


def plan(options: Namespace, *, lam: float | None = None, directions: Sequence[str] = DIRECTIONS) -> list[Run]:
    """One run per system, direction and seed; `lam` replaces the lambda of the configs."""
    return runs_of([config_path(name) for name in SYSTEMS], options, lambdas=[lam], directions=directions)


def main(argv: Sequence[str]) -> int:
    """Runs the comparison; returns the exit status."""
    options = parse(make_parser(__doc__, "runs/compare"), argv)
    return launch(plan(options), options)


if __name__ == "__main__":
    run_launcher(main)
