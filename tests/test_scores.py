"""How the scores of tracks are averaged, and what they leave out."""

import pytest
import torch

from demucs_lightning import scores


@pytest.fixture
def rows() -> list[scores.Score]:
    nan = float("nan")
    return [
        scores.Score("one", "weights", 1.0, {"a": 2.0, "b": nan}),
        scores.Score("two", "weights", 3.0, {"a": 4.0, "b": 5.0}),
        scores.Score("two", "ema", 3.0, {"a": 6.0, "b": 6.0}),
    ]


def test_averages_leave_out_sources_that_a_track_lacks(rows: list[scores.Score]) -> None:
    means = scores.by_candidate(rows)
    assert means["weights"] == {"loss": 2.0, "nsdr_a": 3.0, "nsdr_b": 5.0, "nsdr": 4.0}
    assert means["ema"]["nsdr"] == 6.0
    stems = torch.stack([torch.randn(2, 100), torch.zeros(2, 100)])[None]
    batch = {"stems": stems - 0.1, "silent": torch.tensor([False, True]), "track": ["one"]}
    found = scores.score_sources(batch, batch["stems"] * 0.9, ["a", "b"])
    assert found["a"] == pytest.approx(20, abs=1e-3)
    assert found["b"] != found["b"]  # NaN


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_not_a_missing_source(value: float) -> None:
    stems = torch.randn(1, 2, 2, 100)
    batch = {"stems": stems, "silent": torch.tensor([False, True]), "track": ["Some Song"]}
    estimates = stems.clone()
    estimates[0, 1, 0, 5] = value
    message = "The model's output for track 'Some Song' is not finite"
    with pytest.raises(ValueError, match=message):
        scores.score_sources(batch, estimates, ["a", "b"])


def test_the_table_has_a_line_for_each_track(rows: list[scores.Score]) -> None:
    lines = scores.table(rows[:2]).splitlines()
    assert [line.split() for line in lines] == [
        ["nSDR", "(dB)", "a", "b", "mean"],
        ["one", "2.00", "nan", "2.00"],
        ["two", "4.00", "5.00", "4.50"],
        ["median", "3.00", "5.00", "4.00"],
        ["mean", "3.00", "5.00", "4.00"],
    ]


def test_a_specialist_aims_at_its_source() -> None:
    names = ["drums", "bass", "vocals"]
    assert scores.aim(names, [1.0, 1.0, 0.5]) == "nsdr"
    assert scores.aim(names, [0.0, 0.0, 0.3]) == "nsdr_vocals"
    assert scores.aim(names, [1.0]) == "nsdr"  # one weight is for all
    assert scores.aim(["vocals"], [1.0]) == "nsdr"
