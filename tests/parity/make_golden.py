"""Makes the golden numbers, with the code of those who are held against: none of it is in this repository.

    python tests/parity/make_golden.py autocomplete CLONE   # sriramlab/AutoComplete
    python tests/parity/make_golden.py mae CLONE            # facebookresearch/mae, with timm 0.3.2 as it asks for
    python tests/parity/make_golden.py allel                # scikit-allel
    python tests/parity/make_golden.py qhoptim              # qhoptim, its authors' release

CLONE is a checkout at the commit that the golden file names. Each file begins with what made it.
"""

from __future__ import annotations

import collections.abc
import json
import os
import runpy
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from golden_numbers import (
    ALLEL,
    AUTOCOMPLETE,
    GOLDEN,
    MAE,
    QHADAM,
    genotypes,
    hiding,
    images,
    phenotypes,
    weights,
)


def plain(value: Any) -> Any:
    """Lists of an array: nine digits tell float32 apart."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype != np.float32:
        return value.tolist()
    return [float(f"{x:.9g}") for x in value] if value.ndim == 1 else [plain(part) for part in value]


def write(name: str, made_by: dict[str, str], **content: Any) -> None:
    """golden/`name`.json, arrays as lists."""
    lists = {key: plain(value) for key, value in content.items()}
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in {"made_by": made_by, **lists}.items())
    (GOLDEN / f"{name}.json").write_text("{\n" + lines + "\n}\n")


def made(name: str, clone: Path | None, *packages: str) -> dict[str, str]:
    """The command, the commit and the versions."""
    where = {}
    if clone:
        head = ["git", "-C", str(clone), "rev-parse", "HEAD"]
        where["commit"] = subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
    command = f"python tests/parity/make_golden.py {name}" + (" CLONE" if clone else "")
    return {"command": command, **where, **{package: version(package) for package in packages}}


def autocomplete(clone: Path) -> None:
    """Three steps of its train.py on a made-up table: what was hidden, what the network gave, the loss."""
    import torch

    sys.path.insert(0, str(clone))
    import dataset
    import nets

    values, columns = phenotypes()
    start = {name: torch.from_numpy(array) for name, array in AUTOCOMPLETE.start().items()}
    nets.DeepCoder.__init__.__defaults__ = (None, AUTOCOMPLETE.ratio, AUTOCOMPLETE.depth, 0, None,
                                            lambda _: torch.nn.LeakyReLU(), False)  # fmt: skip
    donors: list[int | None] = []
    rows: list[int] = []
    inputs: list[Any] = []
    outputs: list[Any] = []
    take, build, run = dataset.MaskMatDataset.__getitem__, nets.DeepCoder.__init__, nets.DeepCoder.forward

    def recorded(self: Any, row: int) -> Any:
        if self.mask_type.get("copy_mask") is None:
            return take(self, row)
        # It asks for the gate first, then for the donor.
        asked: list[int] = []
        draw = np.random.randint
        np.random.randint = lambda *a: asked.append(draw(*a)) or asked[-1]
        found = take(self, row)
        np.random.randint = draw
        rows.append(int(row))
        donors.append(asked[0] if asked else None)
        return found

    def built(self: Any, *given: Any, **named: Any) -> None:
        build(self, *given, **named)
        self.load_state_dict({f"net.{name}": tensor.float() for name, tensor in start.items()})

    def ran(self: Any, x: Any) -> Any:
        y = run(self, x)
        if self.training:
            inputs.append(x.detach().numpy().copy())
            outputs.append(y.detach().numpy().copy())
        return y

    dataset.MaskMatDataset.__getitem__, nets.DeepCoder.__init__, nets.DeepCoder.forward = recorded, built, ran
    with tempfile.TemporaryDirectory() as folder:
        import pandas as pd

        place = Path(folder)
        table = pd.DataFrame(values, columns=columns, index=pd.RangeIndex(len(values), name="FID"))
        table.to_csv(place / "table.csv", float_format="%.17g")
        kinds = pd.DataFrame({"cats": columns, "isbinary": [name[0] == "b" for name in columns]})
        kinds.to_csv(place / "metadata.csv", index=False)
        script = (clone / "train.py").read_text().replace("EPOCHS = 200", f"EPOCHS = {AUTOCOMPLETE.steps}")
        (place / "train.py").write_text(script)
        sys.argv = ["train.py", str(place / "table.csv"), "deepcoder", "cpu", "0.3", str(place / "model")]
        runpy.run_path(str(place / "train.py"), run_name="__main__")
        losses = json.loads((place / "model.json").read_text())["train"]
    n = len(rows) // AUTOCOMPLETE.steps
    # dsets['train'][0] is asked for once before the training, to count columns.
    rows, donors = rows[-AUTOCOMPLETE.steps * n :], donors[-AUTOCOMPLETE.steps * n :]
    write(
        "autocomplete",
        made("autocomplete", clone, "torch", "numpy", "pandas"),
        rows=np.array(rows).reshape(AUTOCOMPLETE.steps, -1),
        donors=[donors[i * n : (i + 1) * n] for i in range(AUTOCOMPLETE.steps)],
        inputs=np.stack(inputs),
        outputs=np.stack(outputs),
        losses=[epoch[0] for epoch in losses],
    )


def mae(clone: Path) -> None:
    """Features of the encoder and what the masked autoencoder makes of hidden patches."""
    import torch

    # timm 0.3.2 asks for two names that torch and numpy have since dropped.
    module = types.ModuleType("torch._six")
    module.container_abcs = collections.abc  # type: ignore[attr-defined]
    sys.modules["torch._six"] = module
    setattr(np, "float", float)  # noqa: B010
    sys.path.insert(0, str(clone))
    import models_mae

    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    content: dict[str, Any] = {}
    for standardised in (False, True):
        model = models_mae.MaskedAutoencoderViT(**MAE, norm_layer=norm, norm_pix_loss=standardised).eval()
        state = model.state_dict()
        content["positions"] = state["pos_embed"].numpy()[0]
        content["shapes"] = {name: list(tensor.shape) for name, tensor in state.items()}
        for name, tensor in state.items():
            if "pos_embed" not in name:
                state[name] = torch.from_numpy(weights(name, *tensor.shape, scale=0.3)).float()
        model.load_state_dict(state)
        x = torch.from_numpy(images()).float()
        draw = torch.rand
        # Its noise decides what is hidden: an order of ours, so that both hide the same.
        torch.rand = lambda *a, **k: torch.from_numpy(hiding()).float()
        with torch.no_grad():
            everything, _, back = model.forward_encoder(x, 0.0)
            patches = everything[:, 1:].gather(1, back[:, :, None].expand(-1, -1, everything.shape[2]))
            content["features"] = torch.cat([everything[:, :1], patches], 1).numpy()
            loss, predicted, hidden = model(x, 0.75)
        torch.rand = draw
        content["hidden"] = hidden.bool().numpy()
        content["predicted"] = predicted.numpy()
        content["loss standardised" if standardised else "loss"] = float(loss)
    write("mae", made("mae", clone, "torch", "timm"), **content)


def allel(_: Path) -> None:
    """Linkage and the folded spectrum."""
    import allel as scikit

    content = {}
    for name, missing in ALLEL.items():
        dosages = genotypes(name, 90, 24, missing)
        calls = np.where(dosages == 3, -1, dosages).astype(np.int8).T
        r = scikit.rogers_huff_r(calls)
        content[f"r2 {name}"] = np.square(r)
    counts = np.stack([180 - dosages.sum(0), dosages.sum(0)], 1)  # the last has nothing missing
    content["folded"] = scikit.sfs_folded(counts, n=180)
    write("allel", made("allel", None, "scikit-allel", "numpy"), **content)


def qhoptim(_: Path) -> None:
    """Ten steps on gradients that are given."""
    import torch
    from qhoptim.pyt import QHAdam

    content = {}
    for name, settings in QHADAM.items():
        parameter = torch.nn.Parameter(torch.from_numpy(weights("start", 5)))
        optimiser = QHAdam([parameter], **settings)
        path = []
        for step in range(10):
            parameter.grad = torch.from_numpy(weights(f"gradient {step}", 5))
            optimiser.step()
            path.append(parameter.detach().numpy().copy())
        content[name] = np.stack(path)
    write("qhoptim", made("qhoptim", None, "qhoptim", "torch"), **content)


MAKERS: dict[str, Callable[[Path], None]] = {
    "autocomplete": autocomplete,
    "mae": mae,
    "allel": allel,
    "qhoptim": qhoptim,
}

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    MAKERS[sys.argv[1]](Path(sys.argv[2]).absolute() if len(sys.argv) > 2 else Path())
