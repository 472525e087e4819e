"""The whole study of the paper: lambda sweep, ablation and comparison; runs that they share are done once.

  python launch/paper.py --output=runs/paper                        `make paper`
  python launch/paper.py --output=runs/own --data=/data/pairs       `make paper DATA=/data/pairs`

On the phantom it is a smoke test: ten networks at three lambdas, five of them and SyN from MR to CT too. So few steps
don't teach a network to register, as the controls in the report show. On two cores of
2.5 GHz it took 68 minutes in a fresh clone, set-up included, with other programs running for the first third of them.
On own data it has the paper's size (option :paper of the configs) and belongs on GPUs.
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
MOST_JOBS = 8  # small runs share a machine well: a core each does more than all cores for one; 1.5 GB each
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
    """All runs of the study; on own data the configs' lambdas and sizes hold, on the phantom those above."""
    lambdas, lam = (LAMBDAS, LAMBDA) if options.data is None else (None, None)
    if options.data is None:
        options = Namespace(**{**vars(options), "settings": (*SETTINGS, *options.settings)})
    sweep = lambda_sweep.plan([config_path(name) for name in NETWORKS], options, lambdas=lambdas)
    return ablation.plan(options, lam=lam) + compare.plan(options, lam=lam) + sweep


def main(argv: Sequence[str]) -> int:
    """Reads the arguments and does the study."""
    options = parse(make_parser(__doc__, "runs/paper"), argv)
    if options.jobs is None and options.data is None and not options.slurm:
        options.jobs = len(gpus()) or min(os.cpu_count(), MOST_JOBS)
    return launch(plan(options), options)


if __name__ == "__main__":
    run_launcher(main)
