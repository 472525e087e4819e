"""Evaluates a checkpoint on the test cases of its config: scores, figures and a table.

  python -m f3r_jax.evaluate --workdir=runs/mrb [--step=120] [--refine] [--learn2reg]

Writes <workdir>/evaluation/: cases.csv (one row per case and organ), summary.json and table.md with the scores before
and after registration. For the first cases it also writes figures and an .npz with displacement, warped volume and
warped labels. Only the checkpoint, which contains its config, and the data are needed. SyN has no checkpoint and
registers again.

With --learn2reg it also writes the challenge's submission files and scores, to <workdir>/evaluation/learn2reg/. With
--refine an instance optimisation with the settings `config.instance` starts from each prediction, and the folder is
<workdir>/evaluation_refined/.

All cases are registered first, because the controls of a network (`evaluate/controls.py`) need the predictions for all
other cases. Then each case is scored. Until the end the predictions are in a hidden folder. A restarted evaluation
skips the cases that are already registered or scored.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from f3r_jax.common import cli, events
from f3r_jax.common.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest by default.")
_PICTURES = flags.DEFINE_integer("pictures", 3, "Number of cases to draw figures of.", lower_bound=0)
_REFINE = flags.DEFINE_bool("refine", False, "Optimise each pair further, starting from the network's prediction.")
_LEARN2REG = flags.DEFINE_bool("learn2reg", False, "Also write Learn2Reg's submission files and scores.")
flags.DEFINE_bool("json", False, cli.JSON_HELP)
GROUPS = {"Run": ("workdir", "step"), "Evaluation": ("refine", "learn2reg", "pictures", "json")}


def main(argv: Sequence[str]) -> None:
    """Reads the flags, evaluates the run and prints the table."""
    if argv[1:] or _WORKDIR.value is None:
        raise UserError("expected --workdir=FOLDER [--step=N] [--pictures=N] [--refine] [--learn2reg]")
    from f3r_jax.common.compilation_cache import keep_compiled_programs
    from f3r_jax.evaluate.evaluation import CHALLENGE, evaluate, folder_of, print_report

    keep_compiled_programs()
    workdir = Path(_WORKDIR.value)
    summary = evaluate(
        workdir, step=_STEP.value, refine=_REFINE.value, drawn=_PICTURES.value, challenge=_LEARN2REG.value
    )
    folder = folder_of(workdir, refine=_REFINE.value)
    print_report(summary, folder)
    if _LEARN2REG.value:
        submission = folder / CHALLENGE
        text = f"submission files and the challenge's scores: {submission}"
        events.emit(events.RESULT, text, of="submission", folder=submission)


def console() -> None:
    """The console script."""
    cli.run_main(main, GROUPS)


if __name__ == "__main__":
    console()
