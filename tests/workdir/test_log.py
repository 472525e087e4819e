"""The log of a training, also a damaged one."""

import pytest

from f3r_jax.common.errors import UserError
from f3r_jax.workdir.log import read_rows


def test_an_incomplete_last_line_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n{"step": 2, "ki')
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1, "kind": "train"}]


@pytest.mark.parametrize("line", ["{", "3", "[]", '{"step": "x", "kind": "train"}', '{"kind": "train"}', "\x00\x00"])
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl: line 2 is damaged"):
        read_rows(tmp_path / "metrics.jsonl")
