"""SyN through ANTsPy: its field means the same to us as to ANTs. Needs the extra `baselines`."""

import importlib.util
import json

import numpy as np
import pytest

from conftest import TINY_DATA, make_case
from f3r_jax.common.errors import UserError
from f3r_jax.config import syn_config
from f3r_jax.evaluate import metrics, syn


@pytest.fixture(scope="module")
def settings():
    settings = syn_config(option="").syn
    settings.iterations = (20, 20, 10)
    return settings


def test_warped_by_our_warp_as_by_ants(ants, settings, monkeypatch):
    """On a grid with a spacing that differs along z, for a shift that differs along the axes."""
    case, own = make_case("ball", 1.5), []
    original = ants.registration

    def registration(**arguments):
        result = original(**arguments)
        own.append(result["warpedmovout"].numpy())
        return result

    monkeypatch.setattr(ants, "registration", registration)
    result = syn.register_case(case, settings, seed=0)
    inside = (slice(3, -3),) * 3
    np.testing.assert_allclose(result.warped[inside], own[0][inside], atol=1e-3 * np.ptp(case.moving))
    assert result.displacement.dtype == np.float32


@pytest.mark.extras("ants")
def test_registers_and_repeats_itself(settings):
    case = make_case("ball", 1.5)
    first, second = (syn.register_case(case, settings, seed=3) for _ in range(2))
    before, after = (
        metrics.organ_scores(case.fixed_labels, labels, organs={"ball": (1,)}, spacing=case.spacing)["ball"]["dice"]
        for labels in (case.moving_labels, first.warped_labels)
    )
    assert after > before + 5
    np.testing.assert_allclose(first.displacement, second.displacement, atol=0.05)


@pytest.mark.extras("ants")
@pytest.mark.slow
def test_main_evaluates_it_without_training(commands, phantoms, tmp_path):
    workdir = tmp_path / "syn"
    changes = TINY_DATA | {"data.root": phantoms, "syn.iterations": (5, 5, 5)}
    arguments = ["--config=configs/syn.py", f"--workdir={workdir}"]
    result = commands.run("main", *arguments, *(f"--config.{key}={value}" for key, value in changes.items()))
    assert result.status == 0, result.err
    summary = json.loads((workdir / "evaluation" / "summary.json").read_text())
    assert (summary["method"], summary["parameters"], summary["step"], summary["cases"]) == ("SyN", 0, None, 2)
    assert not (workdir / "checkpoints").exists()
    assert (workdir / "evaluation" / "phantom_0000.npz").exists() or list((workdir / "evaluation").glob("*.npz"))
    refused = commands.run("evaluate", f"--workdir={workdir}", "--step=3")
    assert refused.status == 2 and "SyN is not trained" in refused.err


def test_without_antspy_there_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="EXTRAS=baselines"):
        syn.require_ants()
