"""Arguments that all launchers share, and the runs that they describe."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from f3r_jax.common.errors import UserError
from study.runs import Run, make_run
from study.slurm import add_slurm_arguments

DIRECTIONS = ("ct_to_mr", "mr_to_ct")


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Raises a UserError instead of printing the usage."""
        raise UserError(f"{message}; see --help")


def make_parser(doc: str, output: str) -> Parser:
    """A parser with the arguments that all launchers share. `parse` also accepts `--config.KEY=VALUE`."""
    parser = Parser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="--config.KEY=VALUE changes a setting of all runs, for example --config.train.steps=100",
    )
    parser.add_argument("--output", type=Path, default=Path(output), help=f"folder of the study ({output})")
    parser.add_argument("--data", help="folder of NIfTI pairs; the configs then have the paper's size (option :paper)")
    parser.add_argument(
        "--seeds", type=numbers(int), default=(None,), help="such as 0,1,2 (default: the seed of each config)"
    )
    parser.add_argument("--dry_run", action="store_true", help="only print the plan")
    parser.add_argument(
        "--together",
        action="store_true",
        help="train runs that only differ in lambda in one process, vmapped; see docs/study.md",
    )
    parser.add_argument("--jobs", type=int, help="runs at a time (default: 1 on this machine; no limit on SLURM)")
    add_slurm_arguments(parser)
    return parser


def numbers(kind: type) -> Callable[[str], tuple]:
    """A function that reads a list such as 0.5,1,2."""

    def read(text: str) -> tuple:
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        if not values or not all(0 <= value < float("inf") for value in values):
            raise argparse.ArgumentTypeError(f"{text!r}, expected numbers of 0 or more, such as 0,1,2")
        return values

    return read


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parses the arguments; `settings` holds the KEY=VALUE for all runs."""
    options, rest = parser.parse_known_args(argv)
    unknown = [text for text in rest if not (text.startswith("--config.") and "=" in text)]
    if unknown:
        parser.error(f"unknown argument {unknown[0]!r}")
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}, expected 1 or more")
    options.settings = tuple(text.removeprefix("--config.") for text in rest)
    if options.data is not None:
        options.settings = (f"data.root={options.data}", *options.settings)
    return options


def spec_of(config: str, options: argparse.Namespace) -> str:
    """The config, with option :paper if there is own data."""
    return f"{config}:paper" if options.data is not None and ":" not in config else config


def runs_of(
    configs: Sequence[str],
    options: argparse.Namespace,
    *,
    lambdas: Sequence[float | None] = (None,),
    directions: Sequence[str] = DIRECTIONS[:1],
) -> list[Run]:
    """One run per config, lambda (None: that of the config), direction and seed."""
    return [
        make_run(options.output, spec, options.settings, lam=lam, direction=direction, seed=seed)
        for direction in directions
        for spec in (spec_of(config, options) for config in configs)
        for lam in lambdas
        for seed in options.seeds
    ]
