"""The pages in docs/ are true: their commands parse and compose, what they name exists."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from demucs_lightning.commands.settings import compose

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SBATCH = (
    *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time"),
    *("requeue", "open-mode", "output", "signal"),
)


def blocks() -> list[tuple[str, str, str]]:
    """Page, language and content of every block of code."""
    found = [(page, BLOCK.findall(page.read_text(encoding="utf-8"))) for page in PAGES]
    return [(page.name, kind, text) for page, texts in found for kind, text in texts]


LINES = [
    (page, line) for page, _, text in blocks() for line in text.splitlines() if "train.py" in line
]


@pytest.mark.parametrize(("page", "line"), LINES)
def test_every_command_composes(page: str, line: str) -> None:
    words = shlex.split(line)
    if words[0] == "torchrun":
        parsed = get_args_parser().parse_args(words[1:])
        script, settings = parsed.training_script, parsed.training_script_args
    else:
        words = words[1:] if words[0] == "srun" else words
        script, settings = words[1], words[2:]
        assert words[0] == "python"
    assert script == "train.py"
    compose([*settings, "trainer.precision=32"])


WAYS = {
    "gpus": "python train.py gpus=[0,2,3]",
    "torchrun": "torchrun --nnodes 2",
    "slurm": "srun python",
    "fsdp": "trainer.strategy=fsdp",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_there_is_a_page_on_launching_with_each_way(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert WAYS[page.stem] in text
    # every setting that is named is one, and every page that is linked to is there
    cfg = compose(["trainer.precision=32"])
    for key in re.findall(r"`((?:trainer|checkpoint|distributed|optim|svd)\.\w+)`", text):
        node, _, name = key.partition(".")
        assert name in cfg[node], key
    for link in re.findall(r"\]\((\w+\.md)\)", text):
        assert (page.parent / link).is_file()


def test_every_way_has_its_page() -> None:
    assert {page.stem for page in PAGES} == set(WAYS)


def test_the_script_for_slurm_is_one(tmp_path: Path) -> None:
    (script,) = [text for _, kind, text in blocks() if kind == "bash"]
    path = tmp_path / "train.sh"
    path.write_text(script)
    subprocess.run(["bash", "-n", str(path)], check=True)
    options = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script, re.MULTILINE)
    assert len(options) == script.count("#SBATCH")
    found = dict(options)
    assert set(found) <= set(SBATCH)
    assert found["ntasks-per-node"] == found["gpus-per-node"]  # a process for each GPU
    assert found["signal"].startswith("USR1@")
