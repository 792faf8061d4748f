"""The rules of a plan: from what a dataset and a machine are like to how to train, each choice with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dataloader.tools.duplicates import FEW_NEAR, LEAST_NEAR
from dataloader.tools.fingerprint import ClassScale, Fingerprint
from utils.errors import DataError

BACKBONE = "resnet18"
LEAST_IMAGES = 4  # of which one is held out
MINUTES = 15.0  # of training, where nobody says how many
CROP, CROP_WITHOUT_GPU = 512, 224  # side of a square of as many pixels as a crop has, where images are large enough
BATCH, BATCH_WITHOUT_GPU = 16, 8
HELD_OUT = 0.2  # share of the images for validation, where there is no folder of them
MOST_HELD_OUT = 500  # images
FEW_HELD_OUT = 40  # fewer of them say little about others
RARE = 0.02  # share of the labelled pixels below which a class needs a weight of its own
RARE_CROP = 0.01  # and below which it is looked for when crops are placed
DETAIL = 8  # logits that the smallest things should extend over
DISK = 2.5  # diameter of a disk by its width, as a fingerprint has it
LARGEST_FACTOR = 2.0  # by which images are enlarged
WORTH = 1.3  # factor below which another scale is not worth its interpolation
CROPS_ENLARGED, CROPS_KEPT, CROPS_MOST = 4, 16, 64  # in an image: what it may be enlarged to, and shrunk to
UPRIGHT = 2.5  # difference of above and below, in those of left and right, from which on there is an up
FEWEST_STEPS, ENOUGH_STEPS = 1000, 3000  # that a network should have, of the small ones and of all
MOST_EPOCHS = 500
MOST_STEPS = 40_000
SPARE = 0.9  # share of the time that is planned with; starting and the last evaluation take the rest
VALIDATING = 0.1  # share of that for validations
VALIDATIONS = 20  # at most
FASTER = 0.87  # share of a step's time in fp32 below which bf16 is worth it
MEMORY = 0.6  # share of the free memory to fill


class Choice(NamedTuple):
    """What a rule chose, and why."""

    what: str  # the key of the config
    value: Any
    reason: str


@dataclass(frozen=True)
class Machine:
    """What is there to train with.

    Args:
        gpus: How many GPUs.
        cores: Of the CPU.
        memory: Free memory, in bytes, for training: of a GPU, or of the machine.
        ram: Free memory of the machine.
        pretrained: Whether public weights can be had.
    """

    gpus: int = 0
    cores: int = 1
    memory: int = 8 * 2**30
    ram: int = 8 * 2**30
    pretrained: bool = False


@dataclass(frozen=True)
class Measured:
    """What a config costs on this machine.

    Args:
        step: Seconds of a training step with its data.
        validation: Seconds of validating an image.
        memory: Bytes that a step needs.
        work: Seconds of all cores together in a step, which other programs disturb less; on a GPU as `step`.
    """

    step: float
    validation: float
    memory: int
    work: float


# Scale and size ------------------------------------------------------------------------------------------------------


def smallest_detail(fingerprint: Fingerprint) -> tuple[str, float]:
    """Return which class has the smallest or thinnest pieces, and their diameter in pixels; infinite for none."""

    def size(each: ClassScale) -> float:
        return min(each.diameters[0] if each.diameters else math.inf, DISK * each.width or math.inf)

    smallest = min(fingerprint.sure, key=size)
    return smallest.name, size(smallest)


def choose_stride(fingerprint: Fingerprint, machine: Machine) -> Choice:
    """Choose how fine logits are: of half the image's size, by U-Net's decoder, or of a quarter, by DeepLab's."""
    name, size = smallest_detail(fingerprint)
    if size < DETAIL * 4:
        reason = f"'{name}' has pieces of {size:.1f} pixels: U-Net's decoder, whose logits are of half the image's size"
        return Choice("arch.head", 2, reason)
    if not machine.gpus and not machine.pretrained:
        return Choice("arch.head", 2, "no GPU, no public weights: U-Net's decoder learns sooner and costs no more")
    return Choice("arch.head", 4, f"the smallest pieces, of '{name}', are large: logits of a quarter of the size do")


