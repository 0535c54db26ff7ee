"""Files as such: what must hold before one is opened, and how one comes to be all at once or never.

What is wrong with a file is a FileNotFoundError, an OSError or a ValueError of one sentence that
names it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import soundfile
from av.error import FFmpegError

from demucs_lightning.audio.parts import partial_name


def existing(path: str | Path) -> Path:
    """The path of a file that is there, can be opened and isn't empty."""
    path = Path(path)
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder: an audio file was expected.")
    if not path.is_file():
        what = "no file but a device or a pipe" if path.exists() else "not there"
        raise FileNotFoundError(f"{path} is {what}: an audio file was expected.")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty (0 bytes): an audio file was expected.")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path} can't be read: this user has no permission to.")
    return path


def head(path: Path, size: int = 64) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as file:
        return file.read(size)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place at the end, or vanishes on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# What FFmpeg and libsndfile say where their own words would lead astray.
NONE, ENDS = ": it is none, or it is damaged", ": it ends too early"
CRYPTIC = {
    "Operation not permitted": "",
    "End of file": ENDS,
    "Invalid data found when processing input": NONE,
    "Invalid argument": "",
    "Format not recognised": NONE,
    "Error in WAV file. No 'data' chunk marker": ENDS,
}


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turns what the libraries say of a file that they can't decode into a sentence."""
    try:
        yield
    except (soundfile.SoundFileError, FFmpegError) as error:
        why = reason(error)
        if why in CRYPTIC:
            raise ValueError(f"{path} can't be decoded as audio{CRYPTIC[why]}.") from error
        if "psf_fseek" in why or "lost sync" in why:  # of a FLAC file that ends too early
            why = "it is truncated or damaged"
        raise ValueError(f"{path} can't be decoded as audio ({why}).") from error


def reason(error: Exception) -> str:
    """What a library says was wrong, without the path that its messages repeat."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return text.replace("\n", " ").strip(" .")


def url(path: Path) -> str:
    """A name for FFmpeg, which takes what stands before a colon for a protocol."""
    return f"file:{path}"


def native(path: Path) -> Any:
    """A name for libsndfile: its bytes, where names are bytes that may be no text."""
    return os.fsencode(path) if os.name == "posix" else str(path)


def no_audio(path: Path) -> ValueError:
    return ValueError(f"{path} holds no audio: its length is 0 samples.")


def truncated(path: Path, promised: int, found: int, unit: str = "samples") -> ValueError:
    return ValueError(
        f"{path} is truncated: its header promises {promised} {unit}, the file holds {found}."
    )
