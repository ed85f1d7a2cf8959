"""How an update travels: whole, as a difference to what was received, or as a difference in fewer bits.

    full         float32 as it is                                                      4 bytes an element
    difference   float32 difference to the received tensor                             4
    bfloat16     the difference, rounded to nearest even, as the upper 16 bits         2
    int8         the difference, 8-bit stochastic quantisation in blocks of 256        1 + 4/256

The last two lose something, and feed it back: what a round could not say is added to what the next one wants to
say (Seide et al. 2014, "1-bit stochastic gradient descent ...", section 3: quantise value plus the error left
before, keep the new error; Karimireddy et al. 2019, "Error feedback fixes SignSGD ...", Algorithm 2, for any
compressor C with |C(x) - x|^2 <= (1 - d) |x|^2). With the tensor that a site trained t, the one that it received
r and its residual e:

    intended = t + e        decoded = r + Q(intended - r)        e' = intended - decoded

`decoded` is the float32 tensor that the reader computes, its rounding included, so that over the rounds the
decoded updates differ from the trained ones by exactly the last residual.

Q of int8 is the stochastic quantiser of QSGD (Alistarh et al. 2017, section 3.1) with 127 levels on each side and
its two variants: in buckets, and scaled by a bucket's largest absolute value rather than by its 2-norm. A block of
values x has the step s = max|x| / 127, rounded upwards, and each value becomes floor(x / s + u), u uniform on
[0, 1): unbiased, with an error below one step. So |Q(x) - x|^2 is below 256 / 127^2 = 0.016 of |x|^2 whatever the
draw, less than error feedback asks for. QSGD's entropy code is not used: a level is one signed byte.

An encoded update is a mapping of names to arrays, as a safetensors file holds one: a tensor under its own name, in
float32, uint16 (the bits of bfloat16) or int8 (levels), in its own shape; for int8 the steps, float32 of shape
(blocks,), under "NAME/scale". All arithmetic is element by element in a fixed order of roundings: both ends get the
same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from pm1_core.errors import InputError
from pm1_core.update import Tensors
from pm1_core.validate import refusal, require_choice

ENCODINGS = ("full", "difference", "bfloat16", "int8")
LOSSY = ("bfloat16", "int8")
BLOCK = 256
LEVELS = 127

_SCALE = "/scale"
_DTYPES: Mapping[str, np.dtype] = {
    "full": np.dtype(np.float32),
    "difference": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
}
# Elements that are worked on at once: temporaries stay in the cache, and small beside a large tensor.
_CHUNK = 1024 * BLOCK
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = np.float32(np.finfo(np.float32).smallest_subnormal)


def encode(
    encoding: str,
    tensors: Tensors,
    received: Tensors,
    residual: Tensors,
    generator: np.random.Generator,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Encode all tensors in the order of their names; return the encoded arrays and the new residual.

    tensors: what the site wants to say, float32
    received: what it started from; a tensor that is not in here is a difference already (to zero)
    residual: what the last call returned, {} at first; empty afterwards too unless the encoding is lossy
    generator: draws for int8; the same state gives the same bytes

    Raises InputError as `encode_tensor` does.
    """
    encoded: dict[str, np.ndarray] = {}
    left: dict[str, np.ndarray] = {}
    for name in sorted(tensors):
        start, before = received.get(name), residual.get(name)
        arrays, rest = encode_tensor(encoding, name, tensors[name], start, before, generator)
        encoded |= arrays
        if rest is not None:
            left[name] = rest
    return encoded, left


