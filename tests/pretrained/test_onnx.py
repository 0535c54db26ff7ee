"""ONNX files of small models of every kind: onnxruntime gives what the model gives."""

import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from demucs_lightning.models import Demucs, HDemucs, HTDemucs
from demucs_lightning.models.hybrid import HybridUNet
from demucs_lightning.pretrained import onnx
from demucs_lightning.pretrained.onnx import HYBRID, OTHER_STFT, chunk_of, write_onnx

RATE = 8000
SECONDS = 1.001
LONG = 52_011 / RATE  # 204 frames at a hop of 256: a BLSTM takes 200 at once; and a rest
SMALL = {"sources": ["bass", "rest"], "samplerate": RATE, "segment": 4}
HYBRIDS: dict[str, tuple[type[HybridUNet], dict[str, Any]]] = {
    "HDemucs": (HDemucs, {"dconv_mode": 0}),
    "HDemucs, LSTM and attention": (
        HDemucs,
        {"channels": 8, "dconv_mode": 1, "dconv_attn": 3, "dconv_lstm": 3, "dconv_init": 0.3},
    ),
    "HDemucs, bands": (HDemucs, {"multi_freqs": [0.1, 0.4], "norm_starts": 2, "dconv_mode": 0}),
    "HDemucs, magnitudes": (
        HDemucs,
        {"cac": False, "dconv_mode": 2, "dconv_attn": 5, "dconv_lstm": 5},
    ),
    "HDemucs, magnitudes, floored": (
        HDemucs,
        {"cac": False, "wiener_iters": -1, "end_iters": -1, "dconv_mode": 0},
    ),
    "HDemucs, without time branch": (HDemucs, {"hybrid": False, "norm_starts": 1}),
    "HDemucs, zeros at the edges": (
        HDemucs,
        {"hybrid_old": True, "audio_channels": 1, "dconv_mode": 0},
    ),
}
TRANSFORMER = {"depth": 3, "t_layers": 2, "t_heads": 2, "dconv_mode": 3, "dconv_comp": 2}
TRANSFORMERS: dict[str, tuple[type[HybridUNet], dict[str, Any]]] = {
    "HTDemucs": (HTDemucs, {"bottom_channels": 24, "segment": 2}),
    "HTDemucs, other positions": (
        HTDemucs,
        {"t_emb": "cape", "t_group_norm": 2, "t_cross_first": True, "use_train_segment": False},
    ),
}
CASES = {
    name: (klass, {"channels": 4, "nfft": 1024, "depth": 5, **kwargs})
    for name, (klass, kwargs) in HYBRIDS.items()
}
CASES |= {
    name: (klass, {"channels": 4, "nfft": 1024, **TRANSFORMER, **kwargs})
    for name, (klass, kwargs) in TRANSFORMERS.items()
}
TIME: dict[str, dict[str, Any]] = {
    "Demucs": {"dconv_attn": 2, "dconv_lstm": 2, "dconv_init": 0.3, "norm_starts": 1},
    "Demucs, with a large LSTM": {"dconv_mode": 0, "lstm_layers": 2, "gelu": False},
    "Demucs, as it is": {"resample": False, "normalize": False, "glu": False},
}


