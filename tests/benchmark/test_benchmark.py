import json
import subprocess
import sys
import time

import pytest

from f3r_jax.benchmark import tables, worker
from f3r_jax.benchmark.job import Job, Seconds, SetUp
from f3r_jax.benchmark.measurement import Measurement, Performance, Range, Ratio

COUNTS = {
    "F3RNet-w/o F3D": 746_339,
    "F3RNet-w/ F3D": 237_609,
    "F3RNet-Enc": 490_707,
    "F3RNet-Dec": 543_683,
    "F3RNet-FR": 695_897,
    "F3RNet-MS": 288_051,
    "F3RNet-MRB": 297_289,
}


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "f3r_jax.benchmark", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def check_mistake(finished, told: str) -> None:
    assert finished.status == 2
    assert finished.out == ""
    (line,) = finished.err.splitlines()
    assert told in line


def test_parameters_prints_name_and_count_of_each_network():
    finished = run("--parameters")
    assert finished.returncode == 0, finished.stderr
    lines = (line.rsplit(" ", 1) for line in finished.stdout.splitlines())
    counts = {name: int(count) for name, count in lines}
    assert counts == COUNTS | {"FAIM": 233_683, "VoxelMorph-1": 259_675, "VoxelMorph-2": 300_547}


def test_a_short_job_is_warmed_up_by_many_runs_and_a_long_one_by_one():
    runs = []
    worker.warm_up(lambda: runs.append(0))
    assert len(runs) == worker.WARM_UP

    def long():
        runs.append(1)
        time.sleep(1.01)

    worker.warm_up(long)
    assert runs.count(1) == 1


def test_tiny_run_writes_json_and_keeps_other_sections_of_the_markdown(tmp_path):
    page = tmp_path / "BENCHMARKS.md"
    page.write_text("# Benchmarks\n\nBy hand.\n\n<!-- benchmark 8 x 8 x 8 on gpu: generated -->\nother\n")
    what = "--what=parameters,compile,forward,memory"
    options = [what, "--variant=mrb", "--shape=16,16,16", "--repeats=1", f"--markdown={page}"]
    finished = run(*options, f"--json={tmp_path / 'b.json'}")
    assert finished.returncode == 0, finished.stderr
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["parameters"] == {"F3RNet-MRB": 297_289}
    (row,) = report["measurements"]
    assert (row["what"], row["variant"], row["shape"]) == ("forward", "mrb", [16, 16, 16])
    result = row["results"]["jax"]
    assert len(result["wall"]) == len(result["cpu"]) == 1
    assert result["compile"]["wall"] > 0
    assert result["peak_mib"] > result["imported_mib"] > 0
    assert report["versions"]["jax"]
    assert "--repeats=1" in report["command"]
    text = page.read_text()
    assert text.startswith("# Benchmarks\n\nBy hand.\n") and "\nother\n" in text
    assert "297,289" in text and "| F3RNet-MRB | forward |" in text
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--variant=unet", "--variant: unknown 'unet'; known are wo_f3d"),
        ("--what=speed", "--what: unknown 'speed'"),
        ("--shape=64,64", "--shape=64,64: expected three sizes"),
        ("--shape=64,64,0", "--shape=64,64,0: expected three sizes"),
        ("--shape=64,64,8", "--shape: 64 x 64 x 8 voxels are too small"),
        ("--repeats=0", "--repeats=0: expected 1 or more"),
        ("--cases=3", "--cases: has no meaning without --what=registration"),
        ("--fresh", "--fresh: has no meaning without --suite"),
        ("--checkpoint=runs/mrb", "--checkpoint: has no meaning without --suite or --what=registration"),
        ("--json=/no/such/folder/b.json", "/no/such/folder/b.json: no such folder"),
    ],
)
def test_mistakes_get_one_line_and_status_2(commands, argument, told):
    check_mistake(commands.run("benchmark", argument), told)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--repeats=3", "--repeats: has no meaning with --what=registration"),
        ("--cases=0", "--cases=0: expected 1 or more"),
        ("--spacing=0", "--spacing=0.0: expected a length in mm"),
        ("--what=registration,conv", "registration is measured alone"),
        ("--checkpoint=no/such/run", "no/such/run"),
    ],
)
def test_mistakes_about_registrations_get_one_line_and_status_2(commands, argument, told):
    check_mistake(commands.run("benchmark", "--what=registration", argument), told)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--sections=small,tiny", "--sections: unknown 'tiny'; known are small, large"),
        ("--sections=", "--sections: expected at least one of small"),
        ("--shape=64,64,64", "--shape: has no meaning with --suite"),
        ("--what=forward", "--what: has no meaning with --suite"),
        ("--minutes=0", "--minutes=0.0: expected a time, above 0"),
        (f"--record={__file__}", "a file, where a folder was expected"),
        ("--checkpoint=no/such/run", "no/such/run"),
    ],
)
def test_mistakes_about_the_suite_get_one_line_and_status_2(commands, argument, told):
    check_mistake(commands.run("benchmark", "--suite", argument), told)


def row_of(**seconds: list[float]) -> Measurement:
    set_up = SetUp(200.0, "cpu", Seconds(7.0, 8.0))
    results = {who: Performance(set_up, wall, [1.0], 500.0, None) for who, wall in seconds.items()}
    ratio = Range.of([1.0, 1.5, 4.0])
    workload = tuple(Job(who, "train", variant="ms", shape=(8, 8, 8)) for who in seconds)
    return Measurement(workload, results, {who: Ratio(ratio, ratio) for who in seconds if who != "jax"})


def test_row_of_a_pass_tells_medians_and_spread():
    cells = tables.pass_row(row_of(jax=[2.0, 1.0, 3.0], torch=[2.0]), what=["compile", "memory"])
    assert cells == {
        "network": "F3RNet-MS",
        "pass": "train",
        "compile, s": "7.0",
        "f3r_jax, s": "2.000 (1.000-3.000)",
        "PyTorch, s": "2.000 (2.000-2.000)",
        "ratio to PyTorch": "1.50 (1.00-4.00)",
        "CPU ratio to PyTorch": "1.50 (1.00-4.00)",
        "f3r_jax, peak MiB (imports)": "500 (200)",
        "PyTorch, peak MiB (imports)": "500 (200)",
    }


def test_section_is_replaced_where_it_stands(tmp_path):
    page = tmp_path / "BENCHMARKS.md"
    for text, size in (("first\n", 8), ("second\n", 9), ("third\n", 8)):
        tables.replace_section(page, text, name=tables.section_name((size,) * 3, "cpu"))
    written = page.read_text()
    assert "first" not in written
    assert written.index("third") < written.index("second")
    assert written.count("## 8 x 8 x 8 on cpu\n") == 1
