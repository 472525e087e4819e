import os
import zlib

import jax
import pytest

from f3r_jax.common.compilation_cache import keep_compiled_programs, remove_damaged

OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """As in a new process of a user whose cache folder is tmp_path."""
    before = {option: getattr(jax.config, option) for option in OPTIONS}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    for option, value in before.items():
        jax.config.update(option, value)


@pytest.mark.usefixtures("no_cache")
def test_programs_are_kept_in_the_users_cache(tmp_path):
    folder = keep_compiled_programs()
    assert folder.is_dir() and folder.parent == tmp_path / "f3r_jax"
    assert jax.config.jax_compilation_cache_dir == str(folder)


@pytest.mark.usefixtures("no_cache")
def test_a_setting_of_jax_wins(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert keep_compiled_programs() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")


@pytest.mark.usefixtures("no_cache")
def test_a_cache_folder_that_cannot_be_written_is_none(tmp_path):
    (tmp_path / "f3r_jax").write_text("a file")
    assert keep_compiled_programs() is None
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.usefixtures("no_cache")
def test_entries_that_a_full_disk_damaged_are_removed_once(tmp_path):
    folder = keep_compiled_programs()
    whole = zlib.compress(b"executable" * 1000)
    for name, content in (("whole", whole), ("half", whole[: len(whole) // 2]), ("empty", b"")):
        (folder / f"{name}-cache").write_bytes(content)
    assert remove_damaged(folder) == 2
    assert {path.name for path in folder.iterdir()} == {"whole-cache", "checked"}
    old = folder / "old-cache"
    old.write_bytes(b"damaged")
    os.utime(old, (1, 1))
    assert remove_damaged(folder) == 0 and old.exists()  # older entries were checked before