def crop_area(machine: Machine) -> int:
    """Return how many pixels a crop has, where images are large enough."""
    return CROP**2 if machine.gpus else CROP_WITHOUT_GPU**2


def choose_scale(fingerprint: Fingerprint, machine: Machine, stride: int) -> Choice:
    """Choose a factor for the size of images: larger for small things, smaller where a crop would show too little."""
    name, size = smallest_detail(fingerprint)
    height, width = fingerprint.median
    wanted = DETAIL * stride / size  # 0 where there is nothing small

    def until(crops: int) -> float:
        return math.sqrt(crops * crop_area(machine) / (height * width))

    factor, reason = 1.0, f"images keep their size: '{name}', the smallest, has pieces of {size:.1f} pixels"
    enlarged = min(wanted, LARGEST_FACTOR, until(CROPS_ENLARGED))
    shrunk = max(until(CROPS_KEPT), min(wanted, until(CROPS_MOST)))
    if enlarged >= WORTH and fingerprint.spread < WORTH and min(height, width) >= 32:
        factor = enlarged
        reason = (
            f"'{name}' has pieces of {size:.1f} pixels: images are enlarged, so that more of them is left in the logits"
        )
    elif shrunk <= 1 / WORTH:
        factor = shrunk
        reason = f"a crop would show little of {height}x{width} pixels: images are shrunk, as far as '{name}' allows"
    if factor == 1:
        return Choice("resize", None, reason)
    return Choice("resize", {"long_side": max(1, round(factor * max(height, width)))}, reason)


def working_size(fingerprint: Fingerprint, resize: Mapping[str, int] | None) -> tuple[int, int]:
    """Return median height and width of the images as the network gets them."""
    height, width = fingerprint.median
    factor = resize["long_side"] / max(height, width) if resize else 1.0
    return max(1, round(height * factor)), max(1, round(width * factor))


