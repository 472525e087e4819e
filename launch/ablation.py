"""The seven variants of F3RNet, each at its config's lambda: the paper's Tables 1 and 2.

python launch/ablation.py --output=runs/ablation
python launch/ablation.py --data=/data/pairs --slurm --slurm_gpus=1
"""

from argparse import Namespace
from collections.abc import Sequence

from launcher import DIRECTIONS, launch, make_parser, parse, run_launcher, spec_of
from runs import Run, config_path, make_run

VARIANTS = ("wo_f3d", "w_f3d", "enc", "dec", "fr", "ms", "mrb")


def plan(options: Namespace, *, lam: float | None = None, direction: str = "ct_to_mr") -> list[Run]:
    """Each variant once a seed; `lam` replaces the lambda of the configs."""
    specs = [spec_of(config_path(name), options) for name in VARIANTS]
    varied = {"lam": lam, "direction": direction}
    return [make_run(options.output, spec, options.settings, **varied, seed=s) for spec in specs for s in options.seeds]


def main(argv: Sequence[str]) -> int:
    """Reads the arguments and does the ablation."""
    parser = make_parser(__doc__, "runs/ablation")
    parser.add_argument("--direction", choices=DIRECTIONS, default=DIRECTIONS[0])
    options = parse(parser, argv)
    return launch(plan(options, direction=options.direction), options)


if __name__ == "__main__":
    run_launcher(main)
