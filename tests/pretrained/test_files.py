"""Files of weights as files."""

from pathlib import Path
from typing import Any

import pytest
import torch

from demucs_lightning.pretrained import files


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def test_what_can_be_walked_through() -> None:
    files.check_bounded(nested(33), "a.file")
    files.check_bounded({"a": {"b": ([0] * 99_990, "long text" * 99_999)}}, "a.file")
    cycle: list = []
    cycle.append(cycle)
    for value in (nested(34), {"a": nested(10**5)}, [0] * 100_001, [[0] * 1000] * 101, cycle):
        with pytest.raises(ValueError, match=r"a\.file is damaged: it is nested too deeply"):
            files.check_bounded(value, "a.file")


def test_allowed_names_are_allowed_for_one_file_only(tmp_path: Path) -> None:
    torch.save({"a": Path}, tmp_path / "a.th")
    before = set(torch.serialization.get_safe_globals())
    found = files.load_torch(tmp_path / "a.th", kind="a", allowed={"pathlib.Path": len})
    assert found == {"a": len}
    with pytest.raises(ValueError, match=r"holds more than plain data \(pathlib\.Path\)"):
        files.load_torch(tmp_path / "a.th", kind="a")
    assert set(torch.serialization.get_safe_globals()) == before


def test_what_is_no_file_of_weights_is_told(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("epochs: 360\n")
    with pytest.raises(ValueError, match=r"settings\.yaml is damaged.*not a checkpoint"):
        files.load_torch(tmp_path / "settings.yaml", kind="a checkpoint")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name} is a folder, not a checkpoint"):
        files.load_torch(tmp_path, kind="a checkpoint")
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path.name}/last\.ckpt is meant, perhaps"):
        files.load_torch(tmp_path, kind="a checkpoint")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.th"
    files.write_whole(path, b"one")
    files.write_whole(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]
