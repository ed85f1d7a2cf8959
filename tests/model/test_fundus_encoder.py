import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pm1_core.errors import CheckpointError, ConfigError, InputError, StateError
from pm1_core.model.fundus_base import (
    base_hash,
    build_fundus_encoder,
    load_base,
    pretrain_base,
    resize_photographs,
    save_base,
)
from pm1_core.model.fundus_encoder import FundusEncoder, FundusEncoderConfig, sine_positions
from pm1_core.model.fundus_lora import (
    attach_lora,
    initial_lora,
    load_lora,
    lora_layers,
    lora_parameters,
    lora_tensors,
    merge_lora,
    set_draws,
)

CONFIG = FundusEncoderConfig(
    image=32, patch=8, width=32, depth=2, heads=4, decoder_width=16, decoder_depth=1, decoder_heads=2
)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photographs(n: int, side: int = 48, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=draws(seed))


def with_adapters(seed: int = 1) -> FundusEncoder:
    encoder = attach_lora(FundusEncoder(CONFIG, seed=7), seed)
    with torch.no_grad():
        for parameter in lora_parameters(encoder).values():
            parameter.normal_(0, 0.2, generator=draws(seed))
    return encoder.eval()


def test_vit_large_has_48_adapted_modules_and_1_179_648_adapter_parameters() -> None:
    encoder = FundusEncoder(FundusEncoderConfig(), device="meta")
    assert sum(p.numel() for p in encoder.parameters()) == 329_541_888
    attach_lora(encoder)
    names = [name for name, _ in lora_layers(encoder)]
    assert len(names) == 48
    assert set(names) == {f"blocks.{n}.attn.{m}" for n in range(24) for m in ("qkv", "proj")}
    assert sum(p.numel() for p in lora_parameters(encoder).values()) == 1_179_648
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == 1_179_648


