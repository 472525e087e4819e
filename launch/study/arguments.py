"""The arguments that all launchers have, and the runs that they ask for."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from f3r_jax.common.errors import UserError
from study.runs import Run, make_run
from study.slurm import add_slurm_arguments

DIRECTIONS = ("ct_to_mr", "mr_to_ct")


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line."""

    def error(self, message: str) -> None:
        """Raises a UserError instead of printing the usage."""
        raise UserError(f"{message}; --help lists what is expected")


def make_parser(doc: str, output: str) -> Parser:
    """The arguments that all launchers have. `--config.KEY=VALUE` is taken too, see `parse`."""
    parser = Parser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="--config.KEY=VALUE changes a setting of all runs, for example --config.train.steps=100",
    )
    parser.add_argument("--output", type=Path, default=Path(output), help=f"folder of the study ({output})")
    parser.add_argument("--data", help="folder of NIfTI pairs: the configs' option :paper, the paper's size, on them")
    parser.add_argument("--seeds", type=numbers(int), default=(None,), help="such as 0,1,2; the configs' own otherwise")
    parser.add_argument("--dry_run", action="store_true", help="show the plan and start nothing")
    parser.add_argument(
        "--together",
        action="store_true",
        help="runs that differ in lambda alone as one program, vmapped; README says when that pays",
    )
    parser.add_argument("--jobs", type=int, help="runs at a time: on this machine 1, on SLURM as many as it grants")
    add_slurm_arguments(parser)
    return parser


def numbers(kind: type) -> Callable[[str], tuple]:
    """Reads a list such as 0.5,1,2."""

    def read(text: str) -> tuple:
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        if not values or not all(0 <= value < float("inf") for value in values):
            raise argparse.ArgumentTypeError(f"{text!r}, expected numbers of 0 or more such as 0,1,2")
        return values

    return read


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; `settings` are the KEY=VALUE that hold for all runs."""
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
    """The config with the option that goes with the data."""
    return f"{config}:paper" if options.data is not None and ":" not in config else config


def runs_of(
    configs: Sequence[str],
    options: argparse.Namespace,
    *,
    lambdas: Sequence[float | None] = (None,),
    directions: Sequence[str] = DIRECTIONS[:1],
) -> list[Run]:
    """A run of each config at each lambda (None: the config's own), in each direction, for each seed."""
    return [
        make_run(options.output, spec, options.settings, lam=lam, direction=direction, seed=seed)
        for direction in directions
        for spec in (spec_of(config, options) for config in configs)
        for lam in lambdas
        for seed in options.seeds
    ]
