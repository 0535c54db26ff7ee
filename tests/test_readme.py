"""README is true: its tables are those of conf/, its commands compose, what it names exists.

After a change in conf/, `python -c "from tests.test_readme import update; update()"` writes the
tables anew.
"""

import re
import shlex
from pathlib import Path

import pytest

from demucs_lightning import audio, pretrained
from demucs_lightning.commands import flags
from demucs_lightning.commands.settings import compose
from tests.separator.models import noise, small

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
HIDDEN = ("_target_", "_partial_", "defaults", "hydra")
WORDS = {
    "${ones:${sources}}": "all 1",
    "${times:4,${segment}}": "4 × `segment`",
    "${trained_segment:${segment},${samplerate},${data_augmentation},${augment}}": (
        "what augmentation leaves of `segment`"
    ),
    "${monitored:${sources},${weights}}": "`valid/nsdr`, of the only source of any weight",
}


def settings_of(conf: Path, prefix: str = "") -> list[tuple[str, str, str]]:
    """Key, value and comment of every line of a file of settings; no value where a node begins."""
    rows, path = [], []
    for line in conf.read_text(encoding="utf-8").splitlines():
        setting, _, comment = line.partition(" #")
        match = re.fullmatch(r"((?:  )*)([a-z_]+):\s*(.*)", setting.rstrip())
        if match is None:
            continue
        indent, name, value = match.groups()
        path = [*path[: len(indent) // 2], name]
        if not {*path} & {*HIDDEN}:
            rows.append((prefix + ".".join(path), value, comment.strip()))
    return rows


def choices() -> list[tuple[str, str, str]]:
    """The groups of conf/, which `defaults` of config.yaml lists with a comment each."""
    text = (ROOT / "conf" / "config.yaml").read_text(encoding="utf-8")
    return re.findall(r"^  - (\w+): (\w+) # (.*)$", text, re.MULTILINE)


def table(rows: list[tuple[str, str, str]]) -> str:
    """In Markdown, without what only passes another setting on under the same name."""
    said = {key.split(".")[-1]: comment for key, _, comment in reversed(rows) if comment}
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for key, value, comment in rows:
        reference = re.fullmatch(r"\$\{([a-z._]+)\}", value)
        shown = f"as `{reference[1]}`" if reference else WORDS.get(value, f"`{value}`")
        if not value and comment:
            lines.append(f"| **{key}** | | {comment} |")
        elif value and not (reference and not comment and reference[1] == key.split(".")[-1]):
            lines.append(f"| `{key}` | {shown} | {comment or said.get(key.split('.')[-1], '')} |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """The generated parts of README, by the names of their markers."""
    conf = ROOT / "conf"
    parts = {"settings": table(choices() + settings_of(conf / "config.yaml"))}
    for name in ("HDemucs", "HTDemucs", "Demucs"):
        rows = settings_of(conf / "model" / f"{name}.yaml", "model.")
        parts[name] = table(rows)
    return parts


def marked(name: str, content: str) -> str:
    return f"<!-- {name} -->\n{content}\n<!-- /{name} -->"


def update() -> None:
    """Write the tables into README, between their markers."""
    text = README.read_text(encoding="utf-8")
    for name, content in tables().items():
        before, _, rest = text.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        assert end, f"README has no place for {name}"
        text = before + marked(name, content) + after
    README.write_text(text, encoding="utf-8")


def blocks(language: str, section: str = "") -> str:
    """The code of that language in README, or in one section of it."""
    text = README.read_text(encoding="utf-8")
    if section:
        text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


def commands() -> list[str]:
    """The overrides of every `python train.py` and `python test.py` in README."""
    return re.findall(r"^python (?:train|test)\.py (.*?)(?:\s+#.*)?$", blocks("bash"), re.MULTILINE)


@pytest.mark.parametrize("name", ["settings", "HDemucs", "HTDemucs", "Demucs"])
def test_the_tables_are_those_of_conf(name):
    assert marked(name, tables()[name]) in README.read_text(encoding="utf-8"), "call update()"


def test_every_setting_says_what_it_means():
    rows = choices() + settings_of(ROOT / "conf" / "config.yaml")
    # One that only repeats another, or its namesake in `valid`, needs no words of its own.
    said = {key.split(".")[-1] for key, _, comment in rows if comment}
    silent = [key for key, value, comment in rows if not comment and value and value[0] != "$"]
    assert [key for key in silent if key.split(".")[-1] not in said] == []


def test_the_five_commands_are_there():
    assert {
        "gpus=[0] model=Demucs download=True",
        "gpus=[0] model=HDemucs download=True",
        "batch_size=2 augment.remix.group_size=2 model=Demucs",
        "batch_size=1 data_augmentation=False model=Demucs",
        "batch_size=1 data_augmentation=False segment=6 model=Demucs",
    } <= set(commands())


@pytest.mark.parametrize("command", commands())
def test_every_command_composes(command):
    compose([word for word in command.split() if not word.startswith("-")])


def test_every_target_of_make_exists():
    targets = set(re.findall(r"\bmake ([a-z]+)\b", blocks("bash")))
    assert {"demo", "test", "bench"} <= targets
    rules = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets <= set(rules)


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_layout_names_every_module():
    (layout,) = re.findall(r"^```text\n(train\.py.*?)^```", README.read_text(), re.M | re.DOTALL)
    names = {path.name for path in (ROOT / "demucs_lightning").iterdir() if path.name[0] != "_"}
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", layout)] == []


@pytest.mark.parametrize(
    "command", re.findall(r"^demucs-lightning separate (.*)$", blocks("bash"), re.MULTILINE)
)
def test_the_separate_commands_are_understood(command):
    assert flags.parsed(shlex.split(command, comments=True)).tracks


def test_the_python_of_separate_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = small(samplerate=44_100)
    monkeypatch.setattr(pretrained, "load_model", lambda name: model)
    audio.write("song.wav", noise(2, 200_000), samplerate=44_100)
    exec(compile(blocks("python", "Separate"), "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "out/song/no_vocals.flac" in said
    assert "torch.Size([2, " in said
    assert Path("out/song/vocals.flac").exists()