def encode_tensor(
    encoding: str,
    name: str,
    tensor: np.ndarray,
    received: np.ndarray | None,
    residual: np.ndarray | None,
    generator: np.random.Generator,
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Encode one tensor, for models of which only one tensor at a time is in memory.

    tensor, received, residual: float32 of one shape; no `received` stands for zeros, no `residual` too
    Returns the arrays by name (the steps among them), and the new residual, None unless the encoding is lossy.

    Raises InputError, with the tensor's name, for an unknown encoding, another dtype or shape, a name that ends
    in "/scale", values that are not finite, and a difference beyond the largest float32.
    """
    require_choice("encoding", encoding, ENCODINGS)
    if name.endswith(_SCALE):
        raise InputError(refusal(f"tensor {name!r}", f"its name ends in {_SCALE!r}", "choose another name"))
    for array, what in ((tensor, "the tensor"), (received, "what was received"), (residual, "the residual")):
        if array is not None and (array.dtype != np.float32 or array.shape != tensor.shape):
            found = f"{what} is {array.dtype} of shape {array.shape}"
            raise InputError(refusal(f"tensor {name!r}", found, f"give float32 of shape {tensor.shape}"))
    if encoding in LOSSY:
        return _encode_lossy(encoding, name, tensor, received, residual, generator)
    with np.errstate(over="ignore", invalid="ignore"):
        whole = encoding == "full" or received is None
        return {name: _finite(name, np.array(tensor if whole else tensor - received, order="C"))}, None


def decode(encoding: str, encoded: Tensors, name: str, received: np.ndarray | None) -> np.ndarray:
    """The tensor that an encoded update stands for: a new float32 array in the tensor's shape.

    encoded: may be lazy; only `name` and, for int8, its steps are read
    received: float32, what the sender started from; None stands for zeros

    Raises InputError, with the tensor's name, for what `check_tensor` refuses, another shape than that of
    `received`, and values that decode to NaN or infinity.
    """
    carried, scales = _read(encoding, encoded, name)
    if received is not None and carried.shape != received.shape:
        found = f"found shape {carried.shape}"
        raise InputError(refusal(f"tensor {name!r}", found, f"send {received.shape}"))
    if encoding == "full" or (encoding == "difference" and received is None):
        return _finite(name, np.array(carried, order="C"))
    result = np.empty(carried.shape, np.float32)
    flat, bits = result.reshape(-1), np.ascontiguousarray(carried).reshape(-1)
    start = None if received is None else np.ascontiguousarray(received).reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        for part in _chunks(flat.size):
            flat[part] = _decode_chunk(bits, scales, start, part)
    return _finite(name, result)


def names_of(encoding: str, names: Collection[str]) -> list[str]:
    """The names of the tensors that arrays with these names carry, sorted.

    Raises InputError for an unknown encoding, an int8 tensor without its steps, and steps without their tensor.
    """
    require_choice("encoding", encoding, ENCODINGS)
    if encoding != "int8":
        return sorted(names)
    carried = sorted(name for name in names if not name.endswith(_SCALE))
    for name in sorted({name + _SCALE for name in carried}.symmetric_difference(names) - set(carried)):
        tensor = name.removesuffix(_SCALE)
        found = "its steps are missing" if tensor in carried else "there are steps, but no levels"
        raise InputError(refusal(f"tensor {tensor!r}", found, f"send {tensor!r} and {tensor + _SCALE!r}"))
    return carried


def check(encoding: str, encoded: Tensors) -> list[str]:
    """The names of the tensors in a well-formed encoded mapping, sorted; reads one tensor at a time.

    Raises InputError as `names_of` and `check_tensor` do.
    """
    names = names_of(encoding, list(encoded))
    for name in names:
        check_tensor(encoding, encoded, name)
    return names


def check_tensor(encoding: str, encoded: Tensors, name: str) -> None:
    """Raise InputError, with the tensor's name, unless its arrays are well formed.

    Well formed: present; of the encoding's dtype; finite; for int8 no level -128, one step for each block of 256,
    steps of at least 0.
    """
    carried, _ = _read(encoding, encoded, name)
    if encoding == "bfloat16":
        if ((carried & 0x7F80) == 0x7F80).any():
            raise InputError(_not_finite(name))
    elif encoding != "int8":
        _finite(name, carried)


def _read(encoding: str, encoded: Tensors, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The array of a tensor and its steps, checked but for whether the values are finite."""
    require_choice("encoding", encoding, ENCODINGS)
    carried = _typed(encoded, name, name, _DTYPES[encoding])
    if encoding != "int8":
        return carried, None
    scales = _typed(encoded, name, name + _SCALE, np.dtype(np.float32))
    blocks = -(-carried.size // BLOCK)
    if scales.shape != (blocks,):
        found = f"found steps of shape {scales.shape} for {carried.size} levels"
        raise InputError(refusal(f"tensor {name!r}", found, f"send one for each {BLOCK}, {blocks} in all"))
    if not (np.isfinite(scales) & (scales >= 0)).all():
        found = "found a step that is negative or not finite"
        raise InputError(refusal(f"tensor {name!r}", found, "do not send it"))
    if (carried < -LEVELS).any():
        raise InputError(refusal(f"tensor {name!r}", "found level -128", f"use levels up to {LEVELS}"))
    return carried, scales


def _typed(encoded: Tensors, tensor: str, name: str, dtype: np.dtype) -> np.ndarray:
    if name not in encoded:
        raise InputError(refusal(f"tensor {tensor!r}", f"array {name!r} is missing", "send it"))
    array = encoded[name]
    if array.dtype != dtype:
        found = f"array {name!r} has dtype {array.dtype}"
        raise InputError(refusal(f"tensor {tensor!r}", found, f"send {dtype}"))
    return array


def _encode_lossy(
    encoding: str,
    name: str,
    tensor: np.ndarray,
    received: np.ndarray | None,
    residual: np.ndarray | None,
    generator: np.random.Generator,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    wanted = np.ascontiguousarray(tensor).reshape(-1)
    start = None if received is None else np.ascontiguousarray(received).reshape(-1)
    before = None if residual is None else np.ascontiguousarray(residual).reshape(-1)
    carried = np.empty(tensor.shape, _DTYPES[encoding])
    scales = np.empty(-(-tensor.size // BLOCK), np.float32) if encoding == "int8" else None
    left = np.empty(tensor.shape, np.float32)
    bits, rest = carried.reshape(-1), left.reshape(-1)
    for part in _chunks(tensor.size):
        # In float64 sums and differences of float32 values are exact but for extreme ratios of magnitude.
        intended = wanted[part].astype(np.float64)
        if before is not None:
            intended += before[part]
        change = intended if start is None else intended - start[part]
        if not (np.abs(change) <= _LARGEST).all():
            raise InputError(_not_finite(name))
        if scales is None:
            bits[part] = _to_bfloat16(change.astype(np.float32))
        else:
            first = part.start // BLOCK
            bits[part], steps = _to_levels(change, generator)
            scales[first : first + steps.size] = steps
        with np.errstate(over="ignore", invalid="ignore"):
            decoded = _decode_chunk(bits, scales, start, part)
        rest[part] = intended - _finite(name, decoded)
    arrays = {name: carried}
    if scales is not None:
        arrays[name + _SCALE] = scales
    return arrays, left


def _decode_chunk(
    bits: np.ndarray, scales: np.ndarray | None, start: np.ndarray | None, part: slice
) -> np.ndarray:
    """Flat float32 values: one rounding of level times step, one of the sum. The same at both ends."""
    if scales is not None:
        steps = scales[part.start // BLOCK : -(-part.stop // BLOCK)]
        change = bits[part].astype(np.float32)
        change *= np.repeat(steps, BLOCK)[: change.size]
    elif bits.dtype == np.uint16:
        change = (bits[part].astype(np.uint32) << 16).view(np.float32)
    else:
        change = bits[part]
    return change if start is None else start[part] + change


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper 16 bits of finite float32 values, rounded to nearest even; at most the largest bfloat16."""
    bits = values.view(np.uint32)
    upper = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    upper -= (upper & 0x7FFF) == 0x7F80  # rounded up to infinity: the residual takes what is above
    return upper.astype(np.uint16)


def _to_levels(values: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Levels (n,) int8 and steps (blocks,) float32 of float64 values (n,)."""
    blocks = -(-values.size // BLOCK)
    padded = np.zeros((blocks, BLOCK))
    padded.reshape(-1)[: values.size] = values
    largest = np.abs(padded).max(axis=1)
    scales = (largest / LEVELS).astype(np.float32)
    # Upwards, so that no value lies beyond the last level, where it could not be met without a bias.
    short = scales.astype(np.float64) * LEVELS < largest
    scales[short] = np.nextafter(scales[short], np.float32(np.inf))
    padded /= np.maximum(scales, _SMALLEST).astype(np.float64)[:, None]
    levels = padded.reshape(-1)[: values.size]
    levels += generator.random(values.size)
    np.floor(levels, out=levels)
    return np.minimum(levels, LEVELS).astype(np.int8), scales


def _chunks(size: int) -> Iterator[slice]:
    for start in range(0, size, _CHUNK):
        yield slice(start, min(start + _CHUNK, size))


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise InputError(_not_finite(name))
    return array


def _not_finite(name: str) -> str:
    return refusal(f"tensor {name!r}", "found NaN, infinity or a difference beyond float32", "do not send it")
