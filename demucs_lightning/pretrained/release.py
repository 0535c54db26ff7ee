"""What a name stands for: one model, or the models of a bag."""

from dataclasses import dataclass

from demucs_lightning.pretrained.package import Package


@dataclass(frozen=True)
class Release:
    """What a name stands for: M packages (one twice, if a bag names it twice), the weights (M, S)
    of the bag, None: all alike, and the seconds that it separates at, None: each its own.
    """

    name: str
    packages: list[Package]
    weights: list[list[float]] | None = None
    segment: float | None = None


def member(release: Release, source: str | None = None, *, advice: str = "") -> Package:
    """The one model of a release; of a bag, the one that serves ``source`` more than the others.

    Raises ValueError, with the members, the sources that each serves and ``advice``, where there is
    none or more than one.
    """
    packages = list({id(package): package for package in release.packages}.values())
    if len(packages) == 1:
        return packages[0]
    weights = release.weights or [[1.0] * len(p.argument("sources")) for p in release.packages]
    served: dict[int, list[float]] = {}  # by the identity of a package, which a bag may have twice
    for package, row in zip(release.packages, weights, strict=True):
        before = served.get(id(package), [0.0] * len(row))
        served[id(package)] = [a + b for a, b in zip(before, row, strict=True)]
    sources = list(packages[0].argument("sources"))
    if source in sources[: len(weights[0])]:
        column = [served[id(package)][sources.index(source)] for package in packages]
        if column.count(max(column)) == 1:
            return packages[column.index(max(column))]
    listed = " · ".join(
        f"{package.signature} ({', '.join(_served(sources, served[id(package)]))})"
        for package in packages
    )
    for_one = f" for {source}" if source in sources else ""
    raise ValueError(
        f"{release.name} is a bag of {len(packages)} models, and one{for_one} is wanted: name "
        f"one of {listed}{advice}."
    )


def _served(sources: list[str], row: list[float]) -> list[str]:
    return [name for name, weight in zip(sources, row, strict=False) if weight > 0]
