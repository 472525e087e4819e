"""The report's files: whole, self-contained, true to the runs, and honest about what is missing."""

import csv
import json
import os
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
from matplotlib.image import imread

from f3r_jax import models
from f3r_jax.common import result_folder
from f3r_jax.common.errors import UserError
from f3r_jax.config import upgraded
from f3r_jax.data.datasets import open_dataset
from f3r_jax.report import write
from f3r_jax.report.study_runs import read_study
from f3r_jax.workdir import checkpoints
from f3r_jax.workdir.metadata import write_config
from report_runs import edit, write_run

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_data(self, data):
        if not {"style", "defs"} & set(self.open):
            self.text += f"{' '.join(data.split())} "


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four methods in two directions, two lambdas, one of them with three seeds."""
    folder = tmp_path_factory.mktemp("runs")
    dices = {"mrb": 84.0, "wo_f3d": 83.0, "voxelmorph2": 85.5, "faim": 81.0}
    for system, dice in dices.items():
        for lam in (0.5, 1.5):
            write_run(folder / f"{system}_{lam}", [dice + lam + n for n in range(6)], system=system, lam=lam)
    for seed in (1, 2):
        write_run(folder / f"mrb_seed{seed}", [85.0 + seed + n for n in range(6)], lam=1.5, seed=seed)
    back = {"data.direction": "mr_to_ct"}
    write_run(folder / "back", [80.0 + n for n in range(6)], changes=back, summary={"direction": "mr_to_ct"})
    write_run(folder / "syn", [79.0 + n for n in range(6)], system="syn", summary={"seconds_per_pair": 90.0})
    origin = {"command": "python -m f3r_jax.main --config=<mine>", "versions": {"jax": "0.10.2"}, "commit": "abc123"}
    write_run(folder / "ours", [70.0] * 6, system="enc", summary={"origin": origin, "versions": {"jax": "0.12.0"}})
    return folder


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
    """The folder of a report over all of them."""
    output = tmp_path_factory.mktemp("made") / "deep" / "report"
    found = write.write_report([runs], output)
    assert not found.problems
    return output


def page_of(folder):
    return Page((folder / "index.html").read_text())


def test_files(made):
    names = {path.name for path in made.iterdir()}
    drawn = {
        *(f"overview_{direction}" for direction in ("ct_to_mr", "mr_to_ct")),
        *("figure_3_ct_to_mr", "training_similarity_ct_to_mr", "training_dice_ct_to_mr"),
        *("training_similarity_mr_to_ct", "training_dice_mr_to_ct"),
    }
    tables = {"table_1.csv", "table_2_ct_to_mr.csv", "table_3_mr_to_ct.csv", "runs.csv"}
    cases = {"cases_ct_to_mr.csv", "cases_mr_to_ct.csv"}
    figures = {f"{stem}.{kind}" for stem in drawn for kind in ("png", "svg")}
    assert names == tables | cases | figures | {"index.html", "report.md", "report.json"}
    assert set(json.loads((made / "report.json").read_text())["files"]) == names
    assert list(made.parent.iterdir()) == [made]
    for name in names:
        if name.endswith(".png"):
            assert imread(made / name).std() > 0.01
        if name.endswith(".svg"):
            ElementTree.parse(made / name)


def test_the_page_needs_nothing_else_and_is_sound(made):
    page = page_of(made)
    names = [value for key, value in page.attributes if key == "id"]
    assert len(names) == len(set(names))
    links = [value for key, value in page.attributes if key in ("href", "src", "xlink:href", "data", "poster")]
    assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert {link[1:] for link in links if link.startswith("#")} <= set(names)
    text = (made / "index.html").read_text()
    used = set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(names)
    assert not re.search(r"@import|url\((?!#)|<script|https?://(?!www\.w3\.org/)", text)
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_colours_of_the_figures_are_the_pages(made):
    svgs = re.findall(r"<svg.*?</svg>", (made / "index.html").read_text(), re.DOTALL)
    assert len(svgs) == 7
    for svg in svgs:
        assert not re.search(r"(fill|stroke): #(?!ffffff)", svg)
        variables = set(re.findall(r"var\((--\w+)\)", svg))
        assert (
            variables <= {"--ink", "--muted", "--line", "--faint", "--accent", "--baseline"} and "--accent" in variables
        )


def test_the_tables_show_what_was_measured(made):
    """VoxelMorph-2 at lambda 1.5: 87 to 92 %, so 89.5 % and, n - 1, 1.87."""
    text = page_of(made).text
    assert "89.50 ± 1.87" in text and "paper 84.17 ± 3.57" in text
    with (made / "table_2_ct_to_mr.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    order = ["Moving", "SyN", "VoxelMorph-2", "FAIM", "F3RNet-w/o F3D", "F3RNet-Enc", "F3RNet-MRB"]
    assert list(rows) == order
    assert float(rows["VoxelMorph-2"]["dice/liver mean"]) == 89.5 and rows["VoxelMorph-2"]["lambda"] == "1.5"
    assert float(rows["VoxelMorph-2"]["dice/liver paper mean"]) == 84.17
    assert float(rows["FAIM"]["dice/liver p"]) == 0.03125  # six cases, all behind
    assert rows["VoxelMorph-2"]["dice/liver p"] == "" and rows["SyN"]["lambda"] == ""
    assert rows["SyN"]["seconds_cpu"] == "90.0" and rows["SyN"]["seconds_gpu"] == ""
    means = [float(value) for value in rows["F3RNet-MRB"]["dice/liver seeds"].split()]
    assert means == [88.0, 88.5, 89.5]  # 85.5, 86 and 87, each with 0 to 5 more
    with (made / "cases_ct_to_mr.csv").open() as file:
        cases = [row for row in csv.DictReader(file) if row["method"] == "F3RNet-MRB"]
    assert [float(row["dice/liver"]) for row in cases] == pytest.approx([86 + 1 / 6 + n for n in range(6)])


def test_the_summary_and_the_order(made):
    text = page_of(made).text
    assert "VoxelMorph-2 is best, with a liver ASD of 1.05 mm" in text
    assert "The methods are not in the paper's order" in text
    assert "the paper prints 0.217 M" in text
    assert "F3RNet-MRB (3 seeds)" in text
    assert "F3RNet-MS: the paper's Table 1 differs in the FR stream" in text


def test_where_rows_come_from(made):
    text = page_of(made).text
    assert "python -m f3r_jax.main --config=<mine>" in text  # escaped in the source
    assert "abc123" in text and "jax 0.12.0" in text and "not recorded" in text
    with (made / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 13
    used = {(row["method"], row["lambda"], row["seed"]) for row in runs if row["in the tables"] == "yes"}
    assert ("F3RNet-MRB", "1.5", "2") in used and ("FAIM", "0.5", "0") not in used


def test_markdown_says_the_same(made):
    text = (made / "report.md").read_text()
    assert "**89.50 ± 1.87**<br><sub>paper 84.17 ± 3.57</sub>" in text
    for figure in re.findall(r"\]\((.*?)\)", text):
        assert (made / figure).is_file()
    lines = text.splitlines()
    tables = [n for n, line in enumerate(lines) if line.startswith("|---")]
    assert len(tables) == 6  # two tables with controls, an order (one method alone has none) and Table 1
    for n in tables:
        assert lines[n - 1].startswith("| ") and lines[n + 1].startswith("| ")
        assert lines[n - 1].rstrip().count("|") == lines[n].count("|") == lines[n + 1].rstrip().count("|")


def test_runs_that_cannot_be_read_are_listed(commands, tmp_path):
    write_run(tmp_path / "runs" / "good", [80.0, 90.0])
    bad = write_run(tmp_path / "runs" / "bad", [80.0, 90.0])
    (bad / "evaluation" / "summary.json").write_text("{")
    output = tmp_path / "report"
    result = commands.run("report", tmp_path / "runs", tmp_path / "none", f"--output={output}")
    assert result.status == 1 and result.out == f"report: {output}/index.html (1 run)\n"
    named = [line.split(": ")[:2] for line in result.err.splitlines()]
    assert named == [["not read", str(bad)], ["not read", str(tmp_path / "none")]]
    text = page_of(output).text
    assert (
        "2 entries could not be read" in text and str(bad) in text and "evaluation/summary.json: not readable" in text
    )
    assert "no such folder" in (output / "report.md").read_text()
    # Mended, the next report replaces this one.
    result = commands.run("report", tmp_path / "runs" / "good", f"--output={output}")
    assert result.status == 0 and result.err == ""
    assert "could not be read" not in page_of(output).text


def test_only_runs_that_cannot_be_read(tmp_path):
    (write_run(tmp_path / "run", [80.0]) / "evaluation" / "cases.csv").unlink()
    found = write.write_report([tmp_path / "run"], tmp_path / "report")
    assert len(found.problems) == 1 and not found.parts
    assert "No run could be read, so there is nothing to compare." in page_of(tmp_path / "report").text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], ["RUNS..."]),
        (["HERE/none"], ["HERE/none", "no such folder"]),
        (["HERE/empty", "HERE/none"], ["HERE/empty", "no config.json", "HERE/none"]),
        (["HERE/run", "--output=HERE/full"], ["HERE/full", "no report wrote (notes.txt)"]),
        (["HERE/run", "--output=HERE/file"], ["HERE/file", "is a file"]),
        (["HERE/run", "--output=HERE/run"], ["HERE/run", "config.json"]),
        (["HERE/run", "--colour=red"], ["colour"]),
    ],
)
def test_mistakes(commands, tmp_path, given, words):
    write_run(tmp_path / "run", [80.0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    for name in ("full/notes.txt", "file"):
        (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    result = commands.run("report", *(text.replace("HERE", str(tmp_path)) for text in given))
    assert result.status == 2 and result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    assert all(word.replace("HERE", str(tmp_path)) in result.err for word in words), result.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_added_to_a_report_is_not_lost(runs, tmp_path):
    output = tmp_path / "report"
    write.write_report([runs / "syn"], output)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        write.write_report([runs / "syn"], output)
    assert (output / "notes.txt").read_text() == "mine"


def test_a_report_cut_off_leaves_the_old_one(runs, tmp_path, monkeypatch):
    output = tmp_path / "report"
    write.write_report([runs / "syn"], output)
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "_pages", fail)
    with pytest.raises(KeyboardInterrupt):
        write.write_report([runs / "faim_0.5"], output)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert os.listdir(tmp_path) == ["report"]


@pytest.mark.parametrize("step", range(1, 12))
def test_a_report_killed_in_the_move_is_completed_by_the_next(runs, tmp_path, monkeypatch, step):
    """Every unlink and every move into place is a step; nothing of the old report is left in the end."""
    output, count = tmp_path / "report", 0
    write.write_report([runs / "mrb_0.5", runs / "back"], output)
    old = {path.name: path.read_bytes() for path in output.iterdir()}

    class Killed(BaseException):
        pass

    def counted(function):
        def wrapped(path, *arguments, **options):
            nonlocal count
            if path.parent == output or path.parent.parent == output:
                count += 1
                if count == step:
                    raise Killed
            return function(path, *arguments, **options)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(type(output), "unlink", counted(type(output).unlink))
        with pytest.raises(Killed):
            write.write_report([runs / "syn"], output)
    if "report.json" in os.listdir(output):  # it lists the old report, which is then whole
        assert {name: (output / name).read_bytes() for name in old} == old
    write.write_report([runs / "faim_0.5"], output)
    assert set(os.listdir(output)) == set(json.loads((output / "report.json").read_text())["files"])
    assert "FAIM" in page_of(output).text


def test_a_report_on_a_folder_in_use_is_refused_and_one_that_cannot_be_written_is_one_line(commands, runs, tmp_path):
    output = tmp_path / "report"
    with result_folder.reserved(output, ["report.json"]):
        busy = commands.run("report", runs / "syn", f"--output={output}")
    below = commands.run("report", runs / "syn", f"--output={runs / 'syn' / 'config.json' / 'report'}")
    for result, words in ((busy, "another process is writing here"), (below, "a part of the path is a file")):
        assert result.status == 2 and result.err.count("\n") == 1 and words in result.err, result
    assert os.listdir(tmp_path) == []


def test_a_manifest_of_another_program_is_foreign(runs, tmp_path):
    (tmp_path / "report.json").write_text('{"files": "none"')
    with pytest.raises(UserError, match=r"no report wrote \(report\.json\)"):
        write.write_report([runs / "syn"], tmp_path)


def phantom_run(folder, phantoms, *, system="faim"):
    """A run whose cases are those of the tiny phantom, with a registration of the first."""
    data = {"data.cases": 6, "data.validation_cases": 1, "data.test_cases": 2, "data.initialisation": "header"}
    data |= {"data.ct_window": [-160.0, 240.0], "data.mr_percentiles": [1.0, 99.0], "data.root": str(phantoms)}
    data |= {"data.organs": {"liver": [1], "spleen": [2], "right_kidney": [3], "left_kidney": [4]}}
    write_run(folder, [80.0, 90.0], system=system, changes=data)
    dataset = open_dataset(upgraded(read_study([folder]).runs[0].config).data, seed=0)
    name = dataset.split["test"][0]
    edit(folder / "evaluation" / "cases.csv", "case_0", name)
    case = dataset.load(name)
    arrays = {"displacement": np.zeros((*case.fixed.shape, 3), np.float32), "warped": case.moving}
    np.savez(folder / "evaluation" / f"{name}.npz", **arrays, warped_labels=case.moving_labels)
    return folder / "evaluation" / f"{name}.npz"


def test_stored_registrations_are_drawn_side_by_side(phantoms, tmp_path):
    phantom_run(tmp_path / "runs" / "faim", phantoms)
    phantom_run(tmp_path / "runs" / "vm", phantoms, system="voxelmorph1")
    np.savez(phantom_run(tmp_path / "runs" / "vm2", phantoms, system="voxelmorph2"), warped=np.zeros((2, 2, 2)))
    write_run(tmp_path / "runs" / "syn", [80.0, 90.0], system="syn")
    found = write.write_report([tmp_path / "runs"], tmp_path / "report")
    ((what, reason),) = found.problems
    assert what.endswith(".npz") and "vm2" in what and "displacement" in reason
    (part,) = found.parts
    (figure,) = [figure for figure in part.figures if figure.stem == "figure_4_ct_to_mr"]
    assert "No registration of this case is stored for SyN and VoxelMorph-2." in figure.caption
    for word in ("Fixed", "Moving", "FAIM", "VoxelMorph-1", "liver 80.0 %"):
        assert f">{word}</text>" in figure.svg
    assert imread(tmp_path / "report" / "figure_4_ct_to_mr.png").std() > 0.1


def test_a_data_set_that_is_gone(phantoms, tmp_path):
    phantom_run(tmp_path / "run", phantoms)
    edit(tmp_path / "run" / "config.json", '"phantom"', '"nifti"')
    edit(tmp_path / "run" / "config.json", f'"{phantoms}"', '"no/such/folder"')
    found = write.write_report([tmp_path / "run"], tmp_path / "report")
    ((what, reason),) = found.problems
    assert what.startswith(f"{tmp_path}/run: test case phantom_")
    assert "data set can't be opened" in reason and "no/such/folder" in reason
    assert (tmp_path / "report" / "index.html").exists()


@pytest.mark.slow
def test_from_runs_to_report(commands, arguments, config, phantoms, tmp_path):
    """Real runs: all figures come out, those of registrations and features included."""
    for lam in (0.5, 1.0):
        changes = {"train.steps": 2, "train.validate_every": 1, "loss.lam": lam}
        assert commands.run("main", *arguments(changes, workdir=tmp_path / "runs" / str(lam))).status == 0
    # The train step of F3RNet takes minutes to compile: its first parameters do here.
    config.update_from_flattened_dict({"model.name": "f3rnet", "train.steps": 2, "data.root": str(phantoms)})
    ours = tmp_path / "runs" / "f3rnet"
    ours.mkdir()
    write_config(config, ours)
    params = models.initialise(models.build(config.model), jax.random.key(0))
    kept = checkpoints.Checkpoints(ours)
    kept.save(2, params, {"count": jax.numpy.zeros(())}, config)
    kept.close()
    assert commands.run("evaluate", f"--workdir={ours}", "--pictures=1").status == 0

    result = commands.run("report", tmp_path / "runs", f"--output={tmp_path / 'report'}")
    assert (result.status, result.err) == (0, "")
    names = {path.stem for path in (tmp_path / "report").glob("*.png")}
    figures = ("overview", "figure_3", "figure_4", "figure_6", "training_similarity", "training_dice")
    assert names == {f"{figure}_ct_to_mr" for figure in figures}
    text = page_of(tmp_path / "report").text
    for row in ("F3RNet-MRB", "297,289", "tiny", "Features inside F3RNet-MRB"):
        assert row in text
