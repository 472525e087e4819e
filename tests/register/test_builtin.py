"""The weights in the package: their file, and what they register that they have never seen."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from f3r_jax import models
from f3r_jax.common.errors import UserError
from f3r_jax.config import SYNTHETIC, network_config
from f3r_jax.data.affine.start import Start
from f3r_jax.data.phantom.cases import phantom_case
from f3r_jax.data.transforms import Transform, field_on, warp_image
from f3r_jax.evaluate import controls
from f3r_jax.evaluate.inference import apply_displacement, register_case
from f3r_jax.register import network_stage
from f3r_jax.register.alignment import coarse_copies
from f3r_jax.register.pipeline import Settings, register_scans
from f3r_jax.register.volumes import WorkingVolumes
from f3r_jax.workdir import trained_network, weights

SHA256 = "c65713b03c50a83f9f8e627af6186459e2c1d08e85545400dba5e67d552ff9d9"
BUILTIN = Path(weights.BUILTIN)
LEAST_GAIN = 3.0  # points of Dice
HELD_OUT = {"ct_phases": ("arterial",), "mr_sequences": ("diffusion", "hepatobiliary")}


def test_the_file_is_the_one_that_was_measured(builtin_network):
    """The card has the figures of this file; other weights need a new card. Loading does not compare the shapes."""
    content = weights.BUILTIN_FILE.read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256 and len(content) < 2_000_000
    assert builtin_network.config.data.source == SYNTHETIC
    assert sum(leaf.size for leaf in jax.tree.leaves(builtin_network.params)) == 297_289
    network = models.build(builtin_network.config.model, dtype=builtin_network.config.train.dtype)
    trained_network.params_from(BUILTIN, network)  # raises an error for another architecture
    assert SHA256 in Path(__file__).parents[2].joinpath("docs", "weights", "builtin.md").read_text()


def test_registers_contrasts_that_it_has_never_seen(builtin_network, tmp_path):
    config = network_config(option="", lam=0.3, paper_lam=0.3, name="f3rnet", variant="mrb").data
    config.update(HELD_OUT)
    organs = {name: tuple(values) for name, values in config.organs.items()}
    cases = [phantom_case(str(index), index, tmp_path, config, seed=6) for index in range(6)]
    found = [register_case(builtin_network.predict, builtin_network.params, case) for case in cases]
    mean = np.mean([each.displacement for each in found], axis=0)

    def dice(case, labels):
        return np.mean([*controls.organ_dices(case.fixed_labels, labels, organs).values()])

    before = np.mean([dice(case, case.moving_labels) for case in cases])
    after = np.mean([dice(case, each.warped_labels) for case, each in zip(cases, found, strict=True)])
    average = np.mean([dice(case, apply_displacement(case, mean).warped_labels) for case in cases])
    assert after > before + 6 and after > average + 6, (before, after, average)


@pytest.mark.parametrize("moving", ["ct", "mr"])
def test_either_scan_may_be_the_moving_one(phantom_pair, builtin_network, moving):
    fixed, moved = phantom_pair["mr" if moving == "ct" else "ct"], phantom_pair[moving]
    settings = Settings(affine="none", refine=False, checkpoint=BUILTIN)
    result = register_scans(fixed, moved, settings, network=builtin_network)
    grid = fixed.image.grid
    warped = warp_image(moved.labels, field_on(result.transform, grid), grid, order=0)
    organs = {str(value): (value,) for value in (1, 2, 3, 4)}
    before, after = (
        np.mean([*controls.organ_dices(fixed.labels.data, each, organs).values()])
        for each in (moved.labels.data, warped)
    )
    assert after > before + LEAST_GAIN and result.similarity["network"] < result.similarity["affine"]


def test_another_network_is_still_refused_the_other_way(phantom_pair, builtin_network):
    config = builtin_network.config.copy_and_resolve_references()
    config.data.source = "phantom"
    with pytest.raises(UserError, match="was trained with the CT as the moving scan"):
        network_stage.check_direction(builtin_network._replace(config=config), "mr", "mr.nii.gz")


def test_a_coarse_deformation_is_one_of_two_estimates(phantom_pair, builtin_network):
    """A network that predicts no motion halves the coarse deformation, and sees the moving scan after it."""
    fixed, moving = phantom_pair["mr"], phantom_pair["ct"]
    grid, seen = fixed.image.grid, []
    shift = np.zeros((*grid.shape, 3), np.float32)
    shift[..., 0] = 4.0
    start = Start(Transform(grid, np.eye(4), shift), *coarse_copies(fixed, moving), candidates=())

    def still(params, moved, other):
        seen.append(np.asarray(moved)[0, ..., 0])
        return jnp.zeros((*moved.shape[:-1], 3)), moved

    config = builtin_network.config.copy_and_resolve_references()
    config.data.source = "phantom"  # not mirrored
    volumes = WorkingVolumes(fixed, moving, grid, np.eye(4))
    asleep = builtin_network._replace(predict=still, config=config)
    found = network_stage.predict_displacement(asleep, fixed, moving, volumes, start)
    np.testing.assert_allclose(found, shift / 2, atol=1e-5)
    first, second = seen
    np.testing.assert_allclose(second[5:-5], first[7:-3], atol=1e-5)


def test_mirrored_scans_get_the_mirrored_displacement(builtin_network):
    rng = np.random.default_rng(0)
    moving, fixed = (jnp.asarray(rng.random((1, 32, 32, 32, 1)), jnp.float32) for _ in range(2))
    u = network_stage.predicted(builtin_network, moving, fixed)
    mirrored = network_stage.predicted(builtin_network, moving[:, ::-1], fixed[:, ::-1])
    np.testing.assert_allclose(mirrored[:, ::-1] * jnp.array([-1.0, 1, 1]), u, atol=1e-4)
    alone = builtin_network.predict(builtin_network.params, moving, fixed)[0]
    assert float(jnp.abs(alone - u).max()) > 1e-3


def test_a_training_may_start_from_them(commands, arguments, tmp_path):
    settings = {"init": "builtin", "train.steps": 0, "model.name": "f3rnet"}
    result = commands.run("main", *arguments(settings))
    assert result.status == 0 and "init: builtin, step" in result.out, result
    assert json.loads((tmp_path / "run" / "config.json").read_text())["init"] == "builtin"
