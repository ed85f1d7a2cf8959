"""How an update travels: what is kept, what is lost, and that what is lost comes later."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pm1_core import encoding
from pm1_core.errors import InputError

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
huge = st.floats(-(2.0**127), 2.0**127, width=32)
moderate = st.floats(-1e6, 1e6, width=32)
shapes = array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=20)
tensors = arrays(np.float32, shapes, elements=floats)


def _pair(elements: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """A trained tensor and what was received, of one shape."""
    return shapes.flatmap(
        lambda shape: st.tuples(*[arrays(np.float32, shape, elements=elements) for _ in range(2)])
    )


def _send(
    kind: str, tensor: np.ndarray, received: np.ndarray | None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """What the reader has, and the residual (zeros where there is none)."""
    start = {} if received is None else {"w": received}
    encoded, residual = encoding.encode(kind, {"w": tensor}, start, {}, np.random.default_rng(seed))
    decoded = encoding.decode(kind, encoded, "w", received)
    assert decoded.dtype == np.float32
    assert decoded.shape == tensor.shape
    return decoded, residual.get("w", np.zeros_like(tensor))


@given(_pair(floats))
def test_full_arrives_as_it_was(pair: tuple[np.ndarray, np.ndarray]) -> None:
    decoded, _ = _send("full", *pair)
    assert decoded.tobytes() == pair[0].tobytes()


@given(_pair(moderate))
def test_a_difference_arrives_but_for_rounding(pair: tuple[np.ndarray, np.ndarray]) -> None:
    tensor, received = pair
    decoded, _ = _send("difference", tensor, received)
    # One rounding of the difference, one of the sum, each half a unit in the last place.
    bound = 2.0**-24 * (np.abs(tensor - received) + np.abs(decoded)).astype(np.float64) + SMALLEST
    assert (np.abs(decoded.astype(np.float64) - tensor) <= bound).all()


@given(tensors)
def test_bfloat16_is_the_nearest_and_even_where_two_are(tensor: np.ndarray) -> None:
    encoded, _ = encoding.encode("bfloat16", {"w": tensor}, {}, {}, np.random.default_rng(0))
    assert encoded["w"].dtype == np.uint16
    decoded = encoding.decode("bfloat16", encoded, "w", None).astype(np.float64)
    exact = tensor.astype(np.float64)
    smallest_normal = float(np.finfo(np.float32).tiny)
    bound = np.maximum(2.0**-8 * np.abs(exact), 2.0**-8 * smallest_normal)
    assert (np.abs(decoded - exact) <= bound).all()
    here = encoded["w"].reshape(-1)
    for step in (-1, 1):
        size = (here & 0x7FFF).astype(np.int64) + step
        inside = (size >= 0) & (size < 0x7F80)
        other = ((size[inside].astype(np.uint32) | (here[inside] & 0x8000)) << 16).astype(np.uint32)
        theirs = np.abs(other.view(np.float32).astype(np.float64) - exact.reshape(-1)[inside])
        ours = np.abs(decoded - exact).reshape(-1)[inside]
        assert (ours <= theirs).all()
        assert (here[inside][ours == theirs] & 1 == 0).all()


@given(arrays(np.float32, shapes, elements=huge), st.integers(0, 9))
def test_int8_is_off_by_less_than_one_step(tensor: np.ndarray, seed: int) -> None:
    encoded, _ = encoding.encode("int8", {"w": tensor}, {}, {}, np.random.default_rng(seed))
    assert encoded["w"].dtype == np.int8
    steps = np.repeat(encoded["w/scale"].astype(np.float64), encoding.BLOCK)[: tensor.size]
    decoded = encoding.decode("int8", encoded, "w", None)
    error = np.abs(decoded.astype(np.float64) - tensor).reshape(-1)
    # Level times step is rounded to float32, of at most 127 steps.
    assert (error <= steps * (1 + 2.0**-16)).all()
    for block, step in enumerate(encoded["w/scale"].astype(np.float64)):
        largest = np.abs(tensor.reshape(-1)[block * 256 : (block + 1) * 256].astype(np.float64)).max()
        assert largest <= 127 * step <= largest * (1 + 2.0**-22) + 127 * SMALLEST


def test_int8_is_unbiased() -> None:
    generator = np.random.default_rng(5)
    tensor = generator.standard_normal(700).astype(np.float32)
    draws = 4000
    total = np.zeros(tensor.size)
    for _ in range(draws):
        encoded, _ = encoding.encode("int8", {"w": tensor}, {}, {}, generator)
        total += encoding.decode("int8", encoded, "w", None)
    steps = np.repeat(encoded["w/scale"].astype(np.float64), encoding.BLOCK)[: tensor.size]
    share = np.abs(tensor) / steps % 1
    error = steps * np.sqrt(share * (1 - share) / draws)
    off = (total / draws - tensor) / np.maximum(error, 1e-4 * steps)
    assert np.abs(off).max() < 5  # standard errors; 700 normal draws pass it but for 4 in 10 000 seeds
    assert abs(off.mean()) < 4 / np.sqrt(tensor.size)


@pytest.mark.parametrize("kind", encoding.LOSSY)
@given(_pair(moderate), st.integers(0, 9))
def test_the_residual_is_what_the_reader_did_not_get(
    kind: str, pair: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    tensor, received = pair
    decoded, residual = _send(kind, tensor, received, seed)
    exact = tensor.astype(np.float64) - decoded
    assert residual.tobytes() == exact.astype(np.float32).tobytes()


@pytest.mark.parametrize("kind", encoding.LOSSY)
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 600))
def test_over_rounds_only_the_last_residual_is_missing(kind: str, seed: int, rounds: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    model = generator.standard_normal(size).astype(np.float32)
    residual: dict[str, np.ndarray] = {}
    told, meant = np.zeros(size), np.zeros(size)
    for _ in range(rounds):
        trained = model + (0.1 * generator.standard_normal(size)).astype(np.float32)
        encoded, residual = encoding.encode(kind, {"w": trained}, {"w": model}, residual, generator)
        decoded = encoding.decode(kind, encoded, "w", model)
        told += decoded.astype(np.float64) - model
        meant += trained.astype(np.float64) - model
        model = decoded
    np.testing.assert_allclose(meant - told, residual["w"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", encoding.LOSSY)
def test_feedback_keeps_what_a_step_is_too_coarse_for(kind: str) -> None:
    received = np.zeros(256, np.float32)
    change = np.full(256, 1e-4, np.float32)
    change[0] = 1  # one step of int8 is 0.008
    generator = np.random.default_rng(3)
    residual: dict[str, np.ndarray] = {}
    total = np.zeros(256)
    for _ in range(200):
        encoded, residual = encoding.encode(kind, {"w": change}, {"w": received}, residual, generator)
        total += encoding.decode(kind, encoded, "w", received)
    np.testing.assert_allclose(total, 200 * change.astype(np.float64), atol=0.017)


@pytest.mark.parametrize("kind", encoding.ENCODINGS)
@pytest.mark.parametrize(
    "tensor",
    [
        np.zeros((300, 2)),
        np.zeros((0, 7)),
        np.array(3.25),
        np.array([-1.5]),
        np.array([3e38, -3e38, 0.0]),
        np.array([SMALLEST, -SMALLEST, 0.0]),
        np.array([1e-40, 2e-41, -1e-40]),
        np.where(np.arange(1000) % 2, 1e38, 1e-38),
    ],
    ids=["zeros", "empty", "scalar", "single", "huge", "smallest", "subnormal", "mixed"],
)
def test_extremes_arrive(kind: str, tensor: np.ndarray) -> None:
    tensor = tensor.astype(np.float32)
    for received in (None, np.zeros_like(tensor), tensor / 2):
        decoded, residual = _send(kind, tensor, received)
        if kind in encoding.LOSSY:
            np.testing.assert_array_equal((tensor.astype(np.float64) - decoded).astype(np.float32), residual)
            largest = float(np.abs(tensor).max(initial=0))
            # Below the normal numbers, neighbours in bfloat16 are 2^-133 apart.
            assert np.abs(residual).max(initial=0) <= largest / 127 * (1 + 1e-6) + 2.0**-134
        else:
            np.testing.assert_allclose(decoded, tensor, rtol=1e-6, atol=SMALLEST)


def test_int8_takes_about_a_quarter_of_the_bytes_and_bfloat16_half() -> None:
    tensor = {"w": np.random.default_rng(0).standard_normal((1000, 1000)).astype(np.float32)}
    sizes = {}
    for kind in encoding.ENCODINGS:
        encoded, _ = encoding.encode(kind, tensor, tensor, {}, np.random.default_rng(0))
        sizes[kind] = len(safetensors.numpy.save(encoded))
    assert sizes["difference"] == sizes["full"]
    assert sizes["bfloat16"] <= 0.5001 * sizes["full"]
    assert sizes["int8"] <= 0.27 * sizes["full"]


@pytest.mark.parametrize("kind", encoding.ENCODINGS)
def test_the_same_generator_gives_the_same_bytes_and_a_file_carries_them(kind: str) -> None:
    generator = np.random.default_rng(1)
    model = {name: generator.standard_normal((70, 9)).astype(np.float32) for name in ("b", "a")}
    received = {name: array / 2 for name, array in model.items()}
    files = []
    for order in (("a", "b"), ("b", "a")):
        ordered = {name: model[name] for name in order}
        encoded, _ = encoding.encode(kind, ordered, received, {}, np.random.default_rng(8))
        files.append(safetensors.numpy.save(dict(sorted(encoded.items()))))
    assert files[0] == files[1]
    loaded = safetensors.numpy.load(files[0])
    assert encoding.check(kind, loaded) == ["a", "b"]
    for name in ("a", "b"):
        here = encoding.decode(kind, encoded, name, received[name])
        there = encoding.decode(kind, loaded, name, received[name])
        assert here.tobytes() == there.tobytes()


@pytest.mark.parametrize("kind", encoding.ENCODINGS)
def test_memory_layout_and_piecewise_work_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    tensor, received = rng.standard_normal((2, 90, 40)).astype(np.float32)
    expected, left = _send(kind, tensor, received)
    turned, _ = _send(kind, np.asfortranarray(tensor), np.asfortranarray(received))
    monkeypatch.setattr(encoding, "_CHUNK", 2 * encoding.BLOCK)
    pieces, rest = _send(kind, tensor, received)
    assert expected.tobytes() == turned.tobytes() == pieces.tobytes()
    assert left.tobytes() == rest.tobytes()


def test_a_reader_touches_only_the_tensor_that_it_decodes() -> None:
    class Lazy(dict[str, np.ndarray]):
        def __getitem__(self, name: str) -> np.ndarray:
            asked.append(name)
            return super().__getitem__(name)

    asked: list[str] = []
    model = {name: np.ones(5, np.float32) for name in ("a", "b")}
    encoded, _ = encoding.encode("int8", model, {}, {}, np.random.default_rng(0))
    encoding.decode("int8", Lazy(encoded), "b", None)
    assert sorted(asked) == ["b", "b/scale"]


def _int8(**changes: np.ndarray) -> dict[str, np.ndarray]:
    good: dict[str, np.ndarray] = {"w": np.ones((30, 20), np.int8), "w/scale": np.ones(3, np.float32)}
    return {**good, **{name.replace("_", "/"): array for name, array in changes.items()}}


@pytest.mark.parametrize(
    ("kind", "encoded", "said"),
    [
        ("full", {"w": np.ones(3)}, "float64"),
        ("full", {"w": np.array([np.nan], np.float32)}, "NaN"),
        ("difference", {"w": np.array([np.inf], np.float32)}, "NaN"),
        ("bfloat16", {"w": np.ones(3, np.float32)}, "uint16"),
        ("bfloat16", {"w": np.array([0x7F80], np.uint16)}, "NaN"),
        ("bfloat16", {"w": np.array([0xFFC0], np.uint16)}, "NaN"),
        ("int8", {"w": np.ones(3, np.int8)}, "steps are missing"),
        ("int8", {"w/scale": np.ones(3, np.float32)}, "no levels"),
        ("int8", _int8(w=np.ones(600, np.uint8)), "uint8"),
        ("int8", _int8(w=np.full(600, -128, np.int8)), "-128"),
        ("int8", _int8(w_scale=np.ones(3)), "float64"),
        ("int8", _int8(w_scale=np.ones(2, np.float32)), "3 in all"),
        ("int8", _int8(w_scale=np.ones((3, 1), np.float32)), "3 in all"),
        ("int8", _int8(w_scale=np.array([1, -1, 1], np.float32)), "negative"),
        ("int8", _int8(w_scale=np.array([1, np.inf, 1], np.float32)), "not finite"),
        ("int8", _int8(w_scale=np.array([1, np.nan, 1], np.float32)), "not finite"),
    ],
)
def test_a_malformed_array_is_refused_with_its_tensor(
    kind: str, encoded: dict[str, np.ndarray], said: str
) -> None:
    with pytest.raises(InputError, match=f"tensor 'w'.*{said}"):
        encoding.check(kind, encoded)
    with pytest.raises(InputError, match="tensor 'w'"):
        encoding.decode(kind, encoded, "w", None)


def test_a_product_beyond_float32_is_refused_by_the_reader() -> None:
    encoded: dict[str, np.ndarray] = {
        "w": np.full(2, 127, np.int8),
        "w/scale": np.array([LARGEST], np.float32),
    }
    with pytest.raises(InputError, match="tensor 'w'"):
        encoding.decode("int8", encoded, "w", None)


def test_another_shape_than_the_received_is_refused() -> None:
    encoded = {"w": np.ones(4, np.float32)}
    with pytest.raises(InputError, match=r"tensor 'w': found shape \(4,\); send \(2, 2\)"):
        encoding.decode("full", encoded, "w", np.ones((2, 2), np.float32))
    with pytest.raises(InputError, match="tensor 'w': what was received"):
        encoding.encode("int8", encoded, {"w": np.ones(5, np.float32)}, {}, np.random.default_rng(0))
    with pytest.raises(InputError, match="tensor 'w': the residual"):
        encoding.encode("int8", encoded, {}, {"w": np.ones(5, np.float32)}, np.random.default_rng(0))


@pytest.mark.parametrize("kind", encoding.ENCODINGS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_leave(kind: str, value: float) -> None:
    tensor = {"w": np.array([0, value], np.float32)}
    with pytest.raises(InputError, match="tensor 'w'"):
        encoding.encode(kind, tensor, {}, {}, np.random.default_rng(0))


@pytest.mark.parametrize("kind", ["difference", "bfloat16", "int8"])
def test_a_difference_beyond_float32_is_refused(kind: str) -> None:
    tensor, received = {"w": np.array([LARGEST], np.float32)}, {"w": np.array([-LARGEST], np.float32)}
    with pytest.raises(InputError, match="tensor 'w'"):
        encoding.encode(kind, tensor, received, {}, np.random.default_rng(0))


def test_names_that_clash_and_unknown_encodings_are_refused() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(InputError, match="ends in '/scale'"):
        encoding.encode("int8", {"w/scale": np.ones(3, np.float32)}, {}, {}, generator)
    with pytest.raises(InputError, match="did you mean 'bfloat16'"):
        encoding.encode("bfloat", {"w": np.ones(3, np.float32)}, {}, {}, generator)
    with pytest.raises(InputError, match="array 'v' is missing"):
        encoding.decode("full", {"w": np.ones(3, np.float32)}, "v", None)
