"""Networks learn: each published one fits eight pictures, and some train on photographs from a config alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import HOME, ROOT, Answer
from tests.test_models import SMALL, build, narrow
from utils.losses.criterion import build_criterion
from utils.losses.strips import predicted_labels
from utils.metrics import ConfusionMatrix

NAMES = ("ground", "box", "disc")
SIZE = (97, 129)
STEPS, LOOK_EVERY = 600, 20

# A quarter of the published widths, where there is a choice; ENet has none.
QUARTER = {"width_mult": 0.25}
NETWORKS: dict[str, dict[str, Any]] = {
    "DeepLab": {"backbone": narrow("resnet50", **QUARTER), "channels": 64},
    "DeepLab_Xception": {"backbone": narrow("xception41", **QUARTER), "aspp_depth": 64},
    "DeepLab_DUC_HDC": {"backbone": narrow("resnet50", **QUARTER)},
    "DeepLabV3": {"backbone": narrow("resnet50", **QUARTER)},
    "DeepLabV3_MobileNetV2": {**QUARTER, "channels": 64},
    "ENet": {},
    "FCN8": {"width_mult": 0.125},
    "GCN": {"backbone": narrow("resnet50", **QUARTER)},
    "LRASPP": {"backbone": narrow("mobilenet_v2", width_mult=0.5)},
    "PSPDenseNet": {"backbone": narrow("densenet121", **QUARTER)},
    "PSPNet": {"backbone": narrow("resnet50", **QUARTER)},
    "SegNet": QUARTER,
    "SegResNet": QUARTER,
    "UNet": QUARTER,
    "ResEncUNet": {"width_mult": 0.25, "stages": 6},
    "UNetResnet": {"backbone": narrow("resnet50", **QUARTER)},
    "UperNet": {"backbone": narrow("resnet50", **QUARTER), "fpn_out": 64, "use_aux": True},
    "EoMT": {"channels": 96, "depth": 4, "heads": 3, "queries": 20},
    "BiSeNetV2": {"width_mult": 0.5, "channels": 64},
    "DDRNet_23": QUARTER,
    "DDRNet_23_slim": {"width_mult": 0.5},
    "FastSCNN": {"width_mult": 0.5},
    "PIDNet_S": {"width_mult": 0.5},
    "PIDNet_M": QUARTER,
    "PIDNet_L": QUARTER,
    "PPLiteSeg_T": {"backbone": narrow("stdc1", **QUARTER)},
    "PPLiteSeg_B": {"backbone": narrow("stdc2", **QUARTER)},
    "SegNeXt_T": {"backbone": narrow("mscan_t", width_mult=0.5), "channels": 64},
    "SegNeXt_S": {"backbone": narrow("mscan_s", **QUARTER), "channels": 64},
    "SegNeXt_B": {"backbone": narrow("mscan_b", **QUARTER), "channels": 64},
    "SegNeXt_L": {"backbone": narrow("mscan_l", **QUARTER), "channels": 64},
}


def pictures() -> tuple[Tensor, Tensor]:
    """Eight images (8, 3, H, W) uint8 of a box and a disc on noise, and their labels (8, H, W) uint8."""
    generator = torch.Generator().manual_seed(0)
    height, width = SIZE
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    images = torch.randint(0, 120, (8, 3, height, width), generator=generator, dtype=torch.uint8)
    labels = torch.zeros(8, height, width, dtype=torch.uint8)
    for index in range(8):
        top, left = 3 + 3 * index, 3 + 3 * index
        labels[index, top : top + 65, left : left + 50] = 1
        labels[index][(rows - 60 + 4 * index) ** 2 + (columns - 92 - 2 * index) ** 2 < 30**2] = 2
    for value, channel in ((1, 0), (2, 1)):
        images[:, channel][labels == value] += 100
    labels[:, -2:] = 255
    return images, labels


def mean_iou(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    matrix = ConfusionMatrix(len(NAMES), NAMES)
    with torch.no_grad():
        matrix.update(predicted_labels(model.eval()(images).logits, labels.shape[-2:]), labels)
    return matrix.results()["Mean_IoU"]


def optimizer_of(kind: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW; what looks into unpooled maps, zeros mostly, learns by it ten times slower than by its paper's SGD."""
    if kind in ("SegNet", "SegResNet"):
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=5e-4 if kind == "FCN8" else 2e-3)


def test_every_published_network_is_asked_to_learn() -> None:
    assert set(NETWORKS) == set(SMALL) - {"EncoderDecoder"}  # which test_models.py compares with all there are


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_a_published_network_fits_eight_pictures(kind: str) -> None:
    torch.manual_seed(0)
    model = build(kind, NETWORKS[kind], len(NAMES))
    images, labels = pictures()
    criterion = build_criterion("CrossEntropyLoss2d", num_classes=len(NAMES), class_names=NAMES)
    optimizer = optimizer_of(kind, model)
    reached = []
    for step in range(STEPS):
        if step % LOOK_EVERY == 0:
            reached.append(mean_iou(model, images, labels))
            if reached[-1] > 0.9:
                break
        output = model.train()(images)
        optimizer.zero_grad()
        criterion(output, labels, criterion.normalizers(labels))["loss"].backward()
        optimizer.step()
    assert reached[0] < 0.5
    assert reached[-1] > 0.9, f"Mean_IoU every {LOOK_EVERY} steps: {', '.join(f'{value:.2f}' for value in reached)}"


CAMVID = ROOT.parent / "shared" / "data" / "camvid"
ON_CAMVID = {
    "ENet": {"type": "ENet"},
    "DeepLabV3_MobileNetV2": {"type": "DeepLabV3_MobileNetV2"},
    "timm": {"type": "LRASPP", "args": {"backbone": "timm/mobilenetv3_small_050"}},
}


@pytest.mark.slow
@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not here")
@pytest.mark.parametrize("network", sorted(ON_CAMVID))
def test_two_epochs_on_camvid_teach_a_small_network_something(
    network: str, tmp_path: Path, train_command: Callable[..., Answer]
) -> None:
    if network == "timm":
        pytest.importorskip("timm")
    config = {
        "extends": str(HOME / "configs" / "camvid.json"),
        "arch": ON_CAMVID[network],
        "train_loader": {"args": {"data_dir": str(CAMVID), "base_size": 240, "crop_size": [96, 128]}},
        "val_loader": {"args": {"data_dir": str(CAMVID), "val": True, "crop_size": 128, "batch_size": 8}},
        "optimizer": {"type": "AdamW", "args": {"lr": 2e-3}},
        "lr_scheduler": "Constant",
        "loss": "CrossEntropyLoss2d",
        "trainer": {
            "epochs": 2,
            "max_steps": None,
            "ema": None,
            "val_per_epochs": 1,
            "tensorboard": False,
            "save_dir": str(tmp_path),
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    answer = train_command("-c", tmp_path / "config.json")
    assert answer.status == 0, answer.err
    (run_dir,) = (tmp_path / "camvid").glob("2*")
    first, second = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    assert second["train/loss"] < 0.9 * first["train/loss"]
    # Naming every pixel a building, the largest class, is right for a quarter of them.
    assert second["val/Pixel_Accuracy"] > 0.5
    assert second["val/Mean_IoU"] > 0.12
