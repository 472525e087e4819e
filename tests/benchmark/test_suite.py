import dataclasses
from functools import partial

import pytest

from f3r_jax.benchmark import jax_jobs, roofline, section_tables, suite, timing, workloads
from f3r_jax.benchmark.environment import Environment, Machine
from f3r_jax.benchmark.job import Job, Seconds, SetUp
from f3r_jax.benchmark.measurement import Measurement, Measurements, Performance
from f3r_jax.benchmark.roofline import Cost, Peaks
from f3r_jax.benchmark.suite import Section, Suite
from f3r_jax.benchmark.workloads import Target, Workload
from f3r_jax.models.f3rnet import VARIANTS

TINY = (16, 16, 16)
CPU, GPU = Target("cpu", ("torch", "voxelmorph")), Target("NVIDIA H100", ("torch", "voxelmorph"))
PEAKS = {name: Peaks(1e9, 1e9) for name in ("float32", "bfloat16")}
ENVIRONMENT = Environment(
    command="python -m f3r_jax.benchmark --suite",
    date="2026-01-02",
    commit="abc",
    machine=Machine("a CPU", 2, 8.0),
    versions={"jax": "0.10"},
)
SET_UP = SetUp(200.0, "cpu", Seconds(7.0, 8.0), parameters=1000)
RESULT = Performance(SET_UP, [9.0, 9.0], [9.0, 9.0], 500.0, None)


def measured(workload: Workload, *, repeats: int = 2, cost: Cost | None = None) -> Measurement:
    """Two runs of 9 s of each subject."""
    results = {job.who: RESULT for job in workload}
    return Measurement(workload, results, timing.ratios(results), cost=cost)


@pytest.fixture
def done(monkeypatch):
    """The workloads that the suite measured, which are faked; its sections are two small ones."""
    done = []

    def fake(workload: Workload, *, repeats: int) -> Measurement:
        done.append(workload)
        return measured(workload, repeats=repeats)

    sections = {
        "small": Section("Small", partial(workloads.networks, shape=TINY), section_tables.networks, suite.BOTH, 5, 20),
        "scaling": Section("Scaling", partial(workloads.scaling, edges=(100, 200)), section_tables.scaling, (), 3, 20),
    }
    monkeypatch.setattr(suite, "measure", fake)
    monkeypatch.setattr(suite, "cost_of", lambda _: Cost(1e9, 1e9))
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
    on_cpu, on_gpu = (suite.SECTIONS["large"].workloads(target) for target in (CPU, GPU))
    assert {len(workload) for workload in on_cpu + on_gpu} == {2}
    pairs = [(first.variant, first.what, other.who) for first, other in on_cpu]
    passes = ("forward", "train")
    assert sorted(pairs) == sorted(
        [(variant, what, "torch") for variant in ("mrb", "wo_f3d") for what in passes]
        + [(variant, what, "voxelmorph") for variant in ("mrb", "voxelmorph2") for what in passes]
    )
    assert len(on_gpu) == 2 * len(on_cpu)
    for first, other in on_gpu:
        assert dataclasses.replace(first, who=other.who) == other
    assert {job.dtype for workload in on_cpu for job in workload} == {"float32"}
    assert {job.dtype for workload in on_gpu for job in workload} == {"float32", "bfloat16"}


def test_networks_without_baselines_are_ours_alone():
    workloads_ = suite.SECTIONS["small"].workloads(Target("cpu", ()))
    assert [[job.who for job in workload] for workload in workloads_] == [["jax"]] * 4


@pytest.mark.parametrize(("target", "count"), [(CPU, 7 * 4 + 2 * 4), (GPU, 7 * 4 * 4)])
def test_memory_is_measured_for_every_variant(target, count):
    jobs = [job for (job,) in suite.SECTIONS["memory"].workloads(target)]
    assert len(jobs) == count == len(set(jobs))
    assert {job.variant for job in jobs} == set(VARIANTS)
    assert {job.shape for job in jobs} == {(144, 144, 128), (192, 160, 192)}
    assert target.gpu == any(job.dtype == "bfloat16" for job in jobs)


def test_every_job_of_the_plan_can_be_prepared(torch_jobs):
    known = jax_jobs.PREPARE.keys() | torch_jobs.PREPARE.keys()
    for section in suite.SECTIONS.values():
        assert {(job.who, job.what) for workload in section.workloads(GPU) for job in workload} <= known


def test_options_of_a_job_reach_the_network():
    network, _ = jax_jobs.network_of(Job("jax", "forward", variant="mrb", dtype="bfloat16", remat=True))
    assert (network.dtype, network.remat) == ("bfloat16", True)


# Going on


