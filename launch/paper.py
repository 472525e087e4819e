"""Runs the whole study of the paper: lambda sweep, ablation and comparison. Runs that they share are done once.

  python launch/paper.py --output=runs/paper                        `make paper`
  python launch/paper.py --output=runs/own --data=/data/pairs       `make paper DATA=/data/pairs`

On the phantom it is a smoke test: ten networks at three lambdas, five of them and SyN also from MR to CT. The networks
do not learn to register in so few steps, as the controls in the report show. It took 68 minutes on two cores of 2.5 GHz
in a fresh clone, with set-up; other processes were running for the first third of that time. On your own data it has
the paper's size (option :paper of the configs) and needs GPUs.
"""

import os
from argparse import Namespace
from collections.abc import Sequence

import ablation
import compare
import lambda_sweep
from study.arguments import make_parser, parse
from study.launcher import launch, run_launcher
from study.local import gpus
from study.runs import Run, config_path

NETWORKS = (*ablation.VARIANTS, "vm1", "vm2", "faim")
# The small study.
LAMBDAS = (0.25, 0.5, 1.0)
LAMBDA = 0.5  # of the ablation and the comparison
MOST_JOBS = 8  # small runs are fastest with one core each; 1.5 GB each
SETTINGS = (
    "data.shape=(48,32,32)",
    "data.spacing=(7.2,7.2,7.2)",
    "data.cases=32",
    "data.validation_cases=2",
    "data.test_cases=6",
    "train.steps=150",
    "train.validate_every=50",
    "train.checkpoint_every=25",
)


def plan(options: Namespace) -> list[Run]:
    """All runs of the study, with the lambdas and sizes of the configs on own data, and those above on the phantom."""
    lambdas, lam = (LAMBDAS, LAMBDA) if options.data is None else (None, None)
    if options.data is None:
        options = Namespace(**{**vars(options), "settings": (*SETTINGS, *options.settings)})
    sweep = lambda_sweep.plan([config_path(name) for name in NETWORKS], options, lambdas=lambdas)
    return ablation.plan(options, lam=lam) + compare.plan(options, lam=lam) + sweep


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit status."""
    options = parse(make_parser(__doc__, "runs/paper"), argv)
    if options.jobs is None and options.data is None and not options.slurm:
        options.jobs = len(gpus()) or min(os.cpu_count() or 1, MOST_JOBS)
    return launch(plan(options), options)


if __name__ == "__main__":
    run_launcher(main)
