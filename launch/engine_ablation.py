"""Trains on synthetic pairs with one part of the data engine left out at a time: what does each part contribute?

  python launch/engine_ablation.py --output=runs/engine

Each training is short: 1,500 steps from the weights of the phantom (docs/weights), which register one CT and one MR
contrast and fail on others. The test cases have protocols of the phantom that no training sees. Six trainings for each
of the seeds 0, 1 and 2: 27 minutes of one core each, so a night on one core. Finished runs are skipped and interrupted
ones resume. The table, with controls, is written to engine.md in the study's folder and printed.
"""

from argparse import Namespace
from collections.abc import Sequence

from f3r_jax.common.files import write_text
from f3r_jax.evaluate.metrics import summarise
from f3r_jax.report import run_scores
from f3r_jax.report.wording import format_mean_std, number
from study.arguments import make_parser, parse
from study.launcher import launch, run_launcher
from study.runs import ROOT, TABLE, Run, config_path, finished_step, make_run

SEEDS = (0, 1, 2)
START = ROOT / "docs" / "weights" / "mrb_phantom_28000.npz"
SETTINGS = (
    "train.steps=1500",
    "train.validate_every=500",
    "optim.learning_rate=6e-4",
    "synthesis.curriculum_steps=500",
    "synthesis.amplitude=1.5",
    "data.ct_phases=('arterial',)",
    "data.mr_sequences=('diffusion','hepatobiliary')",
)
# What is left out, and the settings that do so
PARTS = {
    "whole": (),
    "no_shapes": ("synthesis.shapes=0.0",),
    "ten_anatomies": ("data.cases=34",),  # 24 of them are validation and test cases
    "no_arbitrary_contrasts": ("synthesis.ct=0.5", "synthesis.mr=0.5"),
    "small_motions": ("synthesis.amplitude=0.5", "synthesis.breathing=0.75", "synthesis.shift=0.375"),
    "clean_scanner": tuple(
        f"synthesis.{name}=0.0" for name in ("blur", "thick_slices", "bias", "gamma", "noise", "crop")
    ),
}
# The columns of the table, with their decimals
MEASURES = {
    "Dice before, %": 1,
    "Dice, %": 1,
    "mean field": 1,
    "other pair": 1,
    "end-point error, mm": 1,
    "correlation": 2,
}


def plan(options: Namespace) -> list[Run]:
    """One run per part and seed; all parts of a seed come before the next seed."""
    seeds = SEEDS if options.seeds == (None,) else options.seeds
    settings = (f"init={START}", *SETTINGS, *options.settings)
    return [
        make_run(options.output, config_path("synthetic"), (*settings, *left_out), seed=seed, part=part)
        for seed in seeds
        for part, left_out in PARTS.items()
    ]


def table(runs: Sequence[Run]) -> str:
    """Mean and standard deviation over the seeds of each part, as Markdown; runs that are not finished are left out."""
    lines = [f"| training | seeds | {' | '.join(MEASURES)} |", f"|---|---|{'---|' * len(MEASURES)}"]
    for part in PARTS:
        rows = [measured(run) for run in runs if run.part == part and finished_step(run) is not None]
        if rows:
            columns = zip(*rows, strict=True)
            shown = " | ".join(map(spread, columns, MEASURES.values()))
            lines.append(f"| {part.replace('_', ' ')} | {len(rows)} | {shown} |")
    return "\n".join(lines) + "\n"


def measured(run: Run) -> list[float]:
    """The `MEASURES` of a run's test cases."""
    summary = run_scores.read_summary(run.workdir / "evaluation" / "summary.json")
    controls, error = summary.controls, summary.after.epe_mm
    assert controls is not None and error is not None  # a trained network on phantoms has both
    sides = (summary.before, summary.after, controls.mean_field, controls.other_pair)
    correlation = controls.pair_specific.correlation
    return [
        *(side.mean_over_organs("dice") for side in sides),
        error.mean,
        float("nan" if correlation is None else correlation),
    ]


def spread(values: Sequence[float], digits: int) -> str:
    """As in 87.3 ± 0.4; without a deviation for one value."""
    found = summarise(values)
    return format_mean_std(found.mean, found.std, digits) if found.count > 1 else number(found.mean, digits)


def main(argv: Sequence[str]) -> int:
    """Runs the ablation and writes its table; returns the exit status."""
    options = parse(make_parser(__doc__, "runs/engine"), argv)
    runs = plan(options)
    status = launch(runs, options)
    if not options.dry_run:
        text = table(runs)
        write_text(options.output / TABLE, text)
        print(text, flush=True)
    return status


if __name__ == "__main__":
    run_launcher(main)