def test_sections_are_published_and_nothing_is_measured_twice(done, tiny_suite, capsys):
    assert suite.run_suite(("small", "scaling"), tiny_suite) == 0
    assert len(done) == 4 + 8
    page = tiny_suite.page.read_text()
    assert "## Small on cpu\n\n2026-01-02, commit abc, a CPU" in page and "## Scaling on cpu\n" in page
    assert "small: 4 of 4 workloads" in capsys.readouterr().out
    tiny_suite.page.unlink()
    assert suite.run_suite(("small", "scaling"), tiny_suite) == 0
    assert len(done) == 4 + 8
    assert tiny_suite.page.read_text() == page
    assert "small: finished before, skipped" in capsys.readouterr().out


def test_killed_suite_keeps_finished_sections_and_goes_on(done, tiny_suite, monkeypatch):
    fake = suite.measure

    def killed(workload: Workload, *, repeats: int) -> Measurement:
        if len(done) == 6:
            raise KeyboardInterrupt
        return fake(workload, repeats=repeats)

    monkeypatch.setattr(suite, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        suite.run_suite(("small", "scaling"), tiny_suite)
    assert "## Small on cpu" in tiny_suite.page.read_text()
    assert "## Scaling on cpu" not in tiny_suite.page.read_text()
    monkeypatch.setattr(suite, "measure", fake)
    assert suite.run_suite(("small", "scaling"), tiny_suite) == 0
    assert len(done) == len({suite.identity(workload) for workload in done}) == 12


@pytest.mark.parametrize(
    "change", [{"sources": "others"}, {"environment": dataclasses.replace(ENVIRONMENT, versions={"jax": "1"})}]
)
def test_other_circumstances_are_measured_anew(done, tiny_suite, change):
    suite.run_suite(("small",), tiny_suite)
    suite.run_suite(("small",), dataclasses.replace(tiny_suite, **change))
    assert len(done) == 8


def test_fresh_measures_the_chosen_sections_anew(done, tiny_suite):
    suite.run_suite(("small", "scaling"), tiny_suite)
    suite.run_suite(("small",), tiny_suite, fresh=True)
    assert len(done) == 12 + 4
    suite.run_suite(("small", "scaling"), tiny_suite)
    assert len(done) == 12 + 4


def test_sections_of_an_absent_device_stay(done, tiny_suite):
    gpu = "<!-- benchmark Small on NVIDIA H100: generated -->\n## Small on NVIDIA H100\n\n2025-01-01\n"
    gpu += "<!-- end of benchmark Small on NVIDIA H100 -->\n"
    old = gpu.replace("NVIDIA H100", "cpu").replace("2025-01-01", "2024-01-01")
    tiny_suite.page.write_text(f"# Benchmarks\n\n{gpu}\n{old}")
    suite.run_suite(("small",), tiny_suite)
    written = tiny_suite.page.read_text()
    assert gpu in written
    assert "2024-01-01" not in written and "2026-01-02" in written


def test_suite_whose_time_is_up_says_what_is_missing(done, tiny_suite, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(suite.time, "monotonic", lambda: next(clock))
    assert suite.run_suite(("small",), dataclasses.replace(tiny_suite, deadline=2.5)) == suite.UNFINISHED
    assert len(done) == 3
    assert "Unfinished: 1 of 4 workloads are not measured yet." in tiny_suite.page.read_text()
    assert suite.run_suite(("small",), tiny_suite) == 0
    assert len(done) == 4
    assert "Unfinished" not in tiny_suite.page.read_text()


def test_failure_is_told_and_measured_again(done, tiny_suite, monkeypatch):
    fake = suite.measure
    monkeypatch.setattr(suite, "measure", lambda workload, **_: Measurement(workload, error="torch ended"))
    assert suite.run_suite(("small",), tiny_suite) == 1
    assert "Failed: F3RNet-MRB, forward at 16 x 16 x 16: torch ended." in tiny_suite.page.read_text()
    monkeypatch.setattr(suite, "measure", fake)
    assert suite.run_suite(("small",), tiny_suite) == 0
    assert len(done) == 4


def test_baseline_that_is_not_installed_is_told(done, tiny_suite, capsys):
    suite.run_suite(("small",), tiny_suite)
    line = "VoxelMorph 0.3.4 is not installed, so nothing is compared with it"
    assert line in capsys.readouterr().out and line in tiny_suite.page.read_text()


def test_registrations_without_a_checkpoint_are_left(done, tiny_suite, capsys):
    assert suite.run_suite((suite.REGISTRATION,), tiny_suite) == 0
    assert "registration: skipped: " in capsys.readouterr().out
    assert not tiny_suite.page.exists()


# Tables


def found(*rows: Measurement, device: str = "cpu") -> Measurements:
    return Measurements(ENVIRONMENT, device, 2, rows, PEAKS)


def cells(text: str, start: str) -> list[str]:
    """The cells of the row of a table that starts so."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_networks_tell_bounds_and_hours_of_training():
    row = measured((Job("jax", "train", variant="mrb", shape=TINY),), cost=Cost(4.5e9, 0.9e9))
    text = "\n".join(section_tables.networks(found(row)))
    # 9 s at 1e9 a second: half of the FLOPs and a tenth of the bytes that could have been.
    assert cells(text, "F3RNet-MRB | train")[4:6] == ["50", "10"]
    # 9 s a step: 2.5 h and 100 h
    assert cells(text, "F3RNet-MRB | 0.111")[2:] == ["2.5", "100.0"]
    assert "1 GFLOP/s in float32" in text and "1 GB/s" in text


def test_bounds_are_those_of_the_pass_and_the_type():
    job = Job("jax", "train", variant="wo_f3d", shape=TINY, dtype="bfloat16")
    assert suite.cost_of(job) == roofline.train_cost("wo_f3d", TINY, dtype="bfloat16")
    assert suite.cost_of(Job("jax", "sweep", variant="mrb", shape=TINY)) is None


def test_voxelmorph_has_a_table_of_its_own_with_counts():
    jobs = tuple(Job(who, "train", variant="voxelmorph2", shape=TINY) for who in ("jax", "voxelmorph"))
    text = "\n".join(section_tables.networks(found(measured(jobs, cost=Cost(1.0, 1.0)))))
    assert cells(text, "VoxelMorph-2 | train")[2:4] == ["1,000", "1,000"]
    assert "hours for" not in text


def test_scaling_has_a_row_a_size_and_tells_what_does_not_fit():
    small, large = (
        {who: Job(who, "train", variant="mrb", shape=(edge,) * 3) for who in ("jax", "torch")} for edge in (100, 200)
    )
    rows = [measured((job,), cost=Cost(9e9, 0.0)) for job in (small["jax"], small["torch"], large["jax"])]
    rows.append(Measurement((large["torch"],), no_memory=("torch", "killed")))
    text = "\n".join(section_tables.scaling(found(*rows)))
    whole = "9.000 (9.000-9.000)"
    theirs = [whole, "9.000", "500"]
    assert cells(text, "train | 100 x 100 x 100")[2:] == [whole, "9.000", "500", "100", "0", *theirs]
    assert cells(text, "train | 200 x 200 x 200")[2:] == [whole, "1.125", "500", "100", "0", "does not fit", "", ""]


def test_memory_has_a_column_a_mode():
    jobs = [
        Job("jax", "train", variant="mrb", shape=TINY, **workloads.MODES[mode]._asdict())
        for mode in ("plain", "remat", "bf16")
    ]
    rows = [measured((jobs[0],))]
    rows.append(Measurement((jobs[1],), {"jax": dataclasses.replace(RESULT, device_peak_mib=300.0)}))
    rows.append(Measurement((jobs[2],), no_memory=("jax", "x")))
    text = "\n".join(section_tables.memory(found(*rows, device="NVIDIA H100")))
    assert cells(text, "network")[3:] == ["plain", "remat", "bf16"]
    assert cells(text, "F3RNet-MRB")[1:] == ["16 x 16 x 16", "training", "500", "300", "does not fit"]
    assert "no bf16 in hardware" not in text
    assert "no bf16 in hardware" in "\n".join(section_tables.memory(found(rows[0])))


# Processes


@pytest.mark.parametrize("who", ["jax", pytest.param("torch", marks=pytest.mark.extras("torch"))])
def test_size_that_does_not_fit_is_told(who):
    found = timing.measure((Job(who, "forward", variant="mrb", shape=(8192, 8192, 8192)),), repeats=1)
    assert found.no_memory[0] == who
    assert not found.results and found.error is None


def test_killed_process_counts_as_out_of_memory():
    with timing.Worker(Job("jax", "device")) as worker:
        assert worker.wait_until_ready().device
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(timing.NoMemoryError, match="killed"):
            worker.run()


def test_program_that_needs_more_than_there_is_does_not_run():
    class Needs:
        temp_size_in_bytes, output_size_in_bytes, alias_size_in_bytes = 3 * 2**30, 2**30, 2**29

    jax_jobs.check_fits(Needs, 3.5 * 2**30)
    with pytest.raises(MemoryError, match=r"needs 3.5 GiB, 3.0 GiB are free"):
        jax_jobs.check_fits(Needs, 3.0 * 2**30)


def test_subjects_on_different_devices_are_not_compared():
    timing.check_devices({"jax": SET_UP, "torch": SET_UP})
    with pytest.raises(ChildProcessError, match="different devices"):
        timing.check_devices({"jax": dataclasses.replace(SET_UP, device="NVIDIA H100"), "torch": SET_UP})


def test_torch_runs_without_compilation_where_that_fails_and_says_so(torch_jobs):
    calls = []

    def failing() -> None:
        raise RuntimeError("no compiler\nand more")

    run, note = torch_jobs.first_that_runs(failing, lambda: calls.append("plain"))
    run()
    assert calls == ["plain"]
    assert note == "torch.compile failed (RuntimeError: no compiler), so it ran without it"
    run, note = torch_jobs.first_that_runs(lambda: calls.append("compiled"), failing)
    run()
    assert calls == ["plain", "compiled", "compiled"] and note is None


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
