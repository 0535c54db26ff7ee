"""The rules of the house: which way imports go, what stands where, and versions that agree."""

import ast
import re
import sys
import tomllib
import zipfile
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PACKAGE = "demucs_lightning"

# A module imports from its own layer and the ones above it in this list, and never in a circle.
LAYERS = [
    ["models", "audio", "augment", "repitch", "losses", "metrics", "ema", "optim", "figures"]
    + ["allocator", "compiled", "graphs", "moments", "pool", "version"],
    ["separation", "data", "scores", "scale"],
    ["pretrained", "training", "validation", "callbacks", "resume"],
    ["separator", "evaluation"],
    ["commands"],
]
# Where a package may be imported. Those that are not named: anywhere but in models.
PLACES = {
    "hydra": ["commands"],
    "omegaconf": ["commands"],
    "lightning": ["training", "validation", "callbacks", "scale", "data.datamodule", "commands"],
    "wandb": ["callbacks"],
    "tensorboard": ["callbacks"],
    "soundfile": ["audio"],
    "av": ["audio"],
    "soxr": ["audio"],
    "huggingface_hub": ["pretrained.hub", "pretrained.caches"],
    "safetensors": ["pretrained"],
    "diffq": ["pretrained.quantized"],
    "onnx": ["pretrained.onnx"],
}
IMPORTED_AS = {"hydra-core": "hydra", "huggingface-hub": "huggingface_hub", "pyyaml": "yaml"}
EXTRAS = {"wandb", "diffq", "onnx"}
MAX_LINES = {"training": 150}  # any other: 400


def module_of(path: Path) -> str:
    """`models.layers` for models/layers.py, `models` for its `__init__`, "" for the package's."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {module_of(path): path for path in (ROOT / PACKAGE).rglob("*.py")}


def imports_of(path: Path) -> set[str]:
    """The full name of everything that a file imports, wherever in the file it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(name: str) -> str | None:
    """The module of this package that an imported name stands for or in, or None."""
    if name.split(".")[0] != PACKAGE:
        return None
    inner = name.removeprefix(PACKAGE).removeprefix(".")
    while inner not in FILES:
        inner = inner.rpartition(".")[0]
    return inner


def foreign(path: Path) -> set[str]:
    """The packages that a file imports from neither the standard library nor this project."""
    tops = {name.split(".")[0] for name in imports_of(path)}
    return tops - set(sys.stdlib_module_names) - {PACKAGE}


def layer(module: str) -> int:
    """The index in LAYERS; the package's own `__init__` offers names from below the commands."""
    if not module:
        return len(LAYERS) - 2
    return next(i for i, names in enumerate(LAYERS) if module.split(".")[0] in names)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith(("#", "-r "))]
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line), f"{name}: {line} pins no version"
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines), f"{name} names a package twice"
    return found


def test_every_module_has_a_layer():
    tops = {module.split(".")[0] for module in FILES if module}
    assert tops == set().union(*LAYERS)


def test_imports_go_one_way():
    for module, path in FILES.items():
        used = {name for name in map(own, imports_of(path)) if name not in (None, module)}
        assert "" not in used, f"{module}: the package's public names are for its users"
        against = {name for name in used if name and layer(name) > layer(module)}
        assert not against, f"{module} imports {against} from a layer that builds on it"


def test_no_module_imports_itself_in_a_circle():
    graph = {m: {own(name) for name in imports_of(p)} - {None, m} for m, p in FILES.items()}
    # A package's __init__ gathers names of its modules, which may import one another by full name.
    for module, used in graph.items():
        graph[module] = {name for name in used if not module.startswith(f"{name}.")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_packages_are_imported_where_they_belong():
    for module, path in FILES.items():
        for name in foreign(path):
            places = PLACES.get(name, [module])
            assert any(f"{module}.".startswith(f"{place}.") for place in places), (module, name)


def test_models_need_torch_and_nothing_else():
    for module, path in FILES.items():
        if module.split(".")[0] == "models":
            assert foreign(path) <= {"torch"}, module
            assert {own(n) for n in imports_of(path)} - {None} <= {
                m for m in FILES if m.split(".")[0] == "models"
            }, module


def test_the_package_imports_what_it_declares_and_the_reverse():
    declared = [Requirement(line) for line in project()["project"]["dependencies"]]
    imported = set().union(*map(foreign, FILES.values()))
    names = {IMPORTED_AS.get(requirement.name, requirement.name) for requirement in declared}
    # Lightning's logger writes TensorBoard's files.
    assert imported | {"tensorboard"} == names | (EXTRAS & imported)


def test_files_are_short_and_say_what_they_do():
    for module, path in FILES.items():
        text = path.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        assert lines <= MAX_LINES.get(module, 400), f"{path.name} has {lines} lines"
        assert ast.get_docstring(ast.parse(text)), f"{path} does not say what it is for"


def test_the_wheel_holds_the_package_and_the_settings(tmp_path):
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    parts = [path for kind in ("html", "css", "js") for path in (ROOT / PACKAGE).rglob(f"*.{kind}")]
    assert len(parts) == 3  # of the report
    package = (path.relative_to(ROOT) for path in [*FILES.values(), *parts])
    conf = (Path(PACKAGE, path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml"))
    expected = {path.as_posix() for path in [*package, *conf]}
    assert f"{PACKAGE}/conf/config.yaml" in expected
    assert names == expected


def test_every_range_admits_its_pin():
    metadata = project()["project"]
    runtime, dev = pins("requirements.txt"), pins("requirements-dev.txt")
    for lines, pinned in (
        (metadata["dependencies"], runtime),
        (metadata["optional-dependencies"]["dev"], dev),
    ):
        for requirement in map(Requirement, lines):
            version = pinned[requirement.name.lower()]
            assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"
    assert not runtime.keys() & dev.keys()
    assert runtime["torch"] == "2.13.0"


def test_no_pin_is_for_one_machine_only():
    everything = pins("requirements.txt") | pins("requirements-dev.txt")
    assert not [name for name in everything if re.match("nvidia|cuda|triton", name)]
    for name in ("requirements.txt", "requirements-dev.txt", "pyproject.toml", "Makefile"):
        assert "://" not in (ROOT / name).read_text(encoding="utf-8"), f"{name} names a host"


def test_the_python_versions_agree():
    settings = project()
    versions = SpecifierSet(settings["project"]["requires-python"])
    listed = [
        line.rpartition(" :: ")[2]
        for line in settings["project"]["classifiers"]
        if re.search(r"Python :: 3\.\d+$", line)
    ]
    assert listed == [f"3.{minor}" for minor in range(30) if f"3.{minor}" in versions]
    assert settings["tool"]["ruff"]["target-version"] == f"py{listed[0].replace('.', '')}"
    assert settings["tool"]["pyright"]["pythonVersion"] == listed[0]
    bounds = (listed[0].replace(".", ", "), listed[-1].replace(".", ", "))
    assert "({}) <= sys.version_info[:2] <= ({})".format(*bounds) in (ROOT / "Makefile").read_text()


def test_the_citation_is_of_this_version():
    metadata = project()["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {metadata['version']}" in citation
    assert f"license: {metadata['license']}" in citation