def choose_crop(size: tuple[int, int], machine: Machine) -> Choice:
    """Choose height and width of crops, multiples of 32, with the proportions of the images as far as 1 to 2."""
    height, width = size
    ratio = math.sqrt(min(2.0, max(0.5, height / width)))
    side = math.sqrt(crop_area(machine))
    crop = [
        max(32, min(most, round(wanted / 32) * 32))
        for wanted, most in ((side * ratio, height // 32 * 32), (side / ratio, width // 32 * 32))
    ]
    small = "" if machine.gpus else "; no GPU here, so they are small"
    return Choice("crop_size", crop, f"images of {height}x{width}, the median: crops of {crop[0]}x{crop[1]}{small}")


def choose_batch(count: int, machine: Machine) -> Choice:
    """Choose the number of images in a step, an even one."""
    most = BATCH if machine.gpus else BATCH_WITHOUT_GPU
    batch = max(2, min(most, count - count % 2))
    why = "as usual" if batch == most else f"no more than {count} images to train on allow"
    return Choice("batch_size", batch, f"{batch} at once, {why}")


# Network -------------------------------------------------------------------------------------------------------------


def networks(fingerprint: Fingerprint, machine: Machine, stride: int, crop: Sequence[int]) -> list[dict[str, Any]]:
    """List networks to choose from by speed, the cheapest first."""
    output_stride = choose_output_stride(crop).value
    common = {"output_stride": output_stride, "pretrained": machine.pretrained}
    if fingerprint.channels != 3:
        common["in_channels"] = fingerprint.channels
    wide = machine.gpus > 0
    backbones: list[Any]
    if machine.pretrained or wide:
        backbones = ["resnet18", "resnet50", "resnet101"] if wide else ["resnet18"]
        if fingerprint.images < 300:
            backbones = backbones[:1]
        elif fingerprint.images < 3000:
            backbones = backbones[:2]
    else:
        widths = (0.25, 0.5) if fingerprint.images < 100 else (0.25, 0.5, 0.75, 1.0)
        backbones = [{"type": BACKBONE, "args": {"width_mult": width}} for width in widths]
    if stride == 4:
        return [{"type": "DeepLab", "args": {"backbone": each, **common}} for each in backbones]
    channels = [128, 96, 64, 48] if wide else [96, 64, 48, 24]
    parts = {
        "necks": [{"type": "ASPP", "args": {"channels": 64}}],
        "head": {"type": "UNetHead", "args": {"channels": channels}},
    }
    return [{"type": "EncoderDecoder", "args": {"backbone": each, **common, **parts}} for each in backbones]


def choose_output_stride(crop: Sequence[int]) -> Choice:
    """Choose pixels of the image per pixel of the coarsest map."""
    if min(crop) < 128:
        return Choice("arch.output_stride", 8, f"crops of {crop[0]}x{crop[1]} would leave a map of few pixels at 16")
    return Choice("arch.output_stride", 16, "crops are large enough for a coarsest map of a sixteenth of the size")


def choose_network(steps: Sequence[int | None]) -> int:
    """Choose among networks, the cheapest first, the largest that takes enough steps in the time there is.

    Args:
        steps: How many steps each takes in that time; None where it was not measured or does not fit into memory.

    Returns:
        Its number.

    Raises:
        DataError: None fits.
    """
    known = [index for index, count in enumerate(steps) if count is not None]
    if not known:
        raise DataError("memory: no network fits. Free some, or write a config with smaller crops by hand.")
    for least, among in ((ENOUGH_STEPS, known), (FEWEST_STEPS, known[:2])):
        fitting = [index for index in among if (steps[index] or 0) >= least]
        if fitting:
            return max(fitting)
    return known[0]


def choose_precision(seconds: Mapping[str, float]) -> Choice:
    """Choose the arithmetic from the time of a step in each."""
    if not seconds:
        return Choice("trainer.precision", "fp32", "no step could be timed: fp32, in which every device computes")
    if len(seconds) < 2:
        fitting = next(iter(seconds), "fp32")
        return Choice("trainer.precision", fitting, f"a step fits into memory in {fitting}")
    ratio = seconds["bf16"] / seconds["fp32"]
    said = f"a step in bf16 takes {ratio:.0%} of the time of one in fp32"
    return Choice("trainer.precision", "bf16" if ratio < FASTER else "fp32", said)


def choose_workers(machine: Machine) -> Choice:
    """Choose the number of processes that read."""
    if machine.gpus:
        return Choice("num_workers", min(8, machine.cores), "processes that read while the GPU computes")
    workers = 0 if machine.cores <= 4 else 2
    return Choice("num_workers", workers, f"the network takes all of {machine.cores} cores: {workers} processes read")


def choose_cache(fingerprint: Fingerprint, machine: Machine) -> Choice:
    """Choose whether decoded images are kept in memory."""
    depth = {"uint8": 1, "uint16": 2}.get(fingerprint.dtype, 4)
    size = fingerprint.pixels * (fingerprint.channels * depth + 1)
    if size < machine.ram / 8:
        return Choice("cache", "ram", f"decoded images take {size / 2**20:.0f} MiB: they are kept in memory")
    return Choice("cache", None, f"decoded images would take {size / 2**30:.1f} GiB: they are read again")


# Loss and augmentation -----------------------------------------------------------------------------------------------


def rarest_class(fingerprint: Fingerprint) -> ClassScale:
    """Return the class of the fewest pixels among those that occur, but for slips of the pencil."""
    return min(fingerprint.sure, key=lambda each: each.share)


def choose_loss(fingerprint: Fingerprint) -> Choice:
    """Choose loss and class weights."""
    rarest = rarest_class(fingerprint)
    said = f"the rarest class, '{rarest.name}', has {rarest.share:.2%} of the pixels"
    if rarest.share >= RARE:
        return Choice("loss", "CrossEntropyLoss2d", f"{said}: cross-entropy, no weights")
    loss = {"type": "CE_DiceLoss", "args": {"class_weights": "sqrt_inv"}}
    return Choice("loss", loss, f"{said}: cross-entropy and Dice, weighted")


def choose_rare_crop(fingerprint: Fingerprint, size: tuple[int, int], crop: Sequence[int]) -> Choice:
    """Choose whether crops are placed where rare classes are."""
    rarest = rarest_class(fingerprint)
    whole = size[0] * size[1] < 2 * crop[0] * crop[1]
    if rarest.share < RARE_CROP and not whole:
        reason = f"'{rarest.name}' has {rarest.share:.2%} of the pixels: half of the crops are placed by class"
        return Choice("rare_crop", True, reason)
    why = "crops show most of an image" if whole else "no class is that rare"
    return Choice("rare_crop", None, f"crops are placed anywhere: {why}")


def choose_rotation(fingerprint: Fingerprint, overhead: bool | None = None) -> Choice:
    """Choose whether images are turned by 90 degrees, as is right where they have neither above nor below."""
    found = 0 < fingerprint.upright < UPRIGHT
    if overhead if overhead is not None else found:
        told = "as --overhead says" if overhead else "above and below are as alike as left and right"
        return Choice("rotate", "quarters", f"{told}: images are turned by 90 degrees, too")
    told = "above and below differ" if fingerprint.upright else "too few images to say whether above and below differ"
    return Choice("rotate", None, f"{told if overhead is None else 'as --no-overhead says'}: images are not turned")


def choose_scales(fingerprint: Fingerprint, overhead: bool) -> Choice:
    """Choose the range of the random scale from how much the sizes of a class's pieces vary."""
    if overhead:
        return Choice("scale", {"range": [0.8, 1.25]}, "from above, things have one size: little random scale")
    found = sorted(each.diameters[2] / each.diameters[0] for each in fingerprint.shown if each.diameters)
    middle = found[len(found) // 2] if found else 1.0
    scales = [0.6, 1.6] if middle > 3 else [0.75, 1.5]
    reason = f"large pieces of a class are {middle:.1f} times as large as small ones, in the median of the classes"
    return Choice("scale", {"range": scales}, reason)


def choose_colors(fingerprint: Fingerprint) -> Choice:
    """Choose whether colors are changed at random."""
    if fingerprint.channels != 3 or fingerprint.dtype != "uint8":
        what = f"{fingerprint.channels} channels of {fingerprint.dtype}"
        return Choice("color_jitter", None, f"{what} are no colors of photos, and stay as they are")
    if fingerprint.gray:
        return Choice("color_jitter", {"saturation": 0}, "images are gray: brightness and contrast are changed")
    return Choice("color_jitter", True, "brightness, contrast and saturation are changed")


# Length and validation -----------------------------------------------------------------------------------------------


def choose_validation(fingerprint: Fingerprint) -> Choice:
    """Choose which images are held out for validation.

    Raises:
        DataError: There are too few images.
    """
    count = fingerprint.images
    if fingerprint.validation:
        return Choice("val_split", None, f"validation has {fingerprint.validation} images in folders of its own")
    if count < LEAST_IMAGES:
        raise DataError(f"--images: {count} images with masks can be used. Label at least {LEAST_IMAGES}.")
    share: float | int = MOST_HELD_OUT if count * HELD_OUT > MOST_HELD_OUT else HELD_OUT
    held_out = MOST_HELD_OUT if share == MOST_HELD_OUT else round(HELD_OUT * count)
    said = "a fifth of the images" if share == HELD_OUT else f"{share} images"
    said += ", drawn at random, for validation"
    if held_out < FEW_HELD_OUT:
        said += f"; {held_out} say little: `train.py --folds` holds out each image once"
    groups = fingerprint.start and fingerprint.groups >= 3 and fingerprint.largest_group <= count / 2
    if fingerprint.near >= max(LEAST_NEAR, FEW_NEAR * count):
        said += f"; {fingerprint.near} look nearly like another one"
        if groups:
            said += f", and those of one name up to {fingerprint.start!r} stay together"
            return Choice("val_split", {"share": share, "by": fingerprint.start}, said)
        said += ', and "by" in val_split can keep those of one series together'
    return Choice("val_split", share, said)


def steps_in(minutes: float, measured: Measured) -> int:
    """Return how many steps there are in a time, besides validations."""
    return max(1, int(60 * minutes * SPARE * (1 - VALIDATING) / measured.step))


@dataclass(frozen=True)
class Length:
    """How long to train.

    Args:
        trainer: Keys of the trainer that say so.
        steps: Optimizer steps in all.
        minutes: How long it takes, as it was measured.
        reason: Why.
    """

    trainer: dict[str, Any]
    steps: int
    minutes: float
    reason: str


def choose_length(minutes: float, measured: Measured, *, images: int, batch: int, validated: int) -> Length:
    """Choose epochs, or steps where epochs are few, and how often to validate.

    Args:
        minutes: That training may take.
        measured: What a step and a validation cost.
        images: To train on.
        batch: Images in a step.
        validated: Images to validate on.
    """
    each = max(1, images // batch)
    seconds = 60 * minutes * SPARE
    pass_seconds = validated * measured.validation
    validations = max(1, min(VALIDATIONS, int(VALIDATING * seconds / max(pass_seconds, 1e-6))))
    possible = max(1, int((seconds - min(validations * pass_seconds, seconds / 2)) / measured.step))
    steps = min(MOST_STEPS, each * MOST_EPOCHS, possible)
    reason = f"a step takes {measured.step:.3g} s here: {minutes:g} minutes are enough for {steps}"
    if steps == each * MOST_EPOCHS or steps == MOST_STEPS:
        reason = f"a step takes {measured.step:.3g} s here: {steps} are enough, and take less than {minutes:g} minutes"
    trainer: dict[str, Any]
    epochs = steps // each
    if epochs >= 10:
        trainer = {"epochs": epochs, "val_per_epochs": -(-epochs // validations)}
        steps = epochs * each
    else:
        trainer = {"max_steps": steps, "val_per_steps": -(-steps // validations)}
    needed = (steps * measured.step + validations * pass_seconds) / 60 / SPARE
    return Length(trainer, steps, needed, f"{reason}, {steps * batch / images:.3g} passes over {images} images")


def choose_ema(steps: int) -> Choice:
    """Choose the decay of the average of the weights: of about the last 100, or 200 in runs of 2000 steps and more."""
    decay = 0.99 if steps < 2000 else 0.995
    return Choice("trainer.ema", decay, f"the average of about the last {round(1 / (1 - decay))} weights is validated")


def choose_optimizer(machine: Machine) -> Choice:
    """Choose the learning rate: from random numbers it is higher."""
    optimizer = {
        "type": "SGD",
        "args": {"lr": 0.02 if machine.pretrained else 0.1, "momentum": 0.9, "weight_decay": 1e-4},
        "no_decay": ["norm", "bias"],
    }
    start = "public weights of the backbone" if machine.pretrained else "random numbers, so at a higher learning rate"
    return Choice("optimizer", optimizer, f"training starts from {start}")


def choose_prediction(fingerprint: Fingerprint, overhead: bool) -> Choice:
    """Say what test-time augmentation is worth: it costs as many times the time, and training none."""
    height, width = fingerprint.median
    if height * width > 2**22:
        words = "--mode sliding"
        return Choice("inference.py", words, f"`inference.py {words}` predicts images of {height}x{width} in windows")
    turned = " of images that have no up, too" if overhead else ""
    return Choice(
        "inference.py", "--flip", f"`inference.py --flip` averages with the mirror image{turned}, at twice the time"
    )


def rounded(values: Sequence[float]) -> list[float]:
    """Round numbers as they stand in a config."""
    return [float(f"{value:.6g}") for value in values]
