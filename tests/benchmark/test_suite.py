import dataclasses
import json
from functools import partial

import pytest

from f3r_jax.benchmark import jax_jobs, roofline, section_tables, suite, timing, workloads
from f3r_jax.benchmark.suite import Section, Suite
from f3r_jax.benchmark.workloads import Machine
from f3r_jax.models.f3rnet import VARIANTS

TINY = (16, 16, 16)
CPU, GPU = Machine("cpu", ("torch", "voxelmorph")), Machine("NVIDIA H100", ("torch", "voxelmorph"))
PEAKS = {name: {"flops_per_second": 1e9, "bytes_per_second": 1e9} for name in ("float32", "bfloat16")}
ENVIRONMENT = {
    "command": "python -m f3r_jax.benchmark --suite",
    "date": "2026-01-02",
    "commit": "abc",
    "machine": {"cpu": "a CPU", "cores": 2, "memory_gib": 8.0},
    "versions": {"jax": "0.10"},
}


def result(**changes: object) -> dict:
    """The answers of a subject with two runs of 9 s."""
    clocks = {"wall": [9.0, 9.0], "cpu": [9.0, 9.0], "compile": {"wall": 7.0}}
    sizes = {"imported_mib": 200.0, "peak_mib": 500.0, "device_peak_mib": None, "parameters": 1000}
    return {"device": "cpu"} | clocks | sizes | changes


def measured(jobs: list[dict], *, repeats: int) -> dict:
    task = {key: value for key, value in jobs[0].items() if key != "who"} | {"who": [job["who"] for job in jobs]}
    results = {job["who"]: result() for job in jobs}
    return task | {"results": results, "ratios": timing.ratios(results)}


@pytest.fixture
def groups(monkeypatch):
    """The groups that the suite measured, which are faked; its sections are two small ones."""
    done = []

    def fake(jobs: list[dict], *, repeats: int) -> dict:
        done.append(jobs)
        return measured(jobs, repeats=repeats)

    sections = {
        "small": Section("Small", partial(workloads.networks, shape=TINY), section_tables.networks, suite.BOTH, 5, 20),
        "scaling": Section("Scaling", partial(workloads.scaling, edges=(100, 200)), section_tables.scaling, (), 3, 20),
    }
    monkeypatch.setattr(suite, "measure", fake)
    monkeypatch.setattr(suite, "bounds_of", lambda _: {"cost": {"flops": 1e9, "bytes": 1e9}})
    monkeypatch.setattr(suite, "SECTIONS", sections)
    return done


@pytest.fixture
def tiny_suite(tmp_path) -> Suite:
    folder = tmp_path / "cpu"
    folder.mkdir()
    page = tmp_path / "BENCHMARKS.md"
    return Suite(CPU._replace(baselines=("torch",)), ENVIRONMENT, "sources", folder, page, peaks=PEAKS)


# The plan


def test_networks_are_measured_against_both_baselines_and_in_bf16_on_a_gpu_alone():
    on_cpu, on_gpu = (suite.SECTIONS["large"].groups(machine) for machine in (CPU, GPU))
    assert {len(group) for group in on_cpu + on_gpu} == {2}
    pairs = [(group[0]["variant"], group[0]["what"], group[1]["who"]) for group in on_cpu]
    passes = ("forward", "train")
    assert sorted(pairs) == sorted(
        [(variant, what, "torch") for variant in ("mrb", "wo_f3d") for what in passes]
        + [(variant, what, "voxelmorph") for variant in ("mrb", "voxelmorph2") for what in passes]
    )
    assert len(on_gpu) == 2 * len(on_cpu)
    for ours, other in on_gpu:
        assert ours | {"who": None} == other | {"who": None}
    assert not any("dtype" in job for group in on_cpu for job in group)


def test_networks_without_baselines_are_ours_alone():
    groups = suite.SECTIONS["small"].groups(Machine("cpu", ()))
    assert [[job["who"] for job in group] for group in groups] == [["jax"]] * 4


