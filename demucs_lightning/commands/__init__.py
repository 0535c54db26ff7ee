"""The command ``demucs-lightning``: one file a subcommand."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from demucs_lightning.commands.allocator import keep_freed_memory

# Before torch is loaded. A thread that waits by spinning takes the core from the one it waits for:
# a step was ten times slower on a busy machine (benchmarks/NOTES.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
keep_freed_memory()

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
INTERRUPTED = 130
USAGE = "\n".join(
    [
        "usage: demucs-lightning COMMAND [...]",
        "",
        *(f"  {name:<9}{text}" for name, text in COMMANDS.items()),
    ]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names with the others."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(USAGE)
        return
    if name not in COMMANDS:
        sys.exit(
            f"error: {name!r} is no command of demucs-lightning; there are {', '.join(COMMANDS)}."
        )
    try:
        command = import_module(f"demucs_lightning.commands.{name}")
        # Processes of a distributed run start this file again, with the same settings.
        sys.argv[0] = str(command.__file__)
        command.main(rest)
    except KeyboardInterrupt:  # loading torch takes seconds
        print("Interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
