"""A config of yassouali/pytorch-segmentation turned into ours, with a line for every change.

Most keys mean the same in both. What differs is listed in `docs/coming-from.md`; each function below does one section.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Their default backbone, by model; None where the model has no such argument.
BACKBONES: dict[str, str | None] = {
    "FCN8": None,
    "UNet": None,
    "UNetResnet": "resnet50",
    "SegNet": None,
    "SegResNet": None,
    "ENet": None,
    "GCN": "resnet50",
    "DeepLab": "xception65",
    "DeepLab_DUC_HDC": "resnet101",
    "UperNet": "resnet101",
    "PSPNet": "resnet152",
    "PSPDenseNet": "densenet201",
}
FROM_SCRATCH = ("UNet", "ENet")  # the others start from ImageNet there, without being told to
DEEP_STEMS = ("PSPNet", "UNetResnet")  # theirs have three 3x3 convolutions in place of the 7x7 one
GLOBAL_DICE = ("DiceLoss", "CE_DiceLoss")
RANDOM_FLAGS = ("scale", "flip", "rotate", "blur")

TOP_KEYS = (
    *("name", "n_gpu", "use_synch_bn", "arch", "train_loader", "val_loader", "optimizer", "loss", "ignore_index"),
    *("lr_scheduler", "trainer"),
)
LOADER_KEYS = (
    *("data_dir", "batch_size", "split", "crop_size", "base_size", "num_workers", "val", "shuffle", "augment"),
    *("val_split", "return_id", "mode", "partition", *RANDOM_FLAGS),
)
TRAINER_KEYS = (
    *("epochs", "save_dir", "save_period", "monitor", "early_stop", "tensorboard", "log_dir", "log_per_iter"),
    *("val", "val_per_epochs"),
)
SECTIONS = ("arch", "train_loader", "val_loader", "optimizer", "lr_scheduler", "trainer")
MODEL_KEYS = (
    *("backbone", "pretrained", "freeze_bn", "freeze_backbone", "in_channels", "output_stride", "use_aux"),
    *("num_filters", "use_deconv", "use_resnet_gcn", "fpn_out"),
)


@dataclass
class Migration:
    """A config that is being turned into ours.

    Args:
        config: The config, changed in place.
        changes: What was changed, `PLACE: WHAT. WHY.`, in the order of the config.
    """

    config: dict[str, Any]
    changes: list[str] = field(default_factory=list)

    def say(self, place: str, what: str, why: str) -> None:
        """Note a change."""
        self.changes.append(f"{place}: {what}. {why}.")

    def drop_unknown(self, section: dict[str, Any], known: tuple[str, ...], place: str) -> None:
        """Take out keys that their code never reads; ours would refuse them."""
        for key in [key for key in section if key not in known]:
            del section[key]
            self.say(f"{place}.{key}" if place else key, "left out", "pytorch-segmentation ignores it")


def migrate(old: Mapping[str, Any]) -> Migration:
    """Turn a config of pytorch-segmentation into ours.

    Args:
        old: The config, as read from JSON. It is not changed.
    """
    found = Migration(copy.deepcopy(dict(old)))
    found.drop_unknown(found.config, TOP_KEYS, "")
    if not all(is_section(found.config.get(key)) for key in SECTIONS):
        return found  # the check of the config says what is wrong with it
    _migrate_model(found)
    for loader in ("train_loader", "val_loader"):
        if found.config.get(loader):
            _migrate_loader(found, loader)
    _migrate_loss(found)
    _migrate_scheduler(found)
    _migrate_trainer(found)
    return found


def is_section(value: Any) -> bool:
    """Whether a section is absent, or an object whose `args` are one."""
    return value is None or (isinstance(value, dict) and isinstance(value.get("args", {}), dict))


def _migrate_model(found: Migration) -> None:
    """Write out what their models do by default."""
    arch = found.config.get("arch") or {}
    kind, args = arch.get("type"), arch.setdefault("args", {})
    if kind not in BACKBONES:
        return
    found.drop_unknown(args, MODEL_KEYS, "arch.args")
    backbone = BACKBONES[kind]
    if backbone is None and "backbone" in args:
        del args["backbone"]
        found.say("arch.args.backbone", "left out", f"{kind} has one encoder only, and pytorch-segmentation ignores it")
    elif backbone is not None and args.get("backbone") == "xception":
        args["backbone"] = "xception65"
        found.say(
            "arch.args.backbone",
            '"xception" is now "xception65"',
            "That is the one with 16 middle blocks; its public weights need timm",
        )
    elif backbone is not None and "backbone" not in args:
        args["backbone"] = backbone
        found.say("arch.args.backbone", f'set to "{backbone}"', "That is their default, and not always ours")
    if kind in FROM_SCRATCH and args.pop("pretrained", None):
        found.say("arch.args.pretrained", "left out", f"There are no public weights of {kind}")
    if kind not in FROM_SCRATCH and "pretrained" not in args:
        args["pretrained"] = True
        found.say("arch.args.pretrained", "set to true", "Theirs starts from ImageNet by default, ours does not")
    deep = args.get("backbone") in ("resnet50", "resnet101", "resnet152")
    if kind in DEEP_STEMS and deep:
        args["deep_stem"] = True
        found.say(
            "arch.args.deep_stem",
            "set to true",
            "Their ResNets begin with three 3x3 convolutions here; the weights need timm",
        )


def _migrate_loader(found: Migration, loader: str) -> None:
    """Take out contradictions that their loaders settle in silence."""
    section = found.config[loader]
    args, place = section.setdefault("args", {}), f"{loader}.args"
    found.drop_unknown(args, LOADER_KEYS, place)
    for key, dataset in (("mode", "CityScapes"), ("partition", "COCO")):
        if key in args and section.get("type") != dataset:
            del args[key]
            found.say(f"{place}.{key}", "left out", f"Only {dataset} has it")
    if args.get("val") and args.pop("augment", False):
        found.say(f"{place}.augment", "left out", '"val" wins over it there; ours takes one of the two')
    if not args.get("augment"):
        for key in RANDOM_FLAGS:
            if args.pop(key, False):
                found.say(f"{place}.{key}", "left out", "It has no effect without augment")
    elif "scale" not in args:
        args["scale"] = True
        found.say(f"{place}.scale", "set to true", "That is their default")
    if section.get("type") == "COCO":
        args["label_set"] = 182
        found.say(f"{place}.label_set", "set to 182", "Theirs counts the classes that never occur too; 171 is ours")
    if loader == "val_loader" and args.get("val") and args.get("crop_size"):
        found.say(
            f"{place}.crop_size", "kept", "It validates on center crops; without it, whole images, as papers report"
        )


def _migrate_loss(found: Migration) -> None:
    """Keep the definition of the Dice loss."""
    loss = found.config.get("loss")
    if loss in GLOBAL_DICE:
        found.config["loss"] = {"type": loss, "args": {"per_class": False}}
        found.say("loss.args.per_class", "set to false", "Theirs takes all classes together, ours each by itself")


def _migrate_scheduler(found: Migration) -> None:
    """Take out arguments that their schedulers never see."""
    scheduler = found.config.get("lr_scheduler") or {}
    if scheduler.get("args"):
        found.say("lr_scheduler.args", f"{scheduler['args']} left out", "pytorch-segmentation reads none of it")
    if scheduler:
        scheduler["args"] = {}


def _migrate_trainer(found: Migration) -> None:
    """Bring periods to our units: epochs and optimizer steps."""
    trainer = found.config.get("trainer") or {}
    found.drop_unknown(trainer, TRAINER_KEYS, "trainer")
    period = trainer.get("val_per_epochs", 1)
    patience = trainer.get("early_stop")
    if isinstance(patience, int) and patience > 0 and isinstance(period, int):
        trainer["early_stop"] = (patience + 1) * period
        what = f"{patience} is now {trainer['early_stop']}"
        found.say("trainer.early_stop", what, "Theirs counts validations, and one more; ours counts epochs")
    elif patience == 0:
        found.say("trainer.early_stop", "0 kept", "Ours never stops early; theirs stops at the first lapse")
    images, batch = trainer.get("log_per_iter"), _batch_size(found.config)
    if isinstance(images, int) and batch:
        trainer["log_per_iter"] = images // batch + 1
        what = f"{images} is now {trainer['log_per_iter']}"
        found.say("trainer.log_per_iter", what, "Theirs counts images, ours optimizer steps")
    if trainer.get("tensorboard") is False:
        found.say("trainer.tensorboard", "false kept", "Theirs writes all the same; ours does not")


def _batch_size(config: Mapping[str, Any]) -> int | None:
    size = (config.get("train_loader") or {}).get("args", {}).get("batch_size")
    return size if isinstance(size, int) and size > 0 else None
