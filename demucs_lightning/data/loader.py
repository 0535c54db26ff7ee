"""Reads batches ahead of their use, in threads.

Reading an extract is copying 8 MB out of a memory map, which releases the interpreter's lock. So
threads do what worker processes would, without the shared memory between processes, whose first
touch costs several times the copy. What comes when does not depend on their number.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from torch import Tensor

from demucs_lightning.data.extracts import Extracts, collate
from demucs_lightning.data.sampler import ExtractOrder

Load = Callable[[Any], Any]
ORDER = {  # what that of an epoch depends on, in words
    "extracts": "{} extracts",
    "batch": "{} to a batch (batch_size x GPUs)",
    "seed": "seed={}",
}


def read_ahead(load: Load, places: Iterator[Any], *, threads: int) -> Iterator[Any]:
    """``load(place)`` for each of ``places``, in order; two each are ready or under way for every
    thread, and with none, each is loaded when it is asked for.
    """
    if not threads:
        yield from map(load, places)
        return
    pool = ThreadPoolExecutor(threads, "reader")
    try:
        ahead = deque(pool.submit(load, place) for place in islice(places, 2 * threads))
        while ahead:
            batch = ahead.popleft().result()
            ahead.extend(pool.submit(load, place) for place in islice(places, 1))
            yield batch
    finally:  # also where the iteration is left early
        pool.shutdown(wait=False, cancel_futures=True)


class TrainingLoader:
    """Batches of ``dataset`` in the order of ``sampler``, see `collate`.

    Lightning takes it for resumable, which the order is, and it notices other data. ``pin`` puts
    batches into pinned memory, from which a GPU copies while it computes.
    """

    def __init__(
        self, dataset: Any, sampler: ExtractOrder, *, threads: int = 0, pin: bool = False
    ) -> None:
        self.dataset, self.sampler, self.threads, self.pin = dataset, sampler, threads, pin

    def __len__(self) -> int:
        return self.sampler.batches

    def __iter__(self) -> Iterator[Any]:
        indices = iter(self.sampler)
        places = iter(lambda: list(islice(indices, self.sampler.batch_size)), [])
        return read_ahead(self._load, places, threads=self.threads)

    def _load(self, indices: Sequence[int]) -> Any:
        if isinstance(self.dataset, Extracts):
            batch = self.dataset.batch(indices, pin=self.pin)
        else:
            batch = collate([self.dataset[index] for index in indices])
        return {key: _pinned(value) for key, value in batch.items()} if self.pin else batch

    def state_dict(self) -> dict[str, int]:
        order = self.sampler
        return {"extracts": order.size, "batch": order.batch_size * order.world, "seed": order.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        differ = [
            f"{ORDER[key].format(state[key])}, here {value}"
            for key, value in self.state_dict().items()
            if state.get(key, value) != value
        ]
        if differ:
            raise ValueError(
                "resume_checkpoint stopped within an epoch, which can't go on in another order (it "
                f"had {'; '.join(differ)}): use the settings, the data and as many GPUs as that "
                "run had."
            )


class TrackLoader:
    """Every ``world``-th item of ``tracks`` from ``rank`` on, for ``share`` (rank, world), and None
    where other processes have one track more.
    """

    def __init__(self, tracks: Any, *, share: tuple[int, int] = (0, 1), threads: int = 0) -> None:
        self.tracks, self.threads = tracks, threads
        self.rank, self.world = share

    def __len__(self) -> int:
        return -(-len(self.tracks) // self.world)

    def __iter__(self) -> Iterator[Any]:
        places = iter(range(self.rank, len(self) * self.world, self.world))
        return read_ahead(self._load, places, threads=self.threads)

    def _load(self, index: int) -> Any:
        return self.tracks[index] if index < len(self.tracks) else None


def _pinned(value: Any) -> Any:
    """A tensor in pinned memory, itself if it is there."""
    return value.pin_memory() if isinstance(value, Tensor) else value
