"""Weights that DiffQ has quantised, restored to a plain state dict.

"Differentiable Model Compression via Pseudo Quantization Noise" (Défossez, Adi, Synnaeve, 2021,
arXiv:2104.09987). A quantised state has no names: ``quantized`` (packed levels, their range, and
for DiffQ the bits of each group), ``float16`` and ``others`` are lists in the order in which the
quantizer finds the parameters of the model. The decoding is that of the optional package ``diffq``;
here everything that it would trust is checked first.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from demucs_lightning.pretrained.package import Package, Room, construct, is_sound, room_of

QUANTIZED = "__quantized"
QUANTIZERS = ("diffq.diffq.DiffQuantizer", "diffq.uniform.UniformQuantizer")
UNUSABLE = (
    *(TypeError, ValueError, RuntimeError, ArithmeticError),
    *(LookupError, AttributeError, AssertionError),
)
MAX_BITS = 15  # of a level; a group has one less at most
LEVELS_PER_BYTE = 8  # at most: a level has a bit at least
LANES = 32  # words side by side in a packed tensor of diffq.bitpack, 64 levels each


def restore(package: Package) -> dict[str, Tensor]:
    """The state dict, in fp32, of a package whose ``state`` is quantised.

    Raises ValueError, naming the origin, where ``diffq`` is not installed, for a quantizer that is
    not in the table, and for packed weights that do not fit the model.
    """
    origin = package.origin
    state: Mapping[str, Any] = package.state
    name, arguments, by_torch = _quantizer(state.get("meta"), origin)
    diffq = _diffq(origin)
    try:
        room = _room(state)
    except UNUSABLE as error:
        raise _misfit(package) from error
    model = construct(package, room)
    try:
        quantizer = getattr(diffq, name)(model, **arguments)
        _check(quantizer, state, _unpacker(diffq, by_torch))
        quantizer.restore_quantized_state(
            {**state, "meta": {"packed": True, "torch_pack": by_torch}}
        )
        quantizer.detach()
    except UNUSABLE as error:
        raise _misfit(package) from error
    return model.state_dict()


def _misfit(package: Package) -> ValueError:
    return ValueError(
        f"{package.origin} is damaged: its quantised weights do not fit the model {package.klass} "
        "that it names."
    )


def _room(state: Mapping[str, Any]) -> Room:
    """How large a model the quantised weights can be of."""
    parts = [state[name] for name in ("quantized", "float16", "others")]
    held = room_of(_tensors(parts), per_byte=LEVELS_PER_BYTE)
    return Room(sum(map(len, parts)), held.numbers)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def _quantizer(meta: Any, origin: str) -> tuple[str, dict[str, Any], bool]:
    """The name of the quantizer's class, its arguments, and whether torch packed, not C."""
    if not isinstance(meta, dict) or not isinstance(meta.get("init_kwargs"), dict):
        raise ValueError(f"{origin} is damaged: it does not say how its weights are quantised.")
    path = getattr(meta.get("klass"), "path", None)
    if path not in QUANTIZERS:
        raise ValueError(
            f"{origin} is quantised by {path or 'an unknown class'}; "
            f"those that can be read are {' and '.join(QUANTIZERS)}."
        )
    if meta.get("packed") is not True:
        raise ValueError(f"{origin} is damaged: its quantised weights are not packed.")
    return path.rpartition(".")[2], meta["init_kwargs"], bool(meta.get("torch_pack"))


def _diffq(origin: str) -> ModuleType:
    try:
        import diffq
    except ImportError as error:
        raise ValueError(
            f"{origin} is quantised, which needs the package diffq: "
            'pip install "demucs-lightning[quantized]"'
        ) from error
    return diffq


def _unpacker(diffq: ModuleType, by_torch: bool) -> Callable[[Any, int], Tensor]:
    """Unpacks ``length`` levels from a tensor whose shape is right for so many."""

    def unpack(packed: Any, length: int) -> Tensor:
        _require(isinstance(packed, Tensor) and packed.is_contiguous())
        if by_torch:
            rows, groups = packed.shape
            width = {torch.int64: 64, torch.int32: 32, torch.int16: 16, torch.uint8: 8}
            _require(groups == math.ceil(length / width[packed.dtype]))
        else:
            groups, rows, lanes = packed.shape
            _require(packed.dtype == torch.int64 and lanes == LANES)
            _require(groups == math.ceil(length / (64 * LANES)))
        _require(rows <= MAX_BITS)
        return (diffq.torch_pack if by_torch else diffq.bitpack).unpack(packed, length)

    return unpack


def _check(quantizer: Any, state: Mapping[str, Any], unpack: Callable[[Any, int], Tensor]) -> None:
    """Raise one of UNUSABLE unless the state has what this quantizer of this model writes."""
    for found, wanted in (
        (state["float16"], quantizer._float16),
        (state["others"], quantizer._others),
    ):
        _require(len(found) == len(wanted))
        for value, parameter in zip(found, wanted, strict=True):
            _require(is_sound(value) and value.is_floating_point())
            _require(value.shape == parameter.shape)
    own = [each for each in quantizer._qparams if each.other is None]
    _require(len(state["quantized"]) == len(own))
    for packed, each in zip(state["quantized"], own, strict=True):
        if hasattr(each, "logit"):
            _check_groups(quantizer, packed, len(each.logit), unpack)
        else:
            levels, scales = packed
            _check_scales(scales)
            unpack(levels, each.param.numel())


def _check_groups(
    quantizer: Any, packed: Any, groups: int, unpack: Callable[[Any, int], Tensor]
) -> None:
    """Of each group, DiffQ stores the bits; then the levels of all groups of 1 bit, of 2, ..."""
    by_bits, scales, packed_bits = packed
    _check_scales(scales)
    bits = unpack(packed_bits, groups) + quantizer.min_bits
    # What has more bits than there are lists would be left uninitialised.
    _require(len(by_bits) == MAX_BITS - 1 and bool(((bits >= 1) & (bits < MAX_BITS)).all()))
    for count, levels in enumerate(by_bits, start=1):
        length = int((bits == count).sum()) * quantizer.group_size
        _require((levels is None) == (length == 0))
        if levels is not None:
            unpack(levels, length)


def _check_scales(scales: Any) -> None:
    low, high = scales
    _require(type(low) is float and type(high) is float and math.isfinite(high - low))


def _require(sound: bool) -> None:
    if not sound:
        raise ValueError("the packed weights are not those of the quantizer")
