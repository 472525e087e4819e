"""The commands and Python blocks of README and docs, executed on tiny data."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import REPOSITORY, TINY_CONFIG, TINY_DATA
from dicom_files import write_series
from f3r_jax.data import nifti
from f3r_jax.data.phantom.generate import make_case

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
FORMATS = ("dicom/", "--format=")  # in a command that needs the extra formats
# What is not run here, and why
LEFT_OUT = {
    "f3r_jax.benchmark": "measures for minutes; tests/benchmark run it",
    "cohort.py": "tests/launch/test_cohort.py runs it",
    "export_weights": "tests/workdir/test_weights.py runs it",
    "guidance.py": "tests/launch/test_guidance_script.py runs it",
    "placements.py": "tests/launch/test_placements.py runs it",
    "verdicts.py": "tests/launch/test_verdicts.py runs it",
    "--slurm": "needs a cluster",
    "srun": "needs a cluster",
    "...": "not a whole command",
    **dict.fromkeys(FORMATS, "test_commands_with_other_formats runs it"),
}
# The phantom's liver, spleen, right and left kidney with TotalSegmentator's numbers
TOTALSEGMENTATOR = np.array([0, 5, 1, 2, 3], np.uint8)
LINK = re.compile(r"\]\(([^)#:]+)\)")


def blocks(page, language):
    """The fenced blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def command_lines(page):
    """The commands of a page: those of its blocks and those in the text, with their flags."""
    text = "\n".join(blocks(page, "")).replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in text.splitlines()]
    inline = re.findall(r"`((?:python|make) [^`]*)`", page.read_text())
    return [" ".join(line.split()) for line in [*lines, *inline] if line.startswith(("python ", "make "))]


def all_commands(start):
    found = [(page.name, line) for page in PAGES for line in command_lines(page) if line.startswith(start)]
    return list(dict.fromkeys(found))


def commands_of(start):
    return [(page, line) for page, line in all_commands(start) if not any(word in line for word in LEFT_OUT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the pages assume it: configs, two scans, and pairs."""
    made = tmp_path_factory.mktemp("docs")
    shutil.copytree(REPOSITORY / "configs", made / "configs")
    (made / "data").mkdir()
    rows = ["name,fixed,moving,fixed_labels,moving_labels,split"]
    splits = ("train", "train", "train", "validation", "test", "test")
    for number, split in enumerate(splits):
        case = make_case(0, number, shape=(24, 24, 24), spacing=(14.0, 14.0, 12.0))
        affine = np.diag([14.0, 14.0, 12.0, 1.0])
        for name in ("mr", "ct", "mr_labels", "ct_labels"):
            nifti.write(made / "data" / f"{name}_{number}.nii.gz", getattr(case, name), affine)
        rows.append(
            ",".join(
                [f"case{number}", *(f"{n}_{number}.nii.gz" for n in ("mr", "ct", "mr_labels", "ct_labels")), split]
            )
        )
    (made / "data" / "pairs.csv").write_text("\n".join(rows) + "\n")
    copies = {"mr": "mr_0", "ct": "ct_0", "other_ct": "ct_0", "mr_seg": "mr_labels_0", "ct_seg": "ct_labels_0"}
    for name, source in copies.items():
        shutil.copy(made / "data" / f"{source}.nii.gz", made / f"{name}.nii.gz")
    for name in ("mr", "ct"):
        labels = nifti.read(made / f"{name}_seg.nii.gz")
        total = TOTALSEGMENTATOR[np.asarray(labels.data, np.uint8)]
        nifti.write(made / f"{name}_total.nii.gz", total, labels.affine)
    shutil.copytree(REPOSITORY / "docs" / "weights", made / "docs" / "weights")
    return made


@pytest.fixture(scope="module")
def series(folder, pydicom, SimpleITK):
    """The same folder with the scans as DICOM series: two folders of one, and one of two."""
    written = {"mr": ["mr"], "ct": ["ct"], "ct_late": ["ct"], "study": ["mr", "ct"]}
    for where, number, name in ((w, n, name) for w, names in written.items() for n, name in enumerate(names, 1)):
        image = nifti.read(folder / f"{name}.nii.gz")
        write_series(pydicom, folder / "dicom" / where, np.asarray(image.data), image.affine, series=number)
    return folder


def small(module, arguments, folder):
    """The arguments of a command with what makes it small."""
    arguments = [argument.replace("/data/pairs", str(folder / "data")) for argument in arguments]
    if module == "f3r_jax.main":
        named = {argument.split("=")[0] for argument in arguments}
        tiny = TINY_DATA if "--config=configs/instance.py" in arguments else TINY_CONFIG
        settings = {key: value for key, value in tiny.items() if f"--config.{key}" not in named}
        arguments += [f"--config.{key}={value}" for key, value in settings.items()]
    if module == "f3r_jax.register":
        arguments += ["--spacing=20", "--iterations=5"] + ([] if "--overwrite" in arguments else ["--overwrite"])
    return arguments


def run(commands, page, line, folder):
    """Runs a command of a page in the folder; returns the name of its module."""
    module, *arguments = shlex.split(line)[2:]
    name = module.removeprefix("f3r_jax.")
    result = commands.run(name, *small(module, arguments, folder), cwd=folder)
    assert result.status == 0, f"{page}: {line}\n{result.out}\n{result.err}"
    return name


@pytest.mark.slow
def test_commands_of_the_pages(commands, folder):
    """In the order of the pages: an evaluation needs the run of a training before it."""
    ran = [run(commands, page, line, folder) for page, line in commands_of("python -m f3r_jax.")]
    assert set(ran) == {"main", "evaluate", "register", "apply", "report"}


@pytest.mark.slow
def test_commands_with_other_formats(commands, series):
    lines = [(page, line) for page, line in all_commands("python -m f3r_jax.") if any(w in line for w in FORMATS)]
    assert {page for page, _ in lines} >= {"dicom.md", "slicer.md"}
    for page, line in lines:
        run(commands, page, line, series)


@pytest.mark.parametrize(("page", "line"), commands_of("python launch/"))
def test_launchers_of_the_pages_plan_their_runs(page, line, tmp_path):
    arguments = shlex.split(line)[1:]
    output = [argument for argument in arguments if argument.startswith("--output=")]
    arguments = [argument for argument in arguments if argument not in output]
    command = [sys.executable, *arguments, f"--output={tmp_path / 'out'}", "--dry_run"]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, f"{page}: {line}\n{finished.stderr}"
    assert "configs/" in finished.stdout


@pytest.mark.parametrize(("page", "line"), commands_of("make "))
def test_make_knows_the_targets_of_the_pages(page, line):
    finished = subprocess.run(
        [*shlex.split(line), "--dry-run"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, f"{page}: {line}\n{finished.stderr}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_of_the_pages(page):
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_is_short():
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    assert 90 <= len(lines) <= 120
    assert all(len(line) <= 100 for line in lines if not line.startswith(("|", "!")))


def test_there_are_commands_to_run():
    assert len(commands_of("python -m f3r_jax.")) > 6 and len(commands_of("make ")) > 4
    assert Path(PAGES[0]).name == "README.md"
