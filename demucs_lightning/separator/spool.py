"""Blocks on disk between two readings, in a file that has no name and is gone with the process."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor


class Spool:
    """A context manager that holds blocks (P, C, t) as float32, t the same for all but the last.

    Raises OSError, naming the folder, where its disk is full or it can't be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shape = (0, 0, 0)  # of all blocks but the last
        self._file = None

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self.folder)
        except OSError as error:
            raise self._failed(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            # What is still in its buffer is of no use, and may not fit on the disk.
            self._file.detach().close() if kind else self._file.close()
            self._file = None

    def add(self, block: Tensor) -> None:
        """Append a block."""
        assert self._file is not None
        self._shape = self._shape if any(self._shape) else tuple(block.shape)
        try:
            self._file.write(block.contiguous().numpy().tobytes())
        except OSError as error:
            raise self._failed(error) from error

    def blocks(self) -> Iterator[Tensor]:
        """The blocks, in the order they came."""
        assert self._file is not None
        parts, channels, size = self._shape
        try:
            self._file.flush()
            self._file.seek(0)
        except OSError as error:
            raise self._failed(error) from error
        while content := self._file.read(4 * parts * channels * size):
            samples = np.frombuffer(content, dtype=np.float32).reshape(parts, channels, -1)
            yield torch.from_numpy(samples.copy())

    def _failed(self, error: OSError) -> OSError:
        return OSError(f"{self.folder} can't hold what is computed ({error.strerror or error}).")
