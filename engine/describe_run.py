"""What a run would be and need, as text: the answers to ``train.py --check`` and ``--draw-schedule``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dataloader.label_statistics import check_samples, look_at
from engine import assemble, dry_run, preflight
from engine.config import RunConfig
from engine.reporting.figures import schedule_picture
from utils.errors import UserError


def check_run(config: RunConfig, *, everything: bool = False) -> Iterator[str]:
    """Validate and build all that training takes, and say what it would need, line by line.

    Args:
        config: A checked config.
        everything: Read all images and labels, not only some.

    Raises:
        UserError: Something does not fit, or is not there.
    """
    dry = dry_run.dry_run(config)
    preflight.check_weights(config)
    yield f"config      right; {config.arch.type}, {len(config.classes)} classes"
    yield f"parameters  {dry.parameters / 1e6:.2f} M, {dry.trainable / 1e6:.2f} M of them trained"
    yield f"logits      {list(dry.logits)} for images of {dry.image_size[0]}x{dry.image_size[1]}"
    need = dry.activation_bytes + 16 * dry.parameters  # weight, gradient and up to two moments, of 4 bytes each
    yield f"memory      {_gib(dry.activation_bytes)} of activations for each micro-batch, {_gib(need)} with weights"
    for loader in assemble.build_loaders(config, cached=False):
        if loader is not None:
            kind = "training" if loader.training else "validation"
            if loader.training:
                dry_run.check_schedule(config, len(loader))
                preflight.check_last_batch(config, len(loader.view), needs_batch=dry.needs_batch)
                preflight.check_sizes(config, loader)
            found = check_samples(loader.view, everything=True) if everything else look_at(loader.view)
            if loader.training:
                preflight.check_classes(found, config.classes.names)
            yield f"{kind:<12}{len(loader.view)} images, {len(loader)} batches; {found.describe(config.classes.names)}"


def draw_schedule(config: RunConfig, path: Path) -> list[str]:
    """Draw the learning rate of every group of parameters over the steps of the run to a PNG at `path`.

    Returns:
        A line on the course of each rate.

    Raises:
        UserError: The schedule depends on results, the data is not there, or `path` cannot be written.
    """
    rates = {name.removesuffix("/no_decay"): rate for name, rate in dry_run.learning_rates(config).items()}
    lines: dict[str, list[tuple[int, float]]] = {}
    for rate in rates.values():
        alike = [name for name in rates if rates[name] == rate]
        lines[", ".join(alike)] = rate
    try:
        path.write_bytes(schedule_picture(lines))
    except OSError as error:
        raise UserError(f"--draw-schedule {path}: cannot be written ({error.strerror}). Name another file.") from error
    texts = []
    for name, line in lines.items():
        highest, step = max((rate, -step) for step, rate in line)
        first, (last_step, last) = line[0][1], line[-1]
        texts.append(f"{name}: {first:.3g} at first, {highest:.3g} at step {-step}, {last:.3g} at {last_step}")
    return [*texts, f"written to {path}"]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
