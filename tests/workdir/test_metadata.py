import json
import re
import subprocess

import pytest
from ml_collections import ConfigDict

from f3r_jax.common import provenance
from f3r_jax.common.errors import UserError
from f3r_jax.config import flatten, network_config
from f3r_jax.workdir import metadata


def _config(*, lam: float) -> ConfigDict:
    return network_config(option="", lam=lam, paper_lam=lam, name="f3rnet", variant="mrb")


def test_config_comes_back(tmp_path):
    config = _config(lam=1.0)
    metadata.write_config(config, tmp_path)
    metadata.check_same_run(config, tmp_path)
    found = metadata.read_config(tmp_path)
    assert found.seed == config.seed and list(found.data.shape) == list(config.data.shape)
    assert set(flatten(found.to_dict())) == set(flatten(config.to_dict()))


def test_a_folder_of_another_run_is_left_alone(tmp_path):
    metadata.write_config(_config(lam=1.0), tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"loss\.lam is 1\.0 there and 2\.0 here"):
        metadata.check_same_run(_config(lam=2.0), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json found"):
        metadata.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        metadata.read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": 1}')
    with pytest.raises(UserError, match=r"config\.json: not the config of a run .*model"):
        metadata.read_config(tmp_path)


def test_origin_names_command_versions_and_commit(tmp_path):
    assert metadata.read_origin(tmp_path) == {}
    metadata.write_origin(tmp_path, ["main.py", "--config=a b.py", "--workdir=runs/x"])
    origin = json.loads((tmp_path / "origin.json").read_text())
    assert origin == metadata.read_origin(tmp_path)
    assert origin["command"] == "python -m f3r_jax.main '--config=a b.py' --workdir=runs/x"
    assert {"python", "f3r_jax", "jax", "numpy"} <= set(origin["versions"])


def test_commit_is_that_of_git():
    found = provenance.commit()
    if found is None:
        pytest.skip("the sources are not in a git repository")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"[0-9a-f]{12,}\+?", found) and head.startswith(found.rstrip("+"))
