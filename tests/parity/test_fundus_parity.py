"""The fundus encoder against the definition of He et al.'s masked autoencoder, whose layout RETFound's files have.

golden/mae.json was made with timm 0.3.2, which that definition asks for; ours is built on a current one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_numbers import MAE, hiding, images, read, weights

from pm1_core.model.fundus_base import load_base
from pm1_core.model.fundus_encoder import FundusEncoder, FundusEncoderConfig

GOLDEN = read("mae")
CONFIG = FundusEncoderConfig(
    image=MAE["img_size"],
    patch=MAE["patch_size"],
    width=MAE["embed_dim"],
    depth=MAE["depth"],
    heads=MAE["num_heads"],
    decoder_width=MAE["decoder_embed_dim"],
    decoder_depth=MAE["decoder_depth"],
    decoder_heads=MAE["decoder_num_heads"],
)
CLOSE = 2e-6  # an epsilon of LayerNorm other than 1e-6 is beyond it
SEEN = torch.from_numpy(images()).float()


@pytest.fixture(params=[False, True], ids=["pixels", "standardised pixels"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> FundusEncoder:
    """Loaded from a file of RETFound's layout: its keys, and beside them what training left."""
    model = {
        name: torch.from_numpy(weights(name, *s, scale=0.3)).float() for name, s in GOLDEN["shapes"].items()
    }
    plain = FundusEncoder(CONFIG)
    model |= {name: getattr(plain, name).detach() for name in ("pos_embed", "decoder_pos_embed")}
    left = {"optimizer": {"state": {}, "param_groups": []}, "scaler": {"scale": 1.0}, "epoch": 799}
    torch.save({"model": model, **left, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "retfound.pth")
    config = FundusEncoderConfig(**{**vars(CONFIG), "norm_pix_loss": request.param})
    return load_base(tmp_path / "retfound.pth", config).eval()


def test_a_file_of_retfounds_layout_loads_by_key_with_none_missing(encoder: FundusEncoder) -> None:
    found = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert found == GOLDEN["shapes"]
    for name, tensor in encoder.state_dict().items():
        if "pos_embed" not in name:
            np.testing.assert_array_equal(tensor, weights(name, *tensor.shape, scale=0.3).astype(np.float32))
    np.testing.assert_allclose(encoder.pos_embed[0], GOLDEN["positions"], atol=1e-6)


def test_features_are_those_of_the_reference_definition(encoder: FundusEncoder) -> None:
    with torch.no_grad():
        found = encoder.forward_features(SEEN)
    torch.testing.assert_close(found, torch.tensor(GOLDEN["features"]), rtol=0, atol=CLOSE)


def test_hidden_patches_are_predicted_and_scored_as_the_reference_does(encoder: FundusEncoder) -> None:
    order = torch.from_numpy(hiding()).float().argsort(1)
    hidden = torch.ones(2, CONFIG.patches, dtype=torch.bool)
    hidden.scatter_(1, order[:, : CONFIG.visible], False)
    assert hidden.tolist() == GOLDEN["hidden"]
    with torch.no_grad():
        predicted = encoder.decode(encoder.encode_visible(SEEN, order), order)
        loss = encoder.reconstruction_errors(SEEN, order).mean()
    torch.testing.assert_close(predicted, torch.tensor(GOLDEN["predicted"]), rtol=0, atol=CLOSE)
    expected = GOLDEN["loss standardised" if encoder.config.norm_pix_loss else "loss"]
    assert float(loss) == pytest.approx(expected, rel=CLOSE)