@pytest.mark.parametrize(("machine", "count"), [(CPU, 7 * 4 + 2 * 4), (GPU, 7 * 4 * 4)])
def test_memory_is_measured_for_every_variant(machine, count):
    jobs = [job for (job,) in suite.SECTIONS["memory"].groups(machine)]
    assert len(jobs) == count == len({json.dumps(job) for job in jobs})
    assert {job["variant"] for job in jobs} == set(VARIANTS)
    assert {job["shape"] for job in jobs} == {(144, 144, 128), (192, 160, 192)}
    assert machine.gpu == any(job.get("dtype") == "bfloat16" for job in jobs)


def test_every_job_of_the_plan_can_be_prepared(torch_jobs):
    known = jax_jobs.PREPARE.keys() | torch_jobs.PREPARE.keys()
    for section in suite.SECTIONS.values():
        assert {(job["who"], job["what"]) for group in section.groups(GPU) for job in group} <= known


def test_options_of_a_job_reach_the_network():
    network, _ = jax_jobs.network_of({"variant": "mrb", "dtype": "bfloat16", "remat": True})
    assert (network.dtype, network.remat) == ("bfloat16", True)


# Going on


def test_sections_are_published_and_nothing_is_measured_twice(groups, tiny_suite, capsys):
    assert suite.run_suite(("small", "scaling"), tiny_suite) == 0
    assert len(groups) == 4 + 8
    page = tiny_suite.page.read_text()
    assert "## Small on cpu\n\n2026-01-02, commit abc, a CPU" in page and "## Scaling on cpu\n" in page
    assert "small: 4 of 4 groups" in capsys.readouterr().out
    tiny_suite.page.unlink()
    assert suite.run_suite(("small", "scaling"), tiny_suite) == 0
    assert len(groups) == 4 + 8
    assert tiny_suite.page.read_text() == page
    assert "small: finished before, skipped" in capsys.readouterr().out


