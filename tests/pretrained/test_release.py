"""The one model of a release, for a source or alone."""

import pytest
import torch

from demucs_lightning.pretrained import Package, Release, member
from demucs_lightning.pretrained.released import MDX, ONE_HOT

FOUR = ["drums", "bass", "other", "vocals"]
PACKAGES = [
    Package("Demucs", {"sources": FOUR}, {"a": torch.zeros(1)}, f"{name}.th")
    for name in ("aaaa1111-01234567", "bbbb1111-89abcdef", "cccc1111", "dddd1111")
]


def release(weights: tuple[tuple[float, ...], ...] | None = None) -> Release:
    return Release("bag", PACKAGES, None if weights is None else list(map(list, weights)))


def test_a_specialist_is_found_by_its_source() -> None:
    for package, source in zip(PACKAGES, FOUR, strict=True):
        expected = {"drums": 0, "bass": 1, "other": 2, "vocals": 3}[source]
        assert member(release(ONE_HOT), source) is PACKAGES[expected]
        assert package.argument("audio_channels") == 2


def test_a_bag_of_the_same_model_twice_is_one_model() -> None:
    twice = Release("twice", [PACKAGES[0], PACKAGES[0]], [[1.0] * 4, [0.0] * 4])
    assert member(twice) is PACKAGES[0]
    more = Release("more", [*PACKAGES[:2], PACKAGES[0]])
    assert member(more, "bass") is PACKAGES[0]  # two of three


@pytest.mark.parametrize("source", [None, "vocals", "guitar"])
def test_where_more_serve_all_are_named_with_what_they_serve(source: str | None) -> None:
    for_one = " for vocals" if source == "vocals" else ""
    listed = (
        "aaaa1111 (drums, bass) · bbbb1111 (bass) · cccc1111 (drums, other, vocals) · "
        "dddd1111 (drums, other, vocals)"
    )
    with pytest.raises(ValueError, match="bag of 4") as error:
        member(release(MDX), source, advice=", or none")
    assert str(error.value) == (
        f"bag is a bag of 4 models, and one{for_one} is wanted: name one of {listed}, or none."
    )
