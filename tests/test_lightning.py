"""What is used of Lightning beside its public interface: an update that takes it away fails here,
with the name, and not in somebody's training.
"""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
from lightning import Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

PACKAGE = Path(__file__).parents[1] / "demucs_lightning"
FILES = ("callbacks", "scale", "commands", "training.py", "validation.py", "resume.py")
# Underlined names of objects that are not Lightning's.
OTHERS = {"os._exit", "cfg.model._target_", "cfg.dset._target_", "cfg.logger._target_"}
OTHERS |= {"hydra._internal", "parser._option_string_actions"}


def trainer() -> Any:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)


def epoch_loop() -> Any:
    return trainer().fit_loop.epoch_loop


def checkpoint() -> dict[str, Any]:
    """The counters of a checkpoint, as resume.settle changes them."""
    loops: Any = trainer()._checkpoint_connector._get_loops_state_dict()
    return {"loops": loops}


USED: list[tuple[str, Callable[[], Any], str]] = [
    ("_broadcast_sigterm_tensor", epoch_loop, "callbacks/stopping.py"),
    ("_batches_that_stepped", epoch_loop, "callbacks/checkpoints.py"),
    ("_signal_connector", trainer, "callbacks/stopping.py"),
    ("received_sigterm", lambda: trainer()._signal_connector, "callbacks/stopping.py"),
    ("_checkpoint_connector", trainer, "callbacks/checkpoints.py"),
    ("dump_checkpoint", lambda: trainer()._checkpoint_connector, "callbacks/checkpoints.py"),
    ("_launcher", lambda: DDPStrategy(), "scale/strategies.py"),
    ("_launcher", lambda: ModelParallelStrategy(), "scale/strategies.py"),
    ("_configure_launcher", lambda: DDPStrategy, "scale/strategies.py"),
    ("_configure_launcher", lambda: ModelParallelStrategy, "scale/strategies.py"),
    ("_data_parallel_size", lambda: ModelParallelStrategy(), "scale/strategies.py"),
    ("_call_children_scripts", lambda: _SubprocessScriptLauncher, "scale/strategies.py"),
    (
        "procs",
        lambda: _SubprocessScriptLauncher(LightningEnvironment(), 1, 1),
        "scale/strategies.py",
    ),
]


@pytest.mark.parametrize(("name", "owner", "file"), USED)
def test_what_is_used_of_lightning_is_there(name: str, owner: Callable[[], Any], file: str) -> None:
    found = owner()
    kind = found.__name__ if isinstance(found, type) else type(found).__name__
    assert hasattr(found, name), (
        f"lightning {lightning.__version__} has no {kind}.{name}, which {file} uses"
    )


def test_checkpoints_count_as_resume_settles_them() -> None:
    where = f"of a checkpoint of lightning {lightning.__version__}, which resume.py sets, is gone"
    fit_loop = checkpoint()["loops"].get("fit_loop")
    assert fit_loop is not None, f'["loops"]["fit_loop"] {where}'
    counters = ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress")
    for key in counters:
        assert {"total", "current"} <= set(fit_loop.get(key, ())), f"{key} {where}"
        assert set(fit_loop[key]["total"]) == {"ready", "started", "processed", "completed"}, key
    for key in counters[1:]:
        assert "is_last_batch" in fit_loop[key], f"{key}.is_last_batch {where}"


def private(path: Path) -> set[str]:
    """Underlined attributes of anything but the object, or the class, itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr[0] == "_" and node.attr[1] != "_":
            base = ast.unparse(node.value)
            if base not in ("self", "cls", "super()"):
                found.add(f"{base}.{node.attr}")
    return found


def test_nothing_private_is_used_that_is_not_in_the_list() -> None:
    places = [PACKAGE / name for name in FILES]
    paths = [path for each in places for path in ([each] if each.is_file() else each.glob("*.py"))]
    used = set().union(*map(private, paths)) - OTHERS
    names = {name for name, _, _ in USED}
    assert {each.rpartition(".")[2] for each in used} <= names, used
    assert {"_launcher", "_batches_that_stepped"} <= {each.rpartition(".")[2] for each in used}