def test_killed_suite_keeps_finished_sections_and_goes_on(groups, tiny_suite, monkeypatch):
    fake = suite.measure

    def killed(jobs: list[dict], *, repeats: int) -> dict:
        if len(groups) == 6:
            raise KeyboardInterrupt
        return fake(jobs, repeats=repeats)

    monkeypatch.setattr(suite, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        suite.run_suite(("small", "scaling"), tiny_suite)
    assert "## Small on cpu" in tiny_suite.page.read_text()
    assert "## Scaling on cpu" not in tiny_suite.page.read_text()
    monkeypatch.setattr(suite, "measure", fake)
    assert suite.run_suite(("small", "scaling"), tiny_suite) == 0
    assert len(groups) == len({suite.identity(group) for group in groups}) == 12


@pytest.mark.parametrize("change", [{"sources": "others"}, {"environment": ENVIRONMENT | {"versions": {"jax": "1"}}}])
def test_other_circumstances_are_measured_anew(groups, tiny_suite, change):
    suite.run_suite(("small",), tiny_suite)
    suite.run_suite(("small",), dataclasses.replace(tiny_suite, **change))
    assert len(groups) == 8


def test_fresh_measures_the_chosen_sections_anew(groups, tiny_suite):
    suite.run_suite(("small", "scaling"), tiny_suite)
    suite.run_suite(("small",), tiny_suite, fresh=True)
    assert len(groups) == 12 + 4
    suite.run_suite(("small", "scaling"), tiny_suite)
    assert len(groups) == 12 + 4


def test_sections_of_an_absent_device_stay(groups, tiny_suite):
    gpu = "<!-- benchmark Small on NVIDIA H100: generated -->\n## Small on NVIDIA H100\n\n2025-01-01\n"
    gpu += "<!-- end of benchmark Small on NVIDIA H100 -->\n"
    old = gpu.replace("NVIDIA H100", "cpu").replace("2025-01-01", "2024-01-01")
    tiny_suite.page.write_text(f"# Benchmarks\n\n{gpu}\n{old}")
    suite.run_suite(("small",), tiny_suite)
    written = tiny_suite.page.read_text()
    assert gpu in written
    assert "2024-01-01" not in written and "2026-01-02" in written


def test_suite_whose_time_is_up_says_what_is_missing(groups, tiny_suite, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(suite.time, "monotonic", lambda: next(clock))
    assert suite.run_suite(("small",), dataclasses.replace(tiny_suite, deadline=2.5)) == suite.UNFINISHED
    assert len(groups) == 3
    assert "Unfinished: 1 of 4 groups are not measured yet." in tiny_suite.page.read_text()
    assert suite.run_suite(("small",), tiny_suite) == 0
    assert len(groups) == 4
    assert "Unfinished" not in tiny_suite.page.read_text()


def test_failure_is_told_and_measured_again(groups, tiny_suite, monkeypatch):
    fake = suite.measure
    monkeypatch.setattr(suite, "measure", lambda jobs, **_: measured(jobs, repeats=1) | {"error": "torch ended"})
    assert suite.run_suite(("small",), tiny_suite) == 1
    assert "Failed: F3RNet-MRB, forward at 16 x 16 x 16: torch ended." in tiny_suite.page.read_text()
    monkeypatch.setattr(suite, "measure", fake)
    assert suite.run_suite(("small",), tiny_suite) == 0
    assert len(groups) == 4


def test_baseline_that_is_not_installed_is_told(groups, tiny_suite, capsys):
    suite.run_suite(("small",), tiny_suite)
    line = "VoxelMorph 0.3.4 is not installed, so nothing is compared with it"
    assert line in capsys.readouterr().out and line in tiny_suite.page.read_text()


def test_registrations_without_a_checkpoint_are_left(groups, tiny_suite, capsys):
    assert suite.run_suite((suite.REGISTRATION,), tiny_suite) == 0
    assert "registration: skipped: " in capsys.readouterr().out
    assert not tiny_suite.page.exists()


# Tables


def report(*rows: dict, device: str = "cpu") -> dict:
    return {"device": device, "repeats": 2, "peaks": PEAKS, "measurements": list(rows)}


def cells(text: str, start: str) -> list[str]:
    """The cells of the row of a table that starts so."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_networks_tell_bounds_and_hours_of_training():
    job = {"who": "jax", "what": "train", "variant": "mrb", "shape": TINY}
    row = measured([job], repeats=2) | {"cost": {"flops": 4.5e9, "bytes": 0.9e9}}
    text = "\n".join(section_tables.networks(report(row)))
    # 9 s at 1e9 a second: half of the FLOPs and a tenth of the bytes that could have been.
    assert cells(text, "F3RNet-MRB | train")[4:6] == ["50", "10"]
    # 9 s a step: 2.5 h and 100 h
    assert cells(text, "F3RNet-MRB | 0.111")[2:] == ["2.5", "100.0"]
    assert "1 GFLOP/s in float32" in text and "1 GB/s" in text


def test_bounds_are_those_of_the_pass_and_the_type():
    job = {"who": "jax", "what": "train", "variant": "wo_f3d", "shape": TINY, "dtype": "bfloat16"}
    expected = roofline.train_cost("wo_f3d", TINY, dtype="bfloat16")
    assert suite.bounds_of(job) == {"cost": {"flops": expected.flops, "bytes": expected.bytes}}
    assert suite.bounds_of({"who": "jax", "what": "sweep", "variant": "mrb", "shape": TINY}) == {}


def test_voxelmorph_has_a_table_of_its_own_with_counts():
    jobs = [{"who": who, "what": "train", "variant": "voxelmorph2", "shape": TINY} for who in ("jax", "voxelmorph")]
    row = measured(jobs, repeats=2) | {"cost": {"flops": 1.0, "bytes": 1.0}}
    text = "\n".join(section_tables.networks(report(row)))
    assert cells(text, "VoxelMorph-2 | train")[2:4] == ["1,000", "1,000"]
    assert "hours for" not in text


def test_scaling_has_a_row_a_size_and_tells_what_does_not_fit():
    tasks = [{"what": "train", "variant": "mrb", "shape": (edge,) * 3} for edge in (100, 200)]
    cost = {"cost": {"flops": 9e9, "bytes": 0.0}}
    rows = [measured([{"who": who, **tasks[0]}], repeats=2) | cost for who in ("jax", "torch")]
    rows.append(measured([{"who": "jax", **tasks[1]}], repeats=2) | cost)
    rows.append({**tasks[1], "who": ["torch"], "no_memory": ["torch", "killed"]})
    text = "\n".join(section_tables.scaling(report(*rows)))
    whole = "9.000 (9.000-9.000)"
    theirs = [whole, "9.000", "500"]
    assert cells(text, "train | 100 x 100 x 100")[2:] == [whole, "9.000", "500", "100", "0", *theirs]
    assert cells(text, "train | 200 x 200 x 200")[2:] == [whole, "1.125", "500", "100", "0", "does not fit", "", ""]


def test_memory_has_a_column_a_mode():
    job = {"who": "jax", "what": "train", "variant": "mrb", "shape": TINY}
    rows = [measured([job | options], repeats=0) for options in (workloads.MODES["plain"], workloads.MODES["remat"])]
    rows[1]["results"]["jax"]["device_peak_mib"] = 300.0
    rows.append({key: job[key] for key in ("what", "variant", "shape")} | workloads.MODES["bf16"] | {"no_memory": "x"})
    text = "\n".join(section_tables.memory(report(*rows, device="NVIDIA H100")))
    assert cells(text, "network")[3:] == ["plain", "remat", "bf16"]
    assert cells(text, "F3RNet-MRB")[1:] == ["16 x 16 x 16", "training", "500", "300", "does not fit"]
    assert "no bf16 in hardware" not in text
    assert "no bf16 in hardware" in "\n".join(section_tables.memory(report(rows[0])))


# Processes


@pytest.mark.parametrize("who", ["jax", pytest.param("torch", marks=pytest.mark.extras("torch"))])
def test_size_that_does_not_fit_is_told(who):
    job = {"who": who, "what": "forward", "variant": "mrb", "shape": (8192, 8192, 8192)}
    found = timing.measure([job], repeats=1)
    assert found["no_memory"][0] == who
    assert "results" not in found and "error" not in found


def test_killed_process_counts_as_out_of_memory():
    with timing.Subject({"who": "jax", "what": "device"}) as subject:
        assert subject.answer()["device"]
        subject.process.kill()
        subject.process.wait()
        with pytest.raises(timing.NoMemoryError, match="killed"):
            subject.run()


def test_program_that_needs_more_than_there_is_does_not_run():
    class Needs:
        temp_size_in_bytes, output_size_in_bytes, alias_size_in_bytes = 3 * 2**30, 2**30, 2**29

    jax_jobs.check_fits(Needs, 3.5 * 2**30)
    with pytest.raises(MemoryError, match=r"needs 3.5 GiB, 3.0 GiB are free"):
        jax_jobs.check_fits(Needs, 3.0 * 2**30)


def test_subjects_on_different_devices_are_not_compared():
    timing.check_devices({"jax": result(), "torch": result()})
    with pytest.raises(ChildProcessError, match="different devices"):
        timing.check_devices({"jax": result(device="NVIDIA H100"), "torch": result()})


def test_torch_runs_without_compilation_where_that_fails_and_says_so(torch_jobs):
    calls = []

    def failing() -> None:
        raise RuntimeError("no compiler\nand more")

    run, facts = torch_jobs.first_that_runs(failing, lambda: calls.append("plain"))
    run()
    assert calls == ["plain"]
    assert facts == {"note": "torch.compile failed (RuntimeError: no compiler), so it ran without it"}
    run, facts = torch_jobs.first_that_runs(lambda: calls.append("compiled"), failing)
    run()
    assert calls == ["plain", "compiled", "compiled"] and not facts


def test_memory_that_runs_out_is_no_failure_of_the_compiler(torch_jobs):
    def failing() -> None:
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        torch_jobs.first_that_runs(failing, lambda: None)


def test_autocast_computes_in_bfloat16_and_returns_float32(torch, torch_jobs):
    seen = []

    class Sum(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv3d(2, 3, 1)

        def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
            seen.append(self.conv(torch.cat([moving, fixed], dim=1)))
            return seen[-1]

    volume = torch.ones(1, 1, 2, 2, 2)
    assert torch_jobs.Autocast(Sum(), "cpu")(volume, volume).dtype == torch.float32
    assert seen[0].dtype == torch.bfloat16