def test_parameter_names_and_shapes_are_those_of_mae_and_retfound() -> None:
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in FundusEncoder(FundusEncoderConfig(), device="meta").state_dict().items()
    }
    blocks = {"norm1": (1024,), "norm2": (1024,), "attn.qkv": (3072, 1024), "attn.proj": (1024, 1024)}
    blocks |= {"mlp.fc1": (4096, 1024), "mlp.fc2": (1024, 4096)}
    expected: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 1024),
        "pos_embed": (1, 197, 1024),
        "patch_embed.proj.weight": (1024, 3, 16, 16),
        "patch_embed.proj.bias": (1024,),
        "mask_token": (1, 1, 512),
        "decoder_pos_embed": (1, 197, 512),
        "decoder_embed.weight": (512, 1024),
        "decoder_embed.bias": (512,),
        "decoder_pred.weight": (768, 512),
        "decoder_pred.bias": (768,),
    }
    for name, width in (("norm", 1024), ("decoder_norm", 512)):
        expected |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for prefix, depth, half in (("blocks", 24, 1), ("decoder_blocks", 8, 2)):
        for n in range(depth):
            for name, shape in blocks.items():
                expected[f"{prefix}.{n}.{name}.weight"] = tuple(size // half for size in shape)
                expected[f"{prefix}.{n}.{name}.bias"] = (shape[0] // half,)
    assert shapes == expected


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_base_loads_by_key_and_gives_the_same_tokens(tmp_path: Path, suffix: str) -> None:
    first = FundusEncoder(CONFIG, seed=3).eval()
    digest = save_base(first, tmp_path / f"base{suffix}")
    loaded = load_base(tmp_path / f"base{suffix}", CONFIG).eval()
    assert base_hash(tmp_path / f"base{suffix}") == digest
    assert torch.equal(first.encode(photographs(3)), loaded.encode(photographs(3)))
    assert not loaded.pos_embed.requires_grad
    assert dict(loaded.named_parameters())["blocks.0.attn.qkv.weight"].requires_grad
    assert digest[:12] in loaded.start
    assert "random start, seed 3" in first.start


def test_a_checkpoint_with_the_command_line_of_mae_loads(tmp_path: Path) -> None:
    content = {"model": FundusEncoder(CONFIG).state_dict(), "epoch": 799, "args": argparse.Namespace(lr=1e-3)}
    torch.save(content, tmp_path / "retfound.pth")
    load_base(tmp_path / "retfound.pth", CONFIG)


def test_a_base_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": FundusEncoder(CONFIG)}, tmp_path / "pickled.pth")
    with pytest.raises(CheckpointError, match=r"pickled\.pth"):
        load_base(tmp_path / "pickled.pth", CONFIG)


def test_a_base_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    tensors = FundusEncoder(CONFIG).state_dict()
    del tensors["decoder_embed.bias"]
    tensors["head.weight"] = torch.zeros(2)
    tensors["norm.bias"] = torch.zeros(5)
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_base(tmp_path / "odd.safetensors", CONFIG)
    for part in ("1 tensors are missing (first: decoder_embed.bias)", "head.weight", "norm.bias (5,)"):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_an_unreadable_base_is_refused_by_name(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_base(tmp_path / name, CONFIG)


def test_another_file_than_the_studys_is_refused(tmp_path: Path) -> None:
    save_base(FundusEncoder(CONFIG), tmp_path / "base.pth")
    config = FundusEncoderConfig(
        **{**vars(CONFIG), "base": str(tmp_path / "base.pth"), "base_sha256": "0" * 64}
    )
    with pytest.raises(CheckpointError, match="SHA-256"):
        build_fundus_encoder(config)


def test_a_seed_gives_the_same_start_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first = attach_lora(FundusEncoder(CONFIG, seed=2), 5)
    second = attach_lora(FundusEncoder(CONFIG, seed=2), 5)
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_untrained_adapters_change_nothing_and_merged_equals_unmerged() -> None:
    base = FundusEncoder(CONFIG, seed=7).eval()
    plain = base.encode(photographs(4))
    attach_lora(base, 1)
    assert torch.equal(plain, base.encode(photographs(4)))
    adapted = with_adapters()
    unmerged = adapted.encode(photographs(4))
    assert not torch.allclose(plain, unmerged, atol=1e-2)
    names = list(FundusEncoder(CONFIG).state_dict())
    merged = merge_lora(adapted)
    torch.testing.assert_close(merged.encode(photographs(4)), unmerged, atol=1e-5, rtol=1e-5)
    assert list(merged.state_dict()) == names


def test_adapters_travel_by_name_and_others_are_refused() -> None:
    sent = with_adapters(1)
    received = attach_lora(FundusEncoder(CONFIG, seed=7), 9).eval()
    load_lora(received, lora_tensors(sent))
    assert torch.equal(sent.encode(photographs(2)), received.encode(photographs(2)))
    start = initial_lora(CONFIG, 3)
    assert list(start) == list(lora_tensors(sent))
    assert all((tensor == 0).all() for name, tensor in start.items() if name.endswith("lora_B"))
    with pytest.raises(StateError, match="lora_A"):
        load_lora(received, {name: t for name, t in start.items() if not name.endswith("qkv.lora_A")})


def test_adapter_dropout_draws_only_from_its_own_generator() -> None:
    encoder = with_adapters().train()
    images = encoder.prepare(photographs(4))
    order = encoder.draw_hidden(4, draws(1))
    with pytest.raises(StateError, match="set_draws"):
        encoder.reconstruction_errors(images, order)
    before = torch.random.get_rng_state()
    found = []
    for seed in (1, 1, 2):
        set_draws(encoder, draws(seed))
        found.append(encoder.reconstruction_errors(images, order).detach())
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_only_adapters_get_gradients() -> None:
    encoder = with_adapters().train()
    set_draws(encoder, draws())
    images = encoder.prepare(photographs(4))
    errors = encoder.reconstruction_errors(images, encoder.draw_hidden(4, draws()))
    torch.autograd.backward(errors.sum())
    moved = {name for name, p in encoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {name for name, _ in encoder.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_the_loss_looks_only_at_hidden_patches_and_the_encoder_only_at_visible_ones(
    norm_pix_loss: bool,
) -> None:
    encoder = FundusEncoder(FundusEncoderConfig(**{**vars(CONFIG), "norm_pix_loss": norm_pix_loss}), seed=1)
    images = torch.randn(3, 3, 32, 32, generator=draws(1))
    order = encoder.draw_hidden(3, draws(2))
    hidden, visible = order[:, CONFIG.visible :], order[:, : CONFIG.visible]
    with torch.no_grad():
        errors = encoder.reconstruction_errors(images, order)
        predicted = encoder.decode(encoder.encode_visible(images, order), order)
        for row in range(3):
            target = encoder.patchify(images)[row, hidden[row]].double()
            if norm_pix_loss:
                target = (target - target.mean(1, keepdim=True)) / (target.var(1, keepdim=True) + 1e-6).sqrt()
            expected = float((predicted[row, hidden[row]] - target).square().mean())
            assert float(errors[row]) == pytest.approx(expected, rel=1e-5)
        # Other pixels in a hidden patch leave what the encoder makes of the image as it was.
        other = images.clone()
        place = int(hidden[0, 0])
        rows, columns = slice(place // 4 * 8, place // 4 * 8 + 8), slice(place % 4 * 8, place % 4 * 8 + 8)
        other[0, :, rows, columns] += 5
        assert torch.equal(encoder.encode_visible(images, order), encoder.encode_visible(other, order))
        assert visible.shape == (3, 4)


def test_seeing_every_patch_in_order_equals_timms_own_forward() -> None:
    # The configuration refuses to hide nothing, so the ratio is changed behind its back.
    config = FundusEncoderConfig(**vars(CONFIG))
    encoder = FundusEncoder(config, seed=1).eval()
    object.__setattr__(config, "mask_ratio", 0.0)
    images = encoder.prepare(photographs(2))
    with torch.no_grad():
        seen = encoder.encode_visible(images, torch.arange(16).expand(2, -1))
        torch.testing.assert_close(seen, encoder.forward_features(images))


def test_hidden_patches_follow_the_generator_and_the_ratio() -> None:
    encoder = FundusEncoder(CONFIG)
    order = encoder.draw_hidden(2_000, draws(4))
    assert torch.equal(order, encoder.draw_hidden(2_000, draws(4)))
    assert (order.sort(1).values == torch.arange(16)).all()
    seen = torch.bincount(order[:, : CONFIG.visible].flatten(), minlength=16) / 2_000
    assert CONFIG.visible == 4
    assert (seen - 0.25).abs().max() < 0.05


def test_patches_run_row_by_row_with_channels_last() -> None:
    images = torch.arange(3 * 32 * 32).view(1, 3, 32, 32).float()
    patches = FundusEncoder(CONFIG).patchify(images)
    assert torch.equal(patches[0, 5].view(8, 8, 3), images[0, :, 8:16, 8:16].permute(1, 2, 0))


def test_positions_are_those_of_mae() -> None:
    table = sine_positions(8, 3)[0]
    assert (table[0] == 0).all()
    frequencies = np.array([1.0, 10000 ** (-0.5)])
    row, column = 2, 1
    expected = np.concatenate([f(v * frequencies) for v in (column, row) for f in (np.sin, np.cos)])
    np.testing.assert_allclose(table[1 + row * 3 + column].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("token", ["cls", "mean"])
def test_the_token_is_the_cls_position_or_the_mean_of_the_patches(token: str) -> None:
    encoder = FundusEncoder(FundusEncoderConfig(**{**vars(CONFIG), "token": token}), seed=1).eval()
    with torch.no_grad():
        features = encoder.forward_features(encoder.prepare(photographs(2)))
        expected = features[:, 0] if token == "cls" else features[:, 1:].mean(1)
        assert torch.equal(encoder.encode(photographs(2)), expected)


def test_photographs_are_normalised_and_resized_without_aliasing() -> None:
    encoder = FundusEncoder(CONFIG)
    grey = torch.full((1, 48, 48, 3), 128, dtype=torch.uint8)
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(encoder.prepare(grey)[0, :, 3, 4], expected)
    board = torch.zeros(1, 128, 128, 3, dtype=torch.uint8)
    board[:, ::2, ::2] = 255
    board[:, 1::2, 1::2] = 255
    assert float(encoder.prepare(board)[0, 0, 4:-4, 4:-4].std()) < 0.05


def test_resizing_gives_the_same_for_an_array_and_for_single_photographs() -> None:
    pixels = photographs(5, 40).numpy()
    np.testing.assert_array_equal(resize_photographs(pixels, 32), resize_photographs(iter(pixels), 32))
    assert resize_photographs(pixels, 40) is pixels


def test_pretraining_lowers_the_loss_and_repeats_to_the_byte(tmp_path: Path) -> None:
    centre = np.linspace(0.2, 0.8, 12)
    y, x = np.mgrid[0:1:32j, 0:1:32j]
    blobs = [np.exp(-((x - c) ** 2 + (y - c) ** 2) / 0.05) for c in centre]
    images = (np.stack(blobs)[..., None] * np.array([200, 120, 60])).astype(np.uint8)
    epochs: list[int] = []
    reports = [
        pretrain_base(
            images, CONFIG, 30, 4, tmp_path / name, lambda _, done, __: epochs.append(done), batch_size=6
        )
        for name in ("a.pth", "b.pth")
    ]
    assert reports[0] == reports[1]
    assert reports[0].losses[-1] < 0.7 * reports[0].losses[0]
    assert epochs == [*range(1, 31)] * 2
    config = FundusEncoderConfig(
        **{**vars(CONFIG), "base": str(tmp_path / "a.pth"), "base_sha256": reports[0].sha256}
    )
    assert "a.pth" in build_fundus_encoder(config).start
    with pytest.raises(InputError, match="photographs"):
        pretrain_base([], CONFIG, 1, 0, tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("patch", 5),
        ("heads", 3),
        ("decoder_heads", 3),
        ("mask_ratio", 1.0),
        ("mask_ratio", 0.0),
        ("token", "avg"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(key: str, wrong: object) -> None:
    with pytest.raises(ConfigError, match=rf"fundus\.{key}"):
        FundusEncoderConfig(**{**vars(CONFIG), key: wrong})
