"""Every config loads, names its own system and the paper's lambda, and shares the rest with the others."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from f3r_jax.common.errors import UserError
from f3r_jax.config import upgraded
from f3r_jax.data.synthesis.settings import Settings, of_config
from f3r_jax.evaluate.instance import settings_of
from f3r_jax.models import build, label
from f3r_jax.ops.instance_optimisation import Refinement

CONFIGS = Path(__file__).parent.parent / "configs"
SYSTEMS = {  # label, the paper's lambda (Sec. 3.2)
    "wo_f3d": ("F3RNet-w/o F3D", 1.5),
    "w_f3d": ("F3RNet-w/ F3D", 1.5),
    "enc": ("F3RNet-Enc", 2.0),
    "dec": ("F3RNet-Dec", 1.5),
    "fr": ("F3RNet-FR", 1.5),
    "ms": ("F3RNet-MS", 2.0),
    "mrb": ("F3RNet-MRB", 1.5),
    "vm1": ("VoxelMorph-1", 1.5),
    "vm2": ("VoxelMorph-2", 1.5),
    "faim": ("FAIM", 1.5),
}


def load(name, option=""):
    spec = importlib.util.spec_from_file_location(f"config_{name}", CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(option)


def test_there_is_a_config_for_each_system():
    assert {path.stem for path in CONFIGS.glob("*.py")} == {*SYSTEMS, "syn", "instance", "synthetic"}


@pytest.mark.parametrize("name", SYSTEMS)
def test_names_its_system(name):
    config = load(name)
    build(config.model)
    assert label(config.model) == SYSTEMS[name][0]
    assert f"configs/{name}.py" in (CONFIGS / f"{name}.py").read_text()


@pytest.mark.parametrize("name", SYSTEMS)
def test_paper_option_is_the_papers_setting(name):
    config = load(name, "paper")
    assert config.loss.lam == SYSTEMS[name][1]
    assert (config.optim.learning_rate, config.train.batch_size, config.data.test_cases) == (1e-5, 1, 10)
    assert (config.data.shape, config.data.spacing) == ((144, 144, 128), (1.0, 1.0, 1.0))
    assert config.data.root is None


@pytest.mark.parametrize("option", ["", "paper"])
def test_systems_differ_in_model_and_lambda_alone_and_voxelmorph_in_steps(option):
    first = load("mrb", option).to_dict()
    for name in SYSTEMS:
        other = load(name, option).to_dict()
        if name in ("vm1", "vm2") and not option:  # a step takes less time
            assert other["train"].pop("steps") == 10_000
            other["train"]["steps"] = first["train"]["steps"]
        assert {key: other[key] for key in ("data", "augment", "optim", "train", "seed")} == {
            key: first[key] for key in ("data", "augment", "optim", "train", "seed")
        }
        assert other["loss"]["mind"] == first["loss"]["mind"]
        assert other["instance"] == first["instance"]
    assert load("syn", option).data == load("instance", option).data == load("mrb", option).data


def test_syn_runs_at_full_resolution():
    config = load("syn")
    assert config.syn.iterations == (100, 70, 50) and config.syn.iterations[-1] > 0
    assert set(config) == {"seed", "data", "model", "syn"}


@pytest.mark.parametrize("option", ["", "paper"])
def test_instance_optimisation_goes_from_coarse_to_fine(option):
    config = load("instance", option)
    assert set(config) == {"seed", "data", "model", "instance"}
    settings = settings_of(config.instance)
    spacings = [level.spacing for level in settings.levels]
    assert spacings == sorted(spacings, reverse=True)
    if option == "paper":
        assert settings == Refinement()  # as `register` does
    after = settings_of(load("mrb", option).instance)
    assert {level.spacing for level in after.levels} < set(spacings) and after.mind == settings.mind


def test_synthetic_pairs_differ_from_the_phantom_in_data_loss_and_length():
    config, first = load("synthetic"), load("mrb")
    assert config.model == first.model and config.data.source == "synthetic"
    assert {field.name for field in dataclasses.fields(Settings)} - {"spacing"} < set(config.synthesis)
    settings = of_config(config.synthesis, spacing=config.data.spacing)
    assert settings == Settings()  # the config shows what holds by default
    assert not any(config.augment.values())
    with pytest.raises(UserError, match="'paper'"):
        load("synthetic", "paper")


def test_a_config_from_before_a_key_is_completed():
    config = load("mrb")
    old = config.copy_and_resolve_references()
    del (
        old["augment"],
        old.train["crop"],
        old.loss["similarity"],
        old.loss["epe"],
        old.data["mr_sequences"],
        old.model["remat"],
        old["instance"],
    )
    found = upgraded(old)
    assert not any(found.augment.values())
    assert (found.loss.similarity, found.loss.epe, found.model.remat) == ("mind", 0.0, False)
    assert tuple(found.train.crop) == (0, 0, 0)
    assert found.instance == config.instance
    assert "augment" not in old and len(found.data.mr_sequences) == 5
    assert found.to_dict().keys() == config.to_dict().keys()
    # A run that was evaluated with instance optimisation has the same result again.
    del (older := config.copy_and_resolve_references()).instance["network_weight"]
    assert upgraded(older).instance.network_weight == 0.0 != config.instance.network_weight


@pytest.mark.parametrize("name", [*SYSTEMS, "syn", "instance", "synthetic"])
def test_unknown_option(name):
    with pytest.raises(UserError, match="'half'"):
        load(name, "half")
