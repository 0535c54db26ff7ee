"""Local folders of models, and the yaml of a bag as a stranger may write it."""

from pathlib import Path

import pytest

from demucs_lightning.pretrained import folder
from demucs_lightning.pretrained.bags import Bag, read_bag


def touch(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).write_bytes(name.encode())
    return path


def test_files_go_by_their_signature(tmp_path: Path) -> None:
    names = (
        "a.th",
        "my-model-0123abcd.th",
        "not-hex.th",
        "c.safetensors",
        "c-0123abcd.safetensors",
    )
    found = folder.scan(touch(tmp_path, *names, "notes.txt", "mix.yaml"))
    assert {name: path.name for name, path in found.models.items()} == {
        "a": "a.th",
        "my-model": "my-model-0123abcd.th",
        "not-hex": "not-hex.th",
        "c": "c.safetensors",
        "c-0123abcd": "c-0123abcd.safetensors",
    }
    assert found.names == ["mix", "a", "c-0123abcd", "c", "my-model", "not-hex"]
    assert found.bag("a") == Bag(("a",))
    assert found.file("c") == tmp_path / "c.safetensors"


@pytest.mark.parametrize("names", [("a.th", "a.safetensors"), ("a.th", "a-0123abcd.th")])
def test_two_files_of_one_signature_are_both_named(tmp_path: Path, names: tuple) -> None:
    touch(tmp_path, *names)
    touch(tmp_path, "b.th")
    found = folder.scan(tmp_path)
    assert found.file("b") == tmp_path / "b.th"
    with pytest.raises(ValueError, match="are both the model a: keep one") as error:
        found.file("a")
    assert all(name in str(error.value) for name in names)


def test_a_checksum_in_the_name_is_verified(tmp_path: Path) -> None:
    touch(tmp_path, "a-0123abcd.th")
    with pytest.raises(ValueError, match=r"a-0123abcd\.th is damaged: its sha256 .* 0123abcd"):
        folder.scan(tmp_path).file("a")
    assert (tmp_path / "a-0123abcd.th").is_file()
    (tmp_path / "a-0123abcd.th").unlink()
    (tmp_path / "a-e3b0c442.th").write_bytes(b"")  # as the sha256 of nothing begins
    assert folder.scan(tmp_path).file("a").is_file()


def test_unknown_names_are_answered_with_those_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no model 'x': there are no models in it\."):
        folder.scan(tmp_path).bag("x")
    touch(tmp_path, "a.th", "mix.yaml")
    with pytest.raises(FileNotFoundError, match=r"has no model 'x': it has mix, a\."):
        folder.scan(tmp_path).bag("x")
    with pytest.raises(FileNotFoundError, match=r"has no x\.th and no x\.safetensors"):
        folder.scan(tmp_path).file("x")
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        folder.scan(tmp_path / "nowhere")


def test_a_bag_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text("models: ['a', 'b']\nweights: [[1, 0.5], [0, 1]]\nsegment: 44\n")
    assert read_bag(path) == Bag(("a", "b"), ((1.0, 0.5), (0.0, 1.0)), 44.0)
    path.write_text("models: [a]")
    assert read_bag(path) == Bag(("a",), None, None)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nmodels: &d [*c, *d]"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it has no list of models"),
        ("- a", "it has no list of models"),
        ("segment: 44", "has models None: it must be a list"),
        ("models: a", "has models 'a': it must be a list"),
        ("models: []", r"has models \[\]: it must be a list"),
        ("models: [75331122]", "each in quotes"),
        ("models: ['../a']", "without folder"),
        ("models: ['..']", "without folder"),
        ("models: &a [*a]", "must be a list of signatures"),
        (BOMB, "has 'a': a bag has models, weights and segment only"),
        ("models: [a]\nweight: [[1]]", "has 'weight': a bag has"),
        ("models: [a, b]\nweights: [[1, 1]]", "one row for each of the 2 models"),
        ("models: [a, b]\nweights: [[1, 1], [1]]", "one row for each"),
        ("models: [a]\nweights: [[]]", "one row for each"),
        ("models: [a]\nweights: 1", "one row for each"),
        ("models: [a]\nweights: [[1, -1]]", "has the weight -1"),
        ("models: [a]\nweights: [[1, .nan]]", "has the weight nan"),
        ("models: [a]\nweights: [[1, .inf]]", "has the weight inf"),
        ("models: [a]\nweights: [[1, true]]", "has the weight True"),
        ("models: [a]\nweights: [[1, '1']]", "has the weight '1'"),
        ("models: [a, b]\nweights: [[1, 0], [1, 0]]", "0 in every model for one of the sources"),
        ("models: [a]\nsegment: 0", "has segment 0: it must be seconds"),
        ("models: [a]\nsegment: .inf", "has segment inf"),
        ("models: [a]\nsegment: long", "has segment 'long'"),
        ("models: !!python/object/apply:os.getcwd []", "can't be read as the yaml of a bag"),
        ("models: [a", "can't be read as the yaml of a bag"),
        ("\x00", "can't be read as the yaml of a bag"),
    ],
)
def test_a_bag_that_is_wrong_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mix.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        read_bag(path)
    assert str(error.value).startswith(f"{path} ")
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="can't be read as the yaml"):
        read_bag(tmp_path / "mix.yaml")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml does not exist"):
        read_bag(tmp_path / "gone.yaml")
