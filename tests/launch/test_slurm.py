"""Launchers against a real SLURM of one node: munged, slurmctld and slurmd, started here by the current user.

Debian's packages slurm-wlm and munge hold all three; nothing is configured outside a folder of the test.
"""

import contextlib
import getpass
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from test_cohort import Cohort
from test_launch import Study

from conftest import free_port, wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo")
SEARCH = os.environ["PATH"] + ":/usr/sbin:/sbin"
MISSING = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]

pytestmark = [
    pytest.mark.extras("submitit"),
    pytest.mark.skipif(bool(MISSING), reason=f"no SLURM here: {', '.join(MISSING)} not found"),
]

SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MailProg=/bin/true
ReturnToService=2
KillWait=1
MinJobAge=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES State=UP
"""


@contextlib.contextmanager
def cluster(folder):
    """Starts the three daemons, yields the environment that finds them, and ends them."""
    host, daemons = socket.gethostname().partition(".")[0], []
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    ports = {"controller": free_port(), "node": free_port()}
    text = SLURM_CONF.format(folder=folder, host=host, user=getpass.getuser(), **ports)
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # looked for even where nothing uses it
    environment = os.environ | {"PATH": SEARCH, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(*command):
        log = (folder / f"{command[0]}.out").open("w")
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        daemons.append(process)

    files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    given = (f"--{flag}={folder}/munge.{end}" for flag, end in files.items())
    try:
        start("munged", "--foreground", "--force", f"--key-file={key}", *given)
        wait_for((folder / "munge.socket").exists)
        start("slurmctld", "-D", "-i")
        start("slurmd", "-D", "-N", host)

        def idle():
            seen = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
            return seen.stdout.strip() == "idle"

        wait_for(idle, seconds=60)
        yield environment
    finally:
        subprocess.run(["scancel", "--me"], env=environment, capture_output=True, timeout=20)
        for process in reversed(daemons):
            process.terminate()
        for process in reversed(daemons):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def slurm():
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the socket's path has at most 107 characters
    with cluster(folder) as environment:
        yield environment
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def study(tmp_path, phantoms, slurm, monkeypatch):
    monkeypatch.setenv("FAKE_RUNS", str(tmp_path))
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm[name])
    study = Study(tmp_path, phantoms)
    study.arguments += ["--slurm", "--slurm_time=5"]
    return study


@pytest.fixture
def pairs(tmp_path, slurm, monkeypatch):
    """A cohort of three tasks."""
    monkeypatch.setenv("FAKE_COHORT", str(tmp_path))
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm[name])
    pairs = Cohort(tmp_path)
    pairs.arguments += ["--slurm", "--slurm_time=5"]
    return pairs


def squeue(*options):
    seen = subprocess.run(["squeue", "-h", "-r", *options], capture_output=True, text=True, check=True)
    return seen.stdout.split()


def jobs(study):
    return json.loads((study.output / "slurm" / "jobs.json").read_text())


def test_an_array_with_a_failing_run(study):
    study.behave(lam1="fail")
    process = study.process()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "submitted 3 runs as " in out and "2 of 3 runs finished" in out and "report over" in out
    assert err.startswith(f"failed: {study.names[1]}: error: the loss is not finite at step 3 (log: ")
    numbers = jobs(study)
    assert list(numbers) == list(study.names)
    assert len({number.partition("_")[0] for number in numbers.values()}) == 1  # one array, a task a run
    assert sorted(number.partition("_")[2] for number in numbers.values()) == ["0", "1", "2"]
    study.behave()
    process = study.process()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "3 runs: 2 finished, 1 failed" in out and "3 of 3 runs finished" in out
    assert study.started()[3:] == [study.names[1]]


def test_a_cancelled_job_is_resumed_by_launching_again(study):
    study.behave(lam05="hold")
    process = study.process()
    wait_for(lambda: study.waits(study.names[0]) and len(study.starts()) == 3, seconds=60)
    subprocess.run(["scancel", jobs(study)[study.names[0]]], check=True)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "2 of 3 runs finished" in out
    assert study.names[0] in err and "cut off" in err and "step 2/6" in err
    study.behave()
    process = study.process()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert study.started()[3:] == [study.names[0]]
    assert study.steps(study.names[0]) == [1, 2, 3, 4, 5, 6]


def test_tasks_outlive_the_launcher_and_are_found_again(study):
    study.behave(lam05="hold", lam1="hold", lam2="hold")
    process = study.process("--jobs=2")
    wait_for(lambda: study.waits(study.names[0]) and study.waits(study.names[1]), seconds=60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    number = jobs(study)[study.names[0]].partition("_")[0]
    assert process.returncode == 130 and f"scancel {number}" in err
    assert sorted(squeue("-o", "%T")) == ["PENDING", "RUNNING", "RUNNING"]  # --jobs limits the tasks at a time
    process = study.process("--jobs=2")
    out = ""
    for line in process.stdout:
        out += line
        if "in the queue" in line or "submitted" in line:
            time.sleep(3)
            assert len(study.starts()) == 2 and len(squeue("-o", "%i")) == 3
            study.behave()
    assert process.wait(timeout=120) == 0, process.stderr.read()
    assert "3 runs are already in the queue" in out and "submitted" not in out
    assert len(study.starts()) == 3


@pytest.mark.slow  # SLURM waits two minutes before it starts a task again
def test_a_task_out_of_time_is_queued_again_and_goes_on(study):
    """SLURM's warning is given by hand: a time limit is at least a minute."""
    study.behave(lam05="hold")
    process = study.process()
    wait_for(lambda: study.waits(study.names[0]), seconds=60)
    first = study.starts()[study.started().index(study.names[0])][1]
    os.kill(first, signal.SIGUSR2)  # SLURM warns every process of a task, the run often before submitit
    time.sleep(1)
    subprocess.run(["scancel", "--signal=USR2", jobs(study)[study.names[0]]], check=True)
    wait_for(lambda: study.started().count(study.names[0]) == 2, seconds=300)
    study.behave()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "3 of 3 runs finished" in out
    assert not Path(f"/proc/{first}").exists()
    assert study.steps(study.names[0]) == [1, 2, 3, 4, 5, 6]


