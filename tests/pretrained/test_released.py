"""The table of released models against the folder `remote` of the installed reference."""

from pathlib import Path

import demucs.pretrained
import pytest
import yaml
from demucs import hf

from demucs_lightning.pretrained import hub, released
from demucs_lightning.pretrained.bags import read_bag

REMOTE = Path(demucs.pretrained.__file__).parent / "remote"


def test_the_table_has_the_bags_of_the_reference_and_no_others() -> None:
    assert {path.stem for path in REMOTE.glob("*.yaml")} == set(released.RELEASED)


@pytest.mark.parametrize("path", sorted(REMOTE.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_bag_is_the_reference_s(path: Path) -> None:
    bag = released.RELEASED[path.stem].bag
    assert bag == read_bag(path)
    theirs = yaml.safe_load(path.read_text())
    assert list(bag.signatures) == theirs["models"]
    assert bag.segment == theirs.get("segment")
    weights = theirs.get("weights")
    assert bag.weights == (None if weights is None else tuple(map(tuple, weights)))
    if weights is not None:
        assert {len(row) for row in weights} == {len(released.RELEASED[path.stem].sources)}


def test_every_file_is_the_reference_s() -> None:
    theirs = demucs.pretrained._parse_remote_files(REMOTE / "files.txt")
    ours = {name: hub.OFFICIAL_URL + file.path for name, file in released.OFFICIAL.items()}
    assert ours == theirs
    for name, file in released.OFFICIAL.items():
        assert Path(file.path).stem == f"{name}-{file.sha256}"


def test_every_bag_is_made_of_official_files_and_the_reverse() -> None:
    used = {name for model in released.RELEASED.values() for name in model.bag.signatures}
    assert used == set(released.OFFICIAL)
    assert set(released.bags_with("9a6b4851")) == {"repro_mdx_a", "repro_mdx_a_time_only"}


@pytest.mark.parametrize("name", [*released.RELEASED, "mine"])
def test_repositories_are_named_as_the_reference_names_them(name: str) -> None:
    ours = released.repository(name)
    assert ours == f"{hf.DEFAULT_NAMESPACE}/{hf.hf_repo_name(name)}"
    assert released.repository(f"user/{name}") == f"user/{hf.hf_repo_name(name)}"


def test_sizes_are_known_for_whole_bags_or_not_given() -> None:
    assert released.size_of("htdemucs") == 84_141_911
    assert released.size_of("htdemucs_ft") == 4 * 84_141_271
    assert released.size_of("mdx_q") is None
    sizes = [file.size for file in released.OFFICIAL.values() if file.size]
    assert min(sizes) > 30e6
    assert max(sizes) < 200e6