def small(klass: Callable[..., nn.Module], **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return klass(**{**SMALL, **kwargs}).eval()


def segment_of(model: Any, seconds: float) -> float | None:
    """The seconds, or None for a model whose chunks are of one length alone."""
    return None if math.isfinite(model.max_segment) else seconds


def noise(model: Any, batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    loud = torch.tensor([1.0, 0.1, 3.0])[:batch, None, None]
    return loud * torch.randn(batch, model.audio_channels, length, generator=generator)


def opened(path: Path) -> tuple[onnxruntime.InferenceSession, dict[str, str]]:
    session = onnxruntime.InferenceSession(path)
    return session, session.get_modelmeta().custom_metadata_map


def names(session: onnxruntime.InferenceSession) -> tuple[list[str], list[str]]:
    return [each.name for each in session.get_inputs()], [o.name for o in session.get_outputs()]


def program(session: onnxruntime.InferenceSession) -> Callable[..., np.ndarray]:
    """`separate(path, mixture)` of the description."""
    scope: dict[str, Any] = {}
    exec(session.get_modelmeta().description, scope)
    return scope["separate"]


def assert_close(found: Any, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert tuple(found.shape) == tuple(expected.shape)
    error = np.abs(np.asarray(found) - expected.numpy()).max() / expected.abs().max().item()
    assert error < tolerance


@pytest.mark.parametrize("name", CASES)
def test_the_network_of_a_hybrid_model_gives_what_it_gives_in_torch(name: str, tmp_path: Path):
    model = small(CASES[name][0], **CASES[name][1])
    segment = LONG if "LSTM" in name else SECONDS
    length = write_onnx(model, tmp_path / "model.onnx", segment=segment_of(model, segment))
    session, meta = opened(tmp_path / "model.onnx")
    timed = ["mixture"] * model.hybrid, ["time_estimates"] * model.hybrid
    assert names(session) == (["mixture_spec", *timed[0]], ["spec_estimates", *timed[1]])

    for batch in (1, 3):
        mixture = noise(model, batch, length)
        spec = model.spectral.to_channels(model.spectral.spec(mixture))
        inputs = {"mixture_spec": spec.numpy(), "mixture": mixture.numpy()}
        found = session.run(None, {name: inputs[name] for name in names(session)[0]})
        with torch.no_grad():
            freq, time = model.network(spec, mixture)
            expected = model(mixture)
        assert_close(found[0], freq)
        if model.hybrid:
            assert_close(found[1], time)
    assert_close(program(session)(tmp_path / "model.onnx", mixture.numpy()), expected)


def test_a_long_chunk_keeps_its_level(tmp_path: Path):
    """Means over ten seconds, in fp32, are 6e-5 off in onnxruntime."""
    model = small(HDemucs, channels=4, samplerate=44100, dconv_mode=0)
    length = write_onnx(model, tmp_path / "model.onnx", segment=10)
    mixture = noise(model, 1, length)
    spec = model.spectral.to_channels(model.spectral.spec(mixture))
    session, _ = opened(tmp_path / "model.onnx")
    found = session.run(None, {"mixture_spec": spec.numpy(), "mixture": mixture.numpy()})
    with torch.no_grad():
        expected = model.network(spec, mixture)
    for ours, theirs in zip(expected, found, strict=True):
        assert_close(theirs, ours, tolerance=3e-6)


@pytest.mark.parametrize("name", TIME)
def test_a_model_in_time_is_exported_whole(name: str, tmp_path: Path):
    model = small(Demucs, channels=4, depth=3, **TIME[name])
    length = write_onnx(model, tmp_path / "model.onnx", segment=segment_of(model, 1))
    assert length == model.valid_length(RATE)
    session, _ = opened(tmp_path / "model.onnx")
    assert names(session) == (["mixture"], ["estimates"])
    for batch in (1, 3):
        mixture = noise(model, batch, length)
        with torch.no_grad():
            expected = model(mixture)
        assert_close(program(session)(tmp_path / "model.onnx", mixture.numpy()), expected)


@pytest.mark.parametrize("name", ["HDemucs", "HTDemucs"])
def test_common_models_need_numpy_and_onnxruntime_alone(name: str, tmp_path: Path):
    klass, kwargs = CASES[name]
    model = small(klass, **kwargs)
    write_onnx(model, tmp_path / "model.onnx", segment=segment_of(model, 0.5))
    session, _ = opened(tmp_path / "model.onnx")
    assert session.get_modelmeta().description == HYBRID
    assert {line for line in HYBRID.splitlines() if "import" in line} == {
        "import numpy as np",
        "import onnxruntime",
    }


def test_a_file_says_what_a_host_has_to_know(tmp_path: Path):
    model = small(HDemucs, channels=4, nfft=1024, depth=5, dconv_mode=0, hybrid_old=True)
    write_onnx(model, tmp_path / "model.onnx", segment=1.5)
    session, meta = opened(tmp_path / "model.onnx")
    assert meta.pop("demucs_lightning")
    assert json.loads(meta.pop("spectral")) == {
        "n_fft": 1024,
        "cac": True,
        "aligned": True,
        "zero_padded": True,
    }
    assert meta == {
        "klass": "HDemucs",
        "sources": '["bass", "rest"]',
        "samplerate": "8000",
        "audio_channels": "2",
        "chunk": "12000",
        "n_fft": "1024",
        "hop_length": "256",
        "floored": "false",
    }
    assert session.get_modelmeta().producer_name == "demucs-lightning"
    assert session.get_modelmeta().description == OTHER_STFT
    assert session.get_inputs()[0].shape == ["batch", 4, 512, 47]
    assert session.get_inputs()[1].shape == ["batch", 2, 12000]


def test_the_chunk_is_what_separation_gives_to_the_model():
    hybrid = small(HDemucs, channels=4, nfft=1024, depth=5, dconv_mode=0)
    assert chunk_of(hybrid) == 4 * RATE
    assert chunk_of(hybrid, 0.5) == RATE // 2
    trained = small(HTDemucs, **{**CASES["HTDemucs"][1], "segment": 2})
    assert chunk_of(trained) == 2 * RATE


@pytest.mark.parametrize("training", [True, False])
def test_export_is_silent_and_leaves_the_model_as_it_was(
    training: bool,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
    capfd: pytest.CaptureFixture[str],
):
    model = small(HDemucs, **CASES["HDemucs"][1]).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    write_onnx(model, tmp_path / "model.onnx", segment=1)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")
    assert {module.training for module in model.modules()} == {training}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("segment", [0, -1, float("nan"), float("inf"), 1e-5])
def test_a_segment_must_be_a_length(segment: float, tmp_path: Path):
    model = small(Demucs, channels=4, depth=2)
    with pytest.raises(ValueError, match="it must be a number of seconds above 0"):
        write_onnx(model, tmp_path / "model.onnx", segment=segment)


def test_a_segment_beyond_the_training_segment_is_refused(tmp_path: Path):
    model = small(HTDemucs, **{**CASES["HTDemucs"][1], "segment": 2})
    with pytest.raises(ValueError, match=r"segment is 3: .* trained on 2 seconds"):
        write_onnx(model, tmp_path / "model.onnx", segment=3)


def test_a_segment_that_would_have_no_effect_is_refused(tmp_path: Path):
    model = small(HTDemucs, **{**CASES["HTDemucs"][1], "segment": 2})
    with pytest.raises(ValueError, match=r"segment is 1: .* always the 2 seconds"):
        write_onnx(model, tmp_path / "model.onnx", segment=1)
    assert not (tmp_path / "model.onnx").exists()
    assert chunk_of(model, 2) == chunk_of(model) == model.training_length


def test_without_onnx_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "demucs-lightning\[export\]"'):
        write_onnx(small(Demucs, channels=4, depth=2), tmp_path / "model.onnx")


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_former_file(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"former")
    with pytest.raises(OSError, match="No space left") as caught:
        write_onnx(small(Demucs, channels=4, depth=2), path, segment=0.1)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"former"
