"""A program: every argument of every class, with values that ask for more than any machine has,
built in 4 GB of address space. Prints the seconds of the slowest case, which it is, and the most
memory in MB; fails where one ends in anything but a model or a ValueError.
"""

import inspect
import resource
import sys
import time
from typing import Any

import torch

from demucs_lightning.pretrained.package import CLASSES, Package, build
from tests.memory import peak

VALUES: list[Any] = [10**6, 10**9, 2**40, -1, 0, 1e-12, float("nan"), [1] * 10**5]
SMALL: dict[str, dict[str, Any]] = {
    "Demucs": {"channels": 4, "depth": 2, "lstm_layers": 1},
    "HDemucs": {"channels": 4, "nfft": 256, "depth": 4},
    "HTDemucs": {"channels": 4, "nfft": 256, "depth": 2, "t_layers": 2, "dconv_comp": 2},
}


def main() -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    slowest = (0.0, "")
    for klass, kwargs in SMALL.items():
        kwargs = {"sources": ["a", "b"], "samplerate": 8000, "segment": 1, **kwargs}
        state = CLASSES[klass](**kwargs).state_dict()
        for name in inspect.signature(CLASSES[klass]).parameters:
            for value in [*VALUES, ["a"] * 10**5] if name == "sources" else VALUES:
                start = time.process_time()
                try:
                    build(Package(klass, {**kwargs, name: value}, state, "a.th"))
                except ValueError as error:
                    said = str(error)
                    assert said.startswith("a.th "), said[:400]
                    assert len(said) < 400, said[:400]
                took = time.process_time() - start
                slowest = max(slowest, (took, f"{klass} {name}={str(value)[:20]}"))
    memory = peak() / 1024
    sys.stdout.write("\n".join(map(str, (*slowest, memory))))


if __name__ == "__main__":
    main()
