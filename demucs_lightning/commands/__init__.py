"""The command ``demucs-lightning``: one file a subcommand.

To import it changes nothing in a process; where the process is the command's own, the program that
it runs says so (see allocator.py).
"""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from demucs_lightning.allocator import own_process
from demucs_lightning.scale.launch import check_ranks

COMMANDS = {
    "train": "train a separator; settings as key=value, --help lists them",
    "test": "score a checkpoint on a test set: resume_checkpoint=PATH",
    "evaluate": "score a model, or a folder of stems, on a test set",
    "compare": "results of evaluate side by side, with confidence intervals",
    "separate": "separate tracks into stems",
    "models": "list the released models, download or remove them",
    "export": "write a model as .th, .safetensors or .onnx",
    "bag": "put models together that separate as one, such as a specialist for each source",
    "demo": "train a small separator on songs made on the spot, and hear it",
}
TRAINING = ("train", "test", "demo")  # which need Lightning
INTERRUPTED = 130
USAGE = "\n".join(
    [
        "usage: demucs-lightning COMMAND [...]",
        "",
        *(f"  {name:<9}{text}" for name, text in COMMANDS.items()),
    ]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names with the others; without ``argv`` those of the
    process, which is then the command's own."""
    own = argv is None
    if own:
        own_process()
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(USAGE)
        return
    if name not in COMMANDS:
        sys.exit(
            f"error: {name!r} is no command of demucs-lightning; there are {', '.join(COMMANDS)}."
        )
    try:
        command = (loaded if own else _module)(name)
        # Processes of a distributed run start this file again, with the same settings.
        sys.argv[0] = str(command.__file__)
        command.main(rest)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def loaded(name: str) -> Any:
    """The module of a command, in a process of its own. Loading torch takes seconds, in which a
    Ctrl-C ends the process at once: packages that are half loaded may take an exception for
    something else, or show where it came from.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # is to be ignored
        return _module(name)
    signal.signal(signal.SIGINT, _interrupted)
    module = _module(name)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return module


def _module(name: str) -> Any:
    if name in TRAINING:
        try:
            check_ranks()
        except ValueError as error:
            sys.exit(f"error: {error}")
    return import_module(f"demucs_lightning.commands.{name}")


def _interrupted(*_: Any) -> None:
    os.write(sys.stderr.fileno(), b"Interrupted.\n")
    os._exit(INTERRUPTED)
