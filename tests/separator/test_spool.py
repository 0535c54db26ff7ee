import pytest
import torch

from demucs_lightning.separator.spool import Spool
from tests.separator.models import noise


@pytest.mark.parametrize("sizes", [(7, 7, 7), (7, 7, 3), (2,)])
def test_blocks_come_back(tmp_path, sizes):
    blocks = [noise(6, size, seed).unflatten(0, (3, 2)) for seed, size in enumerate(sizes)]
    with Spool(tmp_path / "new") as spool:
        for block in blocks:
            spool.add(block)
        assert [*(tmp_path / "new").iterdir()] == [], "it has no name"
        found = [*spool.blocks()]
    assert all(map(torch.equal, found, blocks))
    assert len(found) == len(blocks)


def test_a_folder_that_can_not_be(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match="file/x can't hold what is computed"),
        Spool(tmp_path / "file/x"),
    ):
        pass
