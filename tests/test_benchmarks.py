"""The benchmarks of training, at sizes that say nothing about speed."""

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = (
    "aside",
    "memory",
    "metrics",
    "optimizer_state",
    "quality",
    "recipes",
    "separate",
    "train_step",
)
TINY: dict[str, Any] = {"channels": 4, "depth": 4, "nfft": 256, "dconv_mode": 0}


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    """The benchmarks import one another by name, as scripts of one folder do."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield SimpleNamespace(**{name: import_module(name) for name in SCRIPTS})
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
                del sys.modules[name]


@pytest.fixture(scope="module")
def extracts(modules: Any) -> Iterator[Any]:
    from demucs_lightning.data import MusdbHQ

    with modules.recipes.noise_songs(1, 4.0) as root:
        yield MusdbHQ(root, segment=1.0, shift=0.5)


@pytest.fixture
def models(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own, reference, _ = modules.train_step.MODELS["HDemucs"]
    small = {"HDemucs": (own, reference, TINY)}
    monkeypatch.setattr(modules.train_step, "MODELS", small)


def test_both_recipes_learn_from_the_same_weights_and_extracts(modules: Any, extracts: Any) -> None:
    recipes, (own, reference, _) = modules.recipes, modules.train_step.MODELS["HDemucs"]
    recipe = recipes.Recipe(batch_size=2, shift=0.1, workers=0, lr=1e-3, clip_grad=5.0)
    ours, theirs = (
        recipes.same_weights(lambda klass=klass: klass(recipes.SOURCES, **TINY))
        for klass in (own, reference)
    )
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name])
    for side in (
        recipes.Reference(theirs, extracts, recipe),
        recipes.Ours(ours, extracts, recipe, precision="bf16"),
    ):
        before = next(side.model.parameters()).clone()
        loss = side.step()
        assert 0.05 < loss.item() < 3
        assert not torch.equal(next(side.model.parameters()), before)
    floats = recipes.Floats(extracts)
    assert len(floats) == len(extracts)
    from demucs_lightning.data.extracts import normalized

    for index in (0, len(extracts) - 1):
        torch.testing.assert_close(floats[index], normalized(extracts[index]), rtol=1e-4, atol=1e-4)


def test_a_line_for_each_side(modules: Any, models: None, extracts: Any) -> None:
    line = ["--models", "HDemucs", "--rounds", "1", "--segment", "1", "--batch-size", "1"]
    args = modules.train_step.arguments([*line, "--memory", "fast", "--clock", "process"])
    recipe = modules.recipes.Recipe(batch_size=1, shift=0.1, workers=0)
    lines = modules.train_step.compare("HDemucs", extracts, recipe, args)
    assert len(lines) == 3
    for text, side in zip(lines, ("reference fp32", "fast fp32", "fast bf16"), strict=True):
        assert text.startswith("HDemucs")
        assert side in text
        for unit in ("steps/s", "x  ", "MiB", "%", "days"):
            assert unit in text
    assert "1.00x" in lines[0]


def test_a_side_that_runs_out_of_memory_is_named_in_a_sentence(
    modules: Any, models: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Refusing(modules.aside.Aside):
        def __init__(self, make: Any, *args: Any) -> None:
            super().__init__(out_of_memory)

    monkeypatch.setattr(modules.train_step, "Aside", Refusing)
    with pytest.raises(SystemExit):
        modules.train_step.main(["--models", "HDemucs", "--segment", "1", "--device", "cpu"])
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("error: ")
    assert "memory" in told[0]
    assert told[1:] == ["This was HDemucs, reference fp32."]


def test_a_side_that_is_killed_is_told(modules: Any) -> None:
    with (
        modules.aside.Aside(dict) as side,
        pytest.raises(OSError, match="The process of a side was killed"),
    ):
        side.ask(kill)


def kill(side: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def test_operations_are_counted_for_forward_and_backward(modules: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv1d(2, 8, 1)

        def forward(self, x: Any) -> Any:
            return self.inner(x).unflatten(1, (4, 2))

    recipe = modules.recipes.Recipe(shift=0.0)
    # Forward and the gradient of the weights; the input has none.
    side = SimpleNamespace(model=Net())
    assert modules.train_step.operations(side, recipe, 0.1) == 2 * (2 * 2 * 8 * 4410)
    assert modules.train_step.matmul_rate("fp32", "cpu") > 1e8


def test_peak_memory_is_what_came_on_top(modules: Any) -> None:
    peak = modules.train_step.Peak("cpu")
    with mmap.mmap(-1, 64 * 2**20) as content:
        size = sum(content.write(bytes(2**20)) for _ in range(64))
    assert 0.8 * size < peak.read() < 3 * size


def test_memory_that_was_freed_counts_when_it_is_taken_again(modules: Any) -> None:
    def fill() -> list[torch.Tensor]:
        return [torch.ones(2**20) for _ in range(32)]

    size = 32 * 4 * 2**20
    for _ in range(3):  # until blocks of this size lie in the heap, not in mappings of their own
        last = fill().pop()  # above the others, so that these stay with the process
    peak = modules.train_step.Peak("cpu")
    again = fill()
    assert 0.8 * size < peak.read() < 3 * size
    assert len(again) == 32
    assert last.sum() == last.numel()


def test_the_peak_of_a_side_has_its_weights(modules: Any) -> None:
    size = 64 * 2**20

    class Side:
        def __init__(self) -> None:
            self.weights, self.steps = mmap.mmap(-1, size), 0
            self.weights.write(bytes(size))

        def step(self) -> None:
            self.steps += 1

        def keeping(self) -> Any:
            return nullcontext()

    side = modules.train_step.begun(Side, "cpu", torch.get_num_threads())
    assert side.steps == 2
    assert 0.8 * size < side.peak < 3 * size


@pytest.mark.parametrize(
    ("script", "line", "said"),
    [
        ("train_step", ["--device", "cuda"], "device is cuda: this machine has no CUDA device."),
        ("quality", ["--device", "cuda"], "device is cuda: this machine has no CUDA device."),
        (
            "quality",
            ["--segment", "0.4"],
            "--segment is 0.4: it must be above 0.5, the shift.",
        ),
        ("quality", ["--data", "{}/none"], "--data: there is no folder {}/none."),
        ("quality", ["--out", "{}/none/a.png"], "--out: there is no folder {}/none."),
        ("optimizer_state", ["--device", "cuda"], "device is cuda: this machine has no CUDA"),
        ("optimizer_state", ["--steps", "1"], "--steps is 1: it must be at least 2."),
        ("quality", ["--data", "{}"], "No training tracks of MUSDB18-HQ: "),
    ],
)
def test_mistakes_end_in_one_sentence(  # noqa: PLR0913
    modules: Any,
    script: str,
    line: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        getattr(modules, script).main([word.format(tmp_path) for word in line])
    assert stop.value.code == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {said.format(tmp_path)}")


NUMBER, WHOLE = "it must be a number above 0.", "it must be a whole number above 0."
NATURAL = "it must be a whole number, 0 or more."


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train_step --segment 0", NUMBER),
        ("train_step --segment=-3", NUMBER),
        ("train_step --segment nan", NUMBER),
        ("train_step --batch-size 0", WHOLE),
        ("train_step --rounds 0", WHOLE),
        ("train_step --workers=-1", NATURAL),
        ("train_step --threads=-2", NATURAL),
        ("train_step --compile yes", "it must be one of true, cudagraphs."),
        ("quality --minutes 0", NUMBER),
        ("quality --turn 0", NUMBER),
        ("quality --points 0", WHOLE),
        ("quality --channels 0", WHOLE),
        ("quality --held-out 0", WHOLE),
        ("optimizer_state --channels=-1", WHOLE),
        ("optimizer_state --every 0", WHOLE),
        ("optimizer_state --steps few", WHOLE),
        ("memory --segment 0", NUMBER),
        ("separate --rounds 0", WHOLE),
        ("metrics --seconds inf", NUMBER),
    ],
)
def test_numbers_out_of_range(
    modules: Any, line: str, said: str, monkeypatch: Any, capsys: Any
) -> None:
    script, *words = line.split()
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit) as stop:
        getattr(modules, script).main()
    assert stop.value.code == 2
    option, value = line.replace("=", " ").split()[1:]
    assert capsys.readouterr().err == f"error: {option} is {value!r}: {said}\n"


def test_without_the_package_to_compare_with() -> None:
    hidden = "import sys; sys.modules['demucs'] = None; import peer"
    ended = subprocess.run(
        [sys.executable, "-c", hidden], cwd=BENCHMARKS, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: The package demucs is not installed: pip install -r req")


def test_turns_and_their_medians(modules: Any) -> None:
    seen: list[str] = []
    turns = {name: lambda name=name: float(seen.append(name) or len(seen)) for name in "ab"}
    assert modules.train_step.in_turns(turns, 3) == {"a": 3.0, "b": 4.0}
    assert seen == ["b", "a", "a", "b", "b", "a"]


def test_a_turn_counts_all_steps_but_the_first(
    modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def step() -> None:
        now[0] = 2 * now[0] + 1

    side = SimpleNamespace(step=step, keeping=nullcontext)
    monkeypatch.setitem(modules.train_step.CLOCKS, "wall", lambda: now[0])
    assert modules.train_step.turn(side, "cpu", 2, "wall") == (7 - 1) / 2


def test_the_race_gives_all_the_same_time(
    modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    quality = modules.quality
    now = [0.0]

    def runner(name: str, seconds: float) -> Any:
        def step() -> None:
            now[0] += seconds

        return quality.Runner(name, nn.Linear(1, 1), step, "cpu", lambda: now[0])

    runners = [
        runner(name, took) for name, took in zip(quality.COLOURS, (2.0, 1.0, 0.5), strict=True)
    ]
    scored: list[str] = []
    monkeypatch.setattr(
        quality.Runner,
        "score",
        lambda self, songs: (
            self.curve.append((self.seconds, self.steps, 1.0 * self.steps)),
            scored.append(self.name),
            float(self.steps),
        )[-1],
    )
    args = SimpleNamespace(minutes=2.0, points=2, turn=8.0)
    quality.race(runners, None, args)
    assert [each.seconds for each in runners] == [120.0] * 3
    assert [each.steps for each in runners] == [60, 120, 240]
    first, second = capsys.readouterr().out.splitlines()
    assert (first[:10], second[:10]) == ("   1.0 min", "   2.0 min")
    quality.picture(runners, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").stat().st_size > 5000
    assert quality.level(runners[1:], None) == 0.0
    assert [each.steps for each in runners] == [60, 240, 240]


@pytest.mark.parametrize("minutes", [0.02, 0.5, 0.8, 20, 600])
def test_no_two_rows_of_the_race_are_labelled_alike(modules: Any, minutes: float) -> None:
    apart = minutes * 60 / 8
    labels = [modules.quality.duration(apart * mark, apart=apart) for mark in range(1, 9)]
    assert len(set(labels)) == 8
    assert {len(label) for label in labels} == {10}
    assert all(label.endswith(" s" if minutes < 0.8 else " min") for label in labels)
