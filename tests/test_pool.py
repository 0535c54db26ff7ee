"""Remixing with examples of former batches: which are drawn, how often, and when they are known."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from demucs_lightning.augment import Augmentation, Remix
from demucs_lightning.data import MusdbHQ
from demucs_lightning.data.datamodule import SeparationData
from demucs_lightning.pool import RemixPool

SOURCES = 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def examples(first: int, count: int) -> Tensor:
    """Each stem says of which example it is: value = example."""
    return torch.arange(first, first + count).float()[:, None, None, None].expand(-1, SOURCES, 2, 3)


def origins(pool: RemixPool, *, batch: int, steps: int, seed: int = 0) -> Tensor:
    """How many examples back each source of each mixture was taken from: (examples, S)."""
    generator, ages = seeded(seed), []
    for first in range(0, batch * steps, batch):
        mixed = pool(examples(first, batch), generator)
        assert (mixed == mixed[:, :, :1, :1]).all()
        ages.append(torch.arange(first, first + batch)[:, None] - mixed[:, :, 0, 0])
    return torch.cat(ages).long()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_sources_come_alike_from_the_new_example_and_those_before(batch: int) -> None:
    ages = origins(RemixPool(3), batch=batch, steps=6000 // batch)[3:]
    for source in range(SOURCES):
        counts = torch.bincount(ages[:, source], minlength=4)
        assert len(counts) == 4
        assert (counts - len(ages) / 4).abs().max() < 5 * (len(ages) * 3 / 16) ** 0.5


def test_mixtures_are_distributed_as_those_of_remix() -> None:
    """The 16 patterns of which two sources share an example, and how often."""

    def patterns(rows: Tensor) -> Tensor:
        same = [(rows[:, a] == rows[:, b]) for a, b in ((0, 1), (0, 2), (1, 2), (0, 3))]
        codes = sum(each.long() * 2**bit for bit, each in enumerate(same))
        return torch.bincount(torch.as_tensor(codes), minlength=16) / len(rows)

    ages = origins(RemixPool(3), batch=1, steps=20_003)[3:]
    generator, remix = seeded(1), Remix(group_size=4)
    mixed = [remix(examples(0, 4), generator)[:, :, 0, 0] for _ in range(5000)]
    assert (patterns(ages) - patterns(torch.cat(mixed).long())).abs().max() < 0.02


def test_the_first_examples_draw_from_what_there_is() -> None:
    pool = RemixPool(3)
    assert (origins(pool, batch=1, steps=1) == 0).all()
    pool.forget()
    found = [origins(RemixPool(3), batch=1, steps=3, seed=seed) for seed in range(200)]
    most = torch.stack(found).amax(dim=(0, 2))
    assert most.tolist() == [0, 1, 2]


def test_probability_is_of_the_whole_batch() -> None:
    ages = origins(RemixPool(3, proba=0.3), batch=1, steps=4000)[3:]
    assert abs((ages > 0).any(1).float().mean() - 0.3 * (1 - 0.25**SOURCES)) < 0.03
    assert (origins(RemixPool(3, proba=0.0), batch=2, steps=20) == 0).all()


def test_it_keeps_no_more_than_it_may_and_no_graph() -> None:
    pool = RemixPool(3)
    for first in range(8):
        pool(examples(first, 1).clone().requires_grad_(), seeded())
    assert pool.recent is not None
    assert pool.recent[:, 0, 0, 0].tolist() == [5, 6, 7]
    assert not pool.recent.requires_grad
    assert pool.recent.untyped_storage().nbytes() <= 4 * examples(0, 1).numel() * 4


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_reads_its_own_batches_again(musdb_root: Path, rank: int) -> None:
    dset = partial(MusdbHQ, musdb_root, samplerate=8000)
    data = SeparationData(dset, segment=2, batch_size=2, seed=3, workers=0, train_subset="training")
    data.train_set = dset(subset="training", segment=2)
    loop = SimpleNamespace(restarting=False)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(  # pyright: ignore
        global_rank=rank, world_size=2, fit_loop=loop, strategy=strategy, current_epoch=1
    )
    batches = list(data.train_dataloader())
    assert len(batches) > 2
    for index, batch in enumerate(batches):
        again = data.training_batch(1, index)
        assert torch.equal(again["stems"], batch["stems"])
        assert again["track"] == batch["track"]


def test_settings_choose_it_in_place_of_groups() -> None:
    remix: Any = {"pool": 3, "proba": 0.5}
    chain = Augmentation(1000, remix=remix)
    assert chain.pool is not None
    assert chain.steps[-1] is chain.pool
    assert (chain.pool.size, chain.pool.proba) == (3, 0.5)
    chain.check_batch(1)
    chain.check_batch(7)
    assert Augmentation().pool is None
    assert Augmentation(remix=remix | {"proba": 0.0}).pool is None
    with pytest.raises(ValueError, match=r"batch_size=1: .* or augment\.remix\.pool to 3"):
        Augmentation().check_batch(1)
