"""F3RNet and its rivals in both directions, each at its config's lambda: the paper's Tables 2 and 3.

python launch/compare.py --output=runs/compare
python launch/compare.py --data=/data/pairs --slurm --slurm_gpus=1
"""

from argparse import Namespace
from collections.abc import Sequence

from launcher import DIRECTIONS, launch, make_parser, parse, run_launcher, spec_of
from runs import Run, config_path, make_run

SYSTEMS = ("syn", "vm1", "vm2", "faim", "wo_f3d", "mrb")


def plan(options: Namespace, *, lam: float | None = None, directions: Sequence[str] = DIRECTIONS) -> list[Run]:
    """Each system once a direction and seed; `lam` replaces the lambda of the configs."""
    runs = []
    for direction in directions:
        for name in SYSTEMS:
            spec = spec_of(config_path(name), options)
            varied = {"lam": lam, "direction": direction}
            runs += [make_run(options.output, spec, options.settings, **varied, seed=seed) for seed in options.seeds]
    return runs


def main(argv: Sequence[str]) -> int:
    """Reads the arguments and does the comparison."""
    options = parse(make_parser(__doc__, "runs/compare"), argv)
    return launch(plan(options), options)


if __name__ == "__main__":
    run_launcher(main)
