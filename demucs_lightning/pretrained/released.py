"""The released models as data: bags, files, and what is known of them.

Names, signatures, checksums, weights and segments are those of demucs 4.1.0 (its folder `remote`);
what the models were trained on is what its README says. Nothing here touches a file.
"""

from dataclasses import dataclass

from demucs_lightning.pretrained.bags import Bag

FOUR = ("drums", "bass", "other", "vocals")
SIX = (*FOUR, "guitar", "piano")
LICENCE = (
    "Licence: the code of Demucs is MIT and its authors publish the weights on the Hugging Face "
    "hub marked MIT, but they were trained on music that is not: the tracks of MUSDB18 are for "
    "non-commercial, educational use, so check that your use is allowed."
)


@dataclass(frozen=True)
class Released:
    """A released model: ``training`` is what its authors say it was trained on."""

    bag: Bag
    training: str
    sources: tuple[str, ...] = FOUR


ONE_HOT = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
MDX = ((1.0, 1.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 1.0, 1.0), (1.0, 0.0, 1.0, 1.0))
HQ = "MUSDB18-HQ"
EXTRA = "MUSDB18-HQ and 800 songs"
ALL = "MUSDB18-HQ with its test set, and extra data"

RELEASED = {
    "htdemucs": Released(Bag(("955717e8",)), EXTRA),
    "htdemucs_ft": Released(Bag(("f7e0c4bc", "d12395a8", "92cfc3b6", "04573f0d"), ONE_HOT), EXTRA),
    "htdemucs_6s": Released(Bag(("5c90dfd2",)), "not stated", SIX),
    "hdemucs_mmi": Released(Bag(("75fc33f5",), None, 44.0), EXTRA),
    "mdx": Released(Bag(("0d19c1c6", "7ecf8ec1", "c511e2ab", "7d865c68"), MDX, 44.0), HQ),
    "mdx_extra": Released(Bag(("e51eebcc", "a1d90b5c", "5d2d6c55", "cfa93e08"), None, 44.0), ALL),
    "mdx_q": Released(Bag(("6b9c2ca1", "b72baf4e", "42e558d4", "305bc58f"), MDX, 44.0), HQ),
    "mdx_extra_q": Released(Bag(("83fc094f", "464b36d7", "14fc6a69", "7fd6ef75"), None, 44.0), ALL),
    "repro_mdx_a": Released(Bag(("9a6b4851", "1ef250f1", "fa0cb7f9", "902315c2"), None, 44.0), HQ),
    "repro_mdx_a_hybrid_only": Released(
        Bag(("fa0cb7f9", "902315c2", "fa0cb7f9", "902315c2"), None, 44.0), HQ
    ),
    "repro_mdx_a_time_only": Released(
        Bag(("9a6b4851", "9a6b4851", "1ef250f1", "1ef250f1"), None, 44.0), HQ
    ),
}

# Under the official address: the start of the sha256 stands in the name. With the bytes of those
# whose size is published together with a sha256 that begins like the name says.
_MDX_FILES = {
    "0d19c1c6-0f06f20e": 178_048_329,
    "5d2d6c55-db83574e": 167_391_595,
    "7d865c68-3d5dd56b": 167_918_783,
    "7ecf8ec1-70f50cc9": 178_048_329,
    "a1d90b5c-ae9d2452": 167_391_595,
    "c511e2ab-fe698775": 167_334_095,
    "cfa93e08-61801ae1": 167_399_275,
    "e51eebcc-c1b80bdd": 167_399_275,
    "6b9c2ca1-3fd82607": None,
    "b72baf4e-8778635e": None,
    "42e558d4-196e0e1b": None,
    "305bc58f-18378783": None,
    "14fc6a69-a89dd0ee": 38_491_885,
    "464b36d7-e5a9386e": 38_893_153,
    "7fd6ef75-a905dd85": 39_436_529,
    "83fc094f-4a16d450": 50_756_993,
    "1ef250f1-592467ce": None,
    "902315c2-b39ce9c9": None,
    "9a6b4851-03af0aa6": None,
    "fa0cb7f9-100d8bf4": None,
}
_HYBRID_TRANSFORMER_FILES = {
    "955717e8-8726e21a": 84_141_911,
    "f7e0c4bc-ba3fe64a": 84_141_271,
    "d12395a8-e57c48e6": 84_141_271,
    "92cfc3b6-ef3bcb9c": 84_141_271,
    "04573f0d-f3cf25b2": 84_141_271,
    "75fc33f5-1941ce65": 167_407_275,
    "5c90dfd2-34c22ccb": 54_996_327,
}


@dataclass(frozen=True)
class OfficialFile:
    """A file under the official address: where, how its sha256 begins, and its bytes if known."""

    path: str
    sha256: str
    size: int | None = None


def _official() -> dict[str, OfficialFile]:
    folders = {"mdx_final": _MDX_FILES, "hybrid_transformer": _HYBRID_TRANSFORMER_FILES}
    found = {}
    for folder, files in folders.items():
        for stem, size in files.items():
            signature, checksum = stem.split("-")
            found[signature] = OfficialFile(f"{folder}/{stem}.th", checksum, size)
    return found


OFFICIAL = _official()


def repository(name: str) -> str:
    """The repository of the Hugging Face hub for ``name`` or ``user/name``, as the reference names
    it: htdemucs_ft is adefossez/HTDemucs-ft, and mdx_q adefossez/Demucs-mdx_q.
    """
    user, _, model = name.rpartition("/")
    if model == "htdemucs":
        repo = "HTDemucs"
    elif model.startswith("htdemucs_"):
        repo = f"HTDemucs-{model.removeprefix('htdemucs_')}"
    else:
        repo = f"Demucs-{model}"
    return f"{user or 'adefossez'}/{repo}"


def bags_with(signature: str) -> list[str]:
    """The names of the released bags that hold this model."""
    return [name for name, model in RELEASED.items() if signature in model.bag.signatures]


def size_of(name: str) -> int | None:
    """Bytes of the official files of a released bag; None where not all sizes are known."""
    sizes = [OFFICIAL[signature].size for signature in {*RELEASED[name].bag.signatures}]
    return None if None in sizes else sum(size for size in sizes if size is not None)
