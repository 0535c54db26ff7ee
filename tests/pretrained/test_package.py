"""What files say against the classes of this package, and the models that come of it."""

import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from demucs_lightning.pretrained.package import CLASSES, Package, build, is_sound
from demucs_lightning.pretrained.reference import NAMES, OWN, PATHS
from tests.pretrained.conftest import SMALL, reference_model


def package_of(kind: str, **changes: Any) -> Package:
    model = reference_model(kind)
    kwargs = {**SMALL[kind][1], "sources": ["a", "b", "c", "d"], "samplerate": 8000, **changes}
    return Package(kind, kwargs, model.state_dict(), "some.file")


@pytest.mark.parametrize("kind", SMALL)
def test_the_classes_take_what_those_of_the_reference_take(kind: str) -> None:
    # Arguments by place, and those that a file leaves out, mean the same.
    ours = inspect.signature(CLASSES[kind]).parameters
    theirs = inspect.signature(SMALL[kind][0]).parameters
    assert list(ours) == [*theirs, *OWN]
    for name, parameter in theirs.items():
        default = ours[name].default
        default = list(default) if isinstance(default, tuple) else default
        assert default == parameter.default, name


def test_every_class_of_the_reference_has_its_name_and_back() -> None:
    assert set(NAMES.values()) == set(PATHS) == set(CLASSES) == set(SMALL)
    for kind, (theirs, _) in SMALL.items():
        assert PATHS[kind] == theirs.__module__
        assert NAMES[f"{PATHS[kind]}.{kind}"] == kind


@pytest.mark.parametrize("kind", SMALL)
def test_a_model_is_built_in_full_precision(kind: str) -> None:
    package = package_of(kind)
    half = {name: value.half() for name, value in package.state.items()}
    model = build(Package(kind, package.kwargs, half, "some.file"))
    assert not model.training
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value.half(), half[name])


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("Demucs", {"color": 1}, "has color, which is no argument of Demucs"),
        ("Demucs", {"channels": 8}, "is damaged: its encoder.0.0.weight does not fit the model"),
        ("Demucs", {"channels": "x"}, "that channels of its Demucs is 'x': it must be a number"),
        ("Demucs", {"channels": -1}, "is damaged: the arguments of its Demucs do not fit"),
        ("Demucs", {"sources": ["a", 3]}, "it must be a list, each text"),
        ("Demucs", {"sources": "drums"}, "that sources of its Demucs is 'drums'"),
        ("HDemucs", {"multi_freqs": 3}, "is 3: it must be a list, each a number or null"),
        ("HDemucs", {"segment": float("nan")}, "segment of its HDemucs is nan"),
        ("HDemucs", {"segment": 1e9}, "takes 1000000000.0 seconds at 8000 Hz"),
        ("HDemucs", {"wiener_iters": 3}, "HDemucs that can't be built: wiener_iters"),
        ("HTDemucs", {"t_sparse_self_attn": True}, "HTDemucs .*t_sparse_self_attn"),
    ],
)
def test_what_can_not_be_built(kind: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^some\.file [^\n]*{message}"):
        build(package_of(kind, **change))


def test_a_class_that_is_not_in_the_table() -> None:
    with pytest.raises(ValueError, match="holds the model Linear; those that can be built are"):
        build(Package("Linear", {}, {}, "some.file"))


def test_sound_tensors() -> None:
    whole = torch.zeros(3, 4)
    assert all(map(is_sound, (whole, whole.t(), whole[1:], nn.Parameter(whole), whole[:0])))
    unsound = (whole.expand(2, 3, 4), whole.to("meta"), whole.to_sparse(), [0.0], 0.0, None)
    assert not any(map(is_sound, unsound))


def test_other_models_have_all_the_room_there_is() -> None:
    with pytest.raises(ValueError, match="larger model"):
        build(package_of("Demucs", channels=400))
    assert len(list(nn.Linear(2000, 2000).parameters())) == 2
    build(package_of("Demucs"))
    with ThreadPoolExecutor(4) as pool:
        packages = [package_of("HTDemucs") for _ in range(8)]
        assert [type(model).__name__ for model in pool.map(build, packages)] == ["HTDemucs"] * 8


@pytest.mark.parametrize("kind", SMALL)
def test_a_model_is_built_without_drawing_weights_that_are_overwritten(kind: str) -> None:
    package = package_of(kind)
    before = torch.get_rng_state()
    state = build(package).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[name], value) for name, value in package.state.items())
