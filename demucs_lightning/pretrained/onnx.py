"""Models as ONNX files, for runtimes that know neither torch nor this package.

Contract: one file, opset 17, fp32, for chunks of one length and any batch. Of a hybrid model it
holds the real-valued network between the STFT and its inverse, of other models the whole network.

    hybrid:  mixture_spec (B, K, F, N), mixture (B, C, T)
             → spec_estimates (B, S, K, F, N), time_estimates (B, S, C, T)
    others:  mixture (B, C, T) → estimates (B, S, C, T)

Without a time branch (``hybrid=False``) there are neither mixture nor time_estimates.

The file's metadata say what a host has to know: ``klass``, ``sources`` (JSON), ``samplerate``,
``audio_channels``, ``chunk`` (T in samples), ``demucs_lightning`` (the version that wrote it), and
for hybrid models ``n_fft``, ``hop_length``, ``spectral`` (JSON: the arguments of
``models.stft.Spectral``) and ``floored`` (of ``Spectral.from_channels``). Its description is a
Python program with a function ``separate`` that runs it on a chunk: ``WHOLE``, ``HYBRID``, both on
numpy and onnxruntime alone, or ``OTHER_STFT``. A chunk is what ``separation.separate`` gives to a
model: T samples of a mixture that was normalised as a whole, to be cross-faded afterwards.

The exporter is the one that traces, not the one that builds on ``torch.export``: measured on small
models it takes seconds instead of a minute and leaves the batch free. A trace fixes what depends on
the length (the frames of a BLSTM, the mask of local attention), so the length is fixed too.

The means over a whole chunk, with which it is standardised, are taken in fp64: onnxruntime adds up
millions of numbers one after the other, and in fp32 lost 6e-4 of the level of 44 seconds.
"""

import io
import json
import math
import warnings
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from demucs_lightning.models.hybrid import HybridUNet
from demucs_lightning.pretrained.files import write_whole

OPSET = 17
LARGEST = 2**31 - 2**24  # bytes of weights: a file without external data is below 2 GB
KNOWN_WARNINGS = (torch.jit.TracerWarning, DeprecationWarning, FutureWarning, UserWarning)

WHOLE = '''\
import onnxruntime

def separate(path, mixture):
    """mixture (B, C, T), float32, T as the metadata's chunk; the stems are (B, S, C, T)."""
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {"mixture": mixture})[0]
'''

HYBRID = '''\
import numpy as np
import onnxruntime

def separate(path, mixture):
    """mixture (B, C, T), float32, T as the metadata's chunk; the stems are (B, S, C, T)."""
    session = onnxruntime.InferenceSession(path)
    meta = session.get_modelmeta().custom_metadata_map
    n_fft, hop, length = (int(meta[key]) for key in ("n_fft", "hop_length", "chunk"))
    batch, channels = mixture.shape[:2]
    frames, left = -(-length // hop), hop // 2 * 3
    window = np.hanning(n_fft + 1)[:-1]

    # Frame n of the STFT is the samples from n * hop of the mixture, reflected at its edges. The
    # Nyquist bin is left out; real and imaginary parts are channels.
    edges = (0, 0), (0, 0), (left, left + frames * hop - length)
    padded = np.pad(mixture, edges, mode="reflect")
    framed = np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=-1)[..., ::hop, :]
    spec = np.fft.rfft(framed * window)[..., :-1].swapaxes(-1, -2) / np.sqrt(n_fft)
    parts = np.stack([spec.real, spec.imag], axis=2).reshape(batch, -1, n_fft // 2, frames)

    inputs = {"mixture_spec": parts.astype(np.float32), "mixture": mixture}
    parts, *time = session.run(None, inputs)

    # Back, frame after frame; four windows overlap, and their squares add up to 1.5.
    parts = parts.reshape(batch, -1, channels, 2, n_fft // 2, frames)
    spec = parts[:, :, :, 0] + 1j * parts[:, :, :, 1]
    framed = np.fft.irfft(spec, n=n_fft, axis=-2) * window[:, None] * np.sqrt(n_fft) / 1.5
    estimates = np.zeros((*framed.shape[:3], padded.shape[-1]))
    for frame in range(frames):
        estimates[..., frame * hop : frame * hop + n_fft] += framed[..., frame]
    return estimates[..., left : left + length] + sum(time)
'''

OTHER_STFT = '''\
import json
import onnxruntime
import torch
from demucs_lightning.models.stft import Spectral

def separate(path, mixture):
    """mixture (B, C, T), float32, T as the metadata's chunk; the stems are (B, S, C, T)."""
    session = onnxruntime.InferenceSession(path)
    meta = session.get_modelmeta().custom_metadata_map
    spectral, floored = Spectral(**json.loads(meta["spectral"])), json.loads(meta["floored"])
    spec = spectral.spec(torch.from_numpy(mixture))
    inputs = {"mixture_spec": spectral.to_channels(spec).numpy(), "mixture": mixture}
    taken = [each.name for each in session.get_inputs()]
    output, *time = session.run(None, {name: inputs[name] for name in taken})
    back = spectral.from_channels(torch.from_numpy(output), spec, floored=floored)
    return spectral.audio(back, mixture.shape[-1]).numpy() + sum(time)
'''


