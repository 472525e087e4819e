"""Which network a registration uses, and when its displacement is left out."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import f3r_jax.register.api as api
from f3r_jax.data.affine.start import ALIKE, Start
from f3r_jax.register import choices, pipeline, uncertainty
from f3r_jax.register.guidance import UNGUIDED, Guidance
from f3r_jax.register.network_choice import with_network
from f3r_jax.register.pair_spec import Files, recorded
from f3r_jax.register.pipeline import Settings, register_scans
from f3r_jax.register.volumes import WorkingVolumes
from f3r_jax.workdir import weights

BUILTIN = Path(weights.BUILTIN)
PAIR = (Files("mr.nii.gz"), Files("ct.nii.gz", mask="body.nii.gz", labels="l.nii.gz", landmarks="p.csv"))


@pytest.mark.parametrize("settings", [Settings(), Settings(affine="none", lam=0.4, diffeomorphic=False)])
def test_the_default_is_the_network_in_the_package(settings):
    assert with_network(settings, None, PAIR).checkpoint == BUILTIN


@pytest.mark.parametrize(
    "settings",
    [
        Settings(refine=False),
        Settings(guidance=Guidance(labels_weight=0.1)),
        Settings(guidance=Guidance(landmarks_weight=0.1)),
        Settings(guidance=Guidance(robust=True)),
    ],
)
def test_there_is_none_without_instance_optimisation_or_with_guidance(settings):
    assert with_network(settings, None, PAIR).checkpoint is None
    assert with_network(settings, "builtin", PAIR).checkpoint == BUILTIN


@pytest.mark.parametrize(
    "more", [{"exclude": "e.nii"}, {"rigid": "r.nii"}, {"preserve": "p.nii"}, {"extra": ("t1.nii",)}]
)
def test_there_is_none_where_more_than_the_scans_takes_part(more):
    files = (Files("mr.nii.gz", **more), Files("ct.nii.gz"))
    assert with_network(Settings(), None, files).checkpoint is None
    assert with_network(Settings(), "runs/mrb", files).checkpoint == Path("runs/mrb")


def test_none_may_be_asked_for():
    assert with_network(Settings(), choices.NO_NETWORK, PAIR).checkpoint is None


@pytest.mark.parametrize(("named", "expected"), [({}, "builtin"), ({"checkpoint": "none"}, None)])
def test_the_interface_of_python_has_the_same_default(tmp_path, builtin_network, named, expected):
    scans = {"fixed": tmp_path / "mr.nii.gz", "moving": tmp_path / "ct.nii.gz"}
    task = api._task(scans, named, tmp_path)
    settings = recorded(task, builtin_network)
    assert settings["checkpoint"] == expected and settings["step"] == (builtin_network.step if expected else None)
    assert json.dumps(settings) and task.settings.guidance == UNGUIDED


def moved_by(network, voxels):
    """The network, predicting one shift along x everywhere."""
    config = network.config.copy_and_resolve_references()
    config.data.source = "phantom"  # not mirrored

    def predict(params, moving, fixed):
        return jnp.zeros((*moving.shape[:-1], 3)).at[..., 0].set(voxels), moving

    return network._replace(predict=predict, config=config)


def test_a_displacement_that_matches_worse_is_left_out(phantom_pair, builtin_network):
    fixed, moving = phantom_pair["mr"], phantom_pair["ct"]
    alone = register_scans(fixed, moving, Settings(affine="none", iterations=20))
    lines = []
    settings = Settings(affine="none", iterations=20, checkpoint=BUILTIN)
    found = register_scans(fixed, moving, settings, network=moved_by(builtin_network, 12.0), note=lines.append)
    assert found.similarity["network"] > found.similarity["affine"]
    assert any("left out as it matches worse" in line for line in lines)
    np.testing.assert_array_equal(found.transform.displacement, alone.transform.displacement)
    network_alone = Settings(affine="none", refine=False, checkpoint=BUILTIN)
    kept = register_scans(fixed, moving, network_alone, network=moved_by(builtin_network, 12.0))
    np.testing.assert_allclose(kept.transform.displacement[..., 0], 12.0, rtol=1e-5)  # nothing else is asked for


def test_a_displacement_that_matches_better_is_kept(phantom_pair, builtin_network):
    fixed, moving = phantom_pair["mr"], phantom_pair["ct"]
    alone = register_scans(fixed, moving, Settings(affine="none", iterations=20))
    lines = []
    settings = Settings(affine="none", iterations=20, checkpoint=BUILTIN)
    found = register_scans(fixed, moving, settings, network=builtin_network, note=lines.append)
    assert found.similarity["network"] < found.similarity["affine"] and not any("left out" in line for line in lines)
    assert not np.array_equal(found.transform.displacement, alone.transform.displacement)


@pytest.mark.parametrize(("alike", "weight"), [(None, 0.0), (True, 0.0), (False, 0.5)])
def test_the_network_weighs_more_where_the_scans_match_badly(alike, weight):
    start = None
    if alike is not None:
        start = object.__new__(Start)  # all that counts is how well the chosen candidate matches
        mismatch = ALIKE * (0.9 if alike else 1.1)
        object.__setattr__(start, "candidates", (SimpleNamespace(mismatch_deformed=mismatch),))
    assert pipeline.network_weight(start) == weight


@pytest.mark.parametrize(("guidance", "weight"), [(UNGUIDED, 0.5), (Guidance(labels_weight=0.2), 0.0)])
def test_the_result_is_a_mean_unless_labels_drive(phantom_pair, builtin_network, monkeypatch, guidance, weight):
    """Instance optimisation that finds nothing leaves the network's displacement with its weight."""
    monkeypatch.setattr(pipeline, "network_weight", lambda start: 0.5)  # as for different people
    fixed, moving = (
        dataclasses.replace(scan, labels=dataclasses.replace(scan.labels, data=scan.labels.data.astype(np.float32)))
        for scan in (phantom_pair["mr"], phantom_pair["ct"])
    )
    monkeypatch.setattr(WorkingVolumes, "refined", lambda self, u, *others, **more: np.zeros_like(u))
    settings = Settings(affine="none", checkpoint=BUILTIN, guidance=guidance)
    found = register_scans(fixed, moving, settings, network=builtin_network).transform.displacement
    whole = register_scans(fixed, moving, dataclasses.replace(settings, refine=False), network=builtin_network)
    assert np.abs(whole.transform.displacement).max() > 1
    np.testing.assert_allclose(found, weight * whole.transform.displacement, atol=1e-5)


def test_the_network_takes_part_in_the_uncertainty(phantom_pair, builtin_network, monkeypatch):
    fixed, moving = phantom_pair["mr"], phantom_pair["ct"]
    settings = Settings(affine="none", iterations=5, spacing=9.6, checkpoint=BUILTIN)
    found = register_scans(fixed, moving, settings, network=builtin_network)
    seen, continued = [], uncertainty.pipeline.continued

    def again(alignment, fixed, moving, each, network, clock):
        result = continued(alignment, fixed, moving, each, network, clock)
        seen.append(result.similarity)
        return result

    monkeypatch.setattr(uncertainty.pipeline, "continued", again)
    spread = uncertainty.uncertainty(fixed, moving, found, settings, builtin_network)
    assert len(seen) == 3 and all("network" in each for each in seen) and float(spread.max()) > 0
