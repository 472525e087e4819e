"""Runs the whole study of the paper: ablation, comparison and lambda sweep. Runs that they share are done once.

  python launch/paper.py                                            `make paper`
  python launch/paper.py --quick                                    `make paper ARGS=--quick`
  python launch/paper.py --output=runs/paper_own --data=/data/pairs `make paper DATA=/data/pairs`

On the phantom each network is trained with the settings of its config, and with seeds 0, 1 and 2: the seven F3RNets,
VoxelMorph-1 and -2, FAIM and SyN from CT to MR, and those of the paper's Table 3 also from MR to CT. Three networks are
also trained at half and at twice the lambda, with seed 0. All runs of a seed come before those of the next, so that a
report on the finished ones is complete early. `--dry_run` lists the runs; docs/study.md has their cost. A finished run
is not done again, and an interrupted one resumes.

--quick is a test of the commands, not a study: one seed, small volumes, 150 steps, in runs/paper_quick. The networks do
not learn to register in so few steps, as the controls in the report show.

On your own data the study has the paper's size (option :paper of the configs), one seed, and needs GPUs.
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
SEEDS = (0, 1, 2)
# Other values than those of the configs are swept by few networks: each takes as long as a row of the tables.
SWEPT = ("mrb", "wo_f3d", "vm2")
SWEPT_LAMBDAS = (0.4, 1.6)
QUICK_LAMBDAS = (0.25, 0.5, 1.0)
QUICK_LAMBDA = 0.5  # of the ablation and the comparison
MOST_JOBS = 8  # small runs are fastest with one core each; 1.5 GB each
QUICK = (
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
    """All runs of the study."""
    if options.data is not None:
        return _all(options, lam=None, sweep=_sweep(NETWORKS, options, lambdas=None))
    if options.quick:
        options = _changed(options, settings=(*QUICK, *options.settings))
        return _all(options, lam=QUICK_LAMBDA, sweep=_sweep(NETWORKS, options, lambdas=QUICK_LAMBDAS))
    if options.seeds == (None,):
        options = _changed(options, seeds=SEEDS)
    first = _changed(options, seeds=options.seeds[:1])
    runs = _all(options, lam=None, sweep=_sweep(SWEPT, first, lambdas=SWEPT_LAMBDAS))
    return sorted(runs, key=lambda run: options.seeds.index(run.config.seed))


def _all(options: Namespace, *, lam: float | None, sweep: list[Run]) -> list[Run]:
    return ablation.plan(options, lam=lam) + compare.plan(options, lam=lam) + sweep


def _sweep(networks: Sequence[str], options: Namespace, *, lambdas: Sequence[float] | None) -> list[Run]:
    return lambda_sweep.plan([config_path(name) for name in networks], options, lambdas=lambdas)


def _changed(options: Namespace, **values: object) -> Namespace:
    return Namespace(**{**vars(options), **values})


def options_of(argv: Sequence[str]) -> Namespace:
    """Parses the arguments."""
    quick = "--quick" in argv  # needed for the default folder, which --help shows
    parser = make_parser(__doc__, "runs/paper_quick" if quick else "runs/paper")
    parser.add_argument("--quick", action="store_true", help="a short test of the commands, on small volumes")
    options = parse(parser, argv)
    if options.quick and options.data is not None:
        parser.error("--quick is for the phantom and does not go with --data")
    if options.jobs is None and options.data is None and not options.slurm:
        options.jobs = len(gpus()) or min(os.cpu_count() or 1, MOST_JOBS)
    return options


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit status."""
    options = options_of(argv)
    return launch(plan(options), options)


if __name__ == "__main__":
    run_launcher(main)