def check_exportable() -> None:
    """Raise ValueError where the package that ONNX files need is missing."""
    if find_spec("onnx") is None:
        raise ValueError(
            'An .onnx file needs the package onnx: pip install "demucs-lightning[export]".'
        )


def write_onnx(model: nn.Module, path: str | Path, *, segment: float | None = None) -> int:
    """Write a model of this package to ``path``, replacing what is there; returns T, in samples.

    The chunk is as long as separation makes it for this model, with chunks of ``segment`` seconds
    (None: the model's own). The model is left as it is.

    Raises ValueError for a segment that is not for this model, where onnx is missing, and for a
    model too large for one file; OSError if the file can't be written.
    """
    check_exportable()
    import onnx

    chunk = chunk_of(model, segment)
    if sum(value.numel() * 4 for value in model.state_dict().values()) > LARGEST:
        raise ValueError(f"{path} is not written: the model is larger than the 2 GB of one file.")
    described = {**_describe(model), "chunk": str(chunk)}
    exported = _with_exact_means(_export(model, chunk))
    exported.producer_name, exported.producer_version = "demucs-lightning", _version()
    exported.doc_string = _explanation(model)
    onnx.helper.set_model_props(exported, described)
    write_whole(path, exported.SerializeToString())
    return chunk


def chunk_of(model: Any, segment: float | None = None) -> int:
    """Samples of the chunks that separation with ``segment`` seconds gives to ``model``.

    Raises ValueError for a segment that is no length, or none that this model separates at.
    """
    seconds = float(model.segment if segment is None else segment)
    samples = int(model.samplerate * seconds) if math.isfinite(seconds) else 0
    if samples < 1:
        raise ValueError(f"segment is {segment}: it must be a number of seconds above 0.")
    if seconds > model.max_segment:
        raise ValueError(
            f"segment is {seconds:g}: this model was trained on {float(model.max_segment):g} "
            "seconds and takes no more."
        )
    chunk = model.valid_length(samples)
    if segment is not None and math.isfinite(model.max_segment) and chunk - samples > 1:
        raise ValueError(
            f"segment is {seconds:g}: the chunk of this model is always the "
            f"{float(model.max_segment):g} seconds that it was trained on, so leave it out."
        )
    return chunk


class _Network(nn.Module):
    """What the file holds of a hybrid model."""

    def __init__(self, model: HybridUNet) -> None:
        super().__init__()
        self.model = model
        self.training = model.training  # the exporter returns to it

    def forward(self, mixture_spec: Tensor, mixture: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        freq, time = self.model.network(mixture_spec, mixture)
        return freq if time is None else (freq, time)


def _interface(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the inputs and outputs."""
    if not isinstance(model, HybridUNet):
        return ["mixture"], ["estimates"]
    if not model.hybrid:  # the exporter leaves out an input that nothing depends on
        return ["mixture_spec"], ["spec_estimates"]
    return ["mixture_spec", "mixture"], ["spec_estimates", "time_estimates"]


def _export(model: Any, chunk: int) -> bytes:
    inputs, outputs = _interface(model)
    like = next(model.parameters())
    mixture = like.new_zeros(1, model.audio_channels, chunk)
    network, arguments = model, (mixture,)
    if isinstance(model, HybridUNet):
        spec = model.spectral.to_channels(model.spectral.spec(mixture))
        network, arguments = _Network(model), (spec, mixture)
    content = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        for category in KNOWN_WARNINGS:  # shapes become constants, as they should
            warnings.simplefilter("ignore", category)
        torch.onnx.export(
            network,
            arguments,
            content,  # pyright: ignore[reportArgumentType]: the tracing exporter takes a buffer
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )
    return content.getvalue()


def _with_exact_means(content: bytes) -> Any:
    """The exported model, its means taken in fp64."""
    import onnx

    model = onnx.load_from_string(content)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "ReduceMean":
            continue
        source, result = node.input[0], node.output[0]
        node.input[0], node.output[0] = f"{result}_64_in", f"{result}_64"
        types = onnx.TensorProto
        widen = onnx.helper.make_node("Cast", [source], node.input, to=types.DOUBLE)
        narrow = onnx.helper.make_node("Cast", node.output, [result], to=types.FLOAT)
        nodes[-1:] = [widen, node, narrow]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _describe(model: Any) -> dict[str, str]:
    described = {
        "klass": type(model).__name__,
        "sources": json.dumps(model.sources),
        "samplerate": str(model.samplerate),
        "audio_channels": str(model.audio_channels),
        "demucs_lightning": _version(),
    }
    if isinstance(model, HybridUNet):
        described |= {
            "n_fft": str(model.spectral.n_fft),
            "hop_length": str(model.spectral.hop_length),
            "spectral": json.dumps(asdict(model.spectral)),
            "floored": json.dumps(model.wiener_iters < 0),
        }
    return described


def _explanation(model: nn.Module) -> str:
    if not isinstance(model, HybridUNet):
        return WHOLE
    spectral = model.spectral
    common = spectral.cac and spectral.aligned and not spectral.zero_padded
    return HYBRID if common else OTHER_STFT


def _version() -> str:
    try:
        return version("demucs-lightning")
    except PackageNotFoundError:  # used from a folder, not installed
        return "unknown"