def test_a_cohort_with_a_failing_pair(pairs):
    pairs.behave(case1="fail")
    process = pairs.process()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and err == "failed: case1: not a scan\n", err
    assert "submitted 3 tasks as " in out and "5 pairs: 4 registered, 1 failed" in out
    numbers = json.loads((pairs.output / "cohort" / "jobs.json").read_text())
    assert list(numbers) == ["rows_1-2", "rows_3-4", "rows_5-5"]
    pairs.behave()
    process = pairs.process()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "4 finished; 1 of 3 tasks to do" in out and pairs.started()[3:] == ["1-2"]
    assert [row["status"] for row in pairs.rows().values()] == ["done"] * 5


def test_tasks_of_a_cohort_outlive_the_launcher_and_a_cancelled_one_is_resumed(pairs):
    pairs.behave(case3="hold")
    process = pairs.process()
    wait_for((pairs.output / "case2" / "summary.json").exists, seconds=60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    numbers = json.loads((pairs.output / "cohort" / "jobs.json").read_text())
    assert process.returncode == 130 and f"scancel {numbers['rows_1-2'].partition('_')[0]}" in err
    process = pairs.process("--per_task=3")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "rows_3-4 is in the queue with another --per_task" in err
    process = pairs.process()
    for line in process.stdout:
        if "in the queue" in line:
            subprocess.run(["scancel", numbers["rows_3-4"]], check=True)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "not registered: case3: cut off" in err, err
    pairs.behave()
    process = pairs.process()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "4 finished; 1 of 3 tasks to do" in out and pairs.started()[-1] == "3-4"


def test_what_sbatch_refuses_is_one_line(study):
    process = study.process("--slurm_partition=none")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = err.splitlines()
    assert line.startswith("error: sbatch: ") and "Invalid partition" in line
    assert study.starts() == []
