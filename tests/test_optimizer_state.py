"""The benchmark of the forms of Adam's averages, at a size that says nothing about time."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demucs_lightning.data.demo import make_demo_songs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = [
    "--steps=5",
    "--every=2",
    "--channels=4",
    "--segment=0.6",
    "--batch-size=1",
    "--device=cpu",
]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The benchmarks import one another by name, as scripts of one folder do."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import optimizer_state  # pyright: ignore[reportMissingImports]

    yield optimizer_state
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


def test_the_table_has_all_forms_after_the_same_steps(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = make_demo_songs(tmp_path / "songs", songs=(1, 0, 0), seconds=12.0)
    benchmark.main([*SMALL, "--songs", str(songs)])
    machine, versions, *lines = capsys.readouterr().out.splitlines()
    assert (machine.split()[0], versions.split()[0]) == ("machine", "versions")
    rows = [[word.strip() for word in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["", "fp32", "bf16", "8bit"]
    titles = [row[0] for row in rows[2:]]
    assert titles[:3] == [f"loss, steps {steps}" for steps in ("1 to 2", "3 to 4", "5 to 5")]
    assert titles[3:] == ["bytes a weight", "time of a step", "of the optimizer"]
    losses = [[float(value) for value in row[1:]] for row in rows[2:5]]
    assert losses[0] == pytest.approx([losses[0][0]] * 3, abs=1e-4)  # same weights, same batches
    assert losses[2] == pytest.approx([losses[2][0]] * 3, rel=0.02)
    sizes = [float(value) for value in rows[5][1:]]
    assert sizes[:2] == [8.0, 4.0]
    assert 2.0 < sizes[2] < 3.0  # small weights fill no block
    assert [row[1] for row in rows[6:]] == ["1.00", "1.00"]
    assert all(float(value) > 0 for row in rows[6:] for value in row[1:])


def test_too_few_steps_are_said(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--steps=1"])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: --steps is 1: it must be at least 2.\n"
