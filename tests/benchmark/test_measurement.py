"""Measurements on disk: what is written is read again."""

import dataclasses
import json

from f3r_jax.benchmark import suite, timing
from f3r_jax.benchmark.environment import Environment, Machine
from f3r_jax.benchmark.job import Job, Seconds, SetUp
from f3r_jax.benchmark.measurement import Measurement, Performance
from f3r_jax.benchmark.roofline import Cost

JOB = Job("jax", "train", variant="mrb", shape=(16, 16, 16), dtype="bfloat16")
WORKLOAD = (JOB, dataclasses.replace(JOB, who="torch"))
TASK = {"what": "train", "variant": "mrb", "shape": [16, 16, 16], "dtype": "bfloat16", "who": ["jax", "torch"]}
RESULT = Performance(SetUp(200.0, "cpu", Seconds(7.0, 8.0), parameters=1000), [9.0, 9.0], [9.0, 9.0], 500.0, None)


def stored(row: Measurement) -> dict:
    found = json.loads(json.dumps(row.to_json()))
    assert Measurement.from_json(found) == row
    return found


def test_a_measurement():
    results = {job.who: RESULT for job in WORKLOAD}
    found = stored(Measurement(WORKLOAD, results, timing.ratios(results), cost=Cost(1.0, 2.0)))
    facts = {"imported_mib": 200.0, "device": "cpu", "compile": {"wall": 7.0, "cpu": 8.0}, "parameters": 1000}
    result = facts | {"wall": [9.0, 9.0], "cpu": [9.0, 9.0], "peak_mib": 500.0, "device_peak_mib": None}
    one = {"median": 1.0, "min": 1.0, "max": 1.0}
    whole = {"results": {"jax": result, "torch": result}, "ratios": {"torch": {"wall": one, "cpu": one}}}
    assert found == TASK | whole | {"cost": {"flops": 1.0, "bytes": 2.0}}
    assert list(found) == [*TASK, *whole, "cost"] and list(found["results"]["jax"]) == list(result)


def test_a_measurement_without_results():
    assert stored(Measurement(WORKLOAD, no_memory=("torch", "killed"))) == TASK | {"no_memory": ["torch", "killed"]}
    assert stored(Measurement(WORKLOAD, error="torch ended")) == TASK | {"error": "torch ended"}


def test_a_convolution():
    job = Job("jax", "conv", kernel=(3, 3, 1), channels=16, shape=(8, 8, 8))
    set_up = SetUp(200.0, "cpu", note="slow")
    found = stored(Measurement((job,), {"jax": Performance(set_up, [1.0], [2.0], 500.0, 300.0)}))
    task = {"what": "conv", "kernel": [3, 3, 1], "channels": 16, "shape": [8, 8, 8], "who": ["jax"]}
    assert {name: found[name] for name in task} == task and found["ratios"] == {}
    result = found["results"]["jax"]
    assert (result["compile"], result["note"]) == (None, "slow") and "parameters" not in result


def test_a_job_is_identified_as_before():
    assert suite.identity((JOB,)) == (
        '[{"dtype": "bfloat16", "shape": [16, 16, 16], "variant": "mrb", "what": "train", "who": "jax"}]'
    )
    assert Job.from_json(json.loads(json.dumps(JOB.to_json()))) == JOB


def test_an_environment():
    environment = Environment("python", "2026-01-02", "abc", Machine("a CPU", 2, 8.0), {"jax": "0.10"})
    found = json.loads(json.dumps(environment.to_json()))
    assert Environment.from_json(found) == environment
    assert found["machine"] == {"cpu": "a CPU", "cores": 2, "memory_gib": 8.0}
    assert list(found) == ["command", "date", "commit", "machine", "versions"]
