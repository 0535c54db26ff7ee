"""Audio files to tensors and back: the only package that knows codecs.

`read` and `write` take whole recordings, `stream` and `writer` blocks of one of any length; `info`,
`tags` and `check_encoder` tell what a file is and what can be written. Audio is (C, T) float32 with
full scale at 1. What is wrong with a file is told in one sentence that names it. No result depends
on the number of threads.
"""

from demucs_lightning.audio.convert import (
    Resampler,
    convert_channels,
    resample,
    resampled_length,
)
from demucs_lightning.audio.decoding import BLOCK, blocks, info, read
from demucs_lightning.audio.encoding import (
    FORMATS,
    Encoding,
    check_encoder,
    expected_bytes,
    subtype_like,
    subtype_of,
)
from demucs_lightning.audio.files import replacing
from demucs_lightning.audio.form import AudioInfo
from demucs_lightning.audio.metadata import Tags, tags
from demucs_lightning.audio.parts import remove_leftovers
from demucs_lightning.audio.stem_file import StemWriter, stem_names
from demucs_lightning.audio.streaming import AudioReader, stream
from demucs_lightning.audio.wav import memory_map
from demucs_lightning.audio.writing import AudioWriter, write, writer

__all__ = [
    "BLOCK",
    "FORMATS",
    "AudioInfo",
    "AudioReader",
    "AudioWriter",
    "Encoding",
    "Resampler",
    "StemWriter",
    "Tags",
    "blocks",
    "check_encoder",
    "convert_channels",
    "expected_bytes",
    "info",
    "memory_map",
    "read",
    "remove_leftovers",
    "replacing",
    "resample",
    "resampled_length",
    "stem_names",
    "stream",
    "subtype_like",
    "subtype_of",
    "tags",
    "write",
    "writer",
]
