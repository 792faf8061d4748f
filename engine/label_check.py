"""`prepare.py check --model`: labels that models contradict, each image by a model that was not trained on it."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from base.base_dataloader import DevicePrefetcher
from base.base_dataset import BaseDataset
from base.evaluation import evaluate
from dataloader.build import LoaderConfig, build_dataset, build_val_loader
from dataloader.hold_out import hold_out
from dataloader.scan import has_files
from dataloader.transforms.chain import ChainOptions
from dataloader.transforms.preparation import ImageAlone
from engine import assemble
from engine.check import check_config
from engine.config import RunConfig, part_to_evaluate, training_sections
from engine.label_errors import SUSPICIOUS, Suspect, SuspectFinder
from utils.checkpoint import write_text
from utils.epoch_figures import PredictedBatch
from utils.errors import ConfigError, DataError
from utils.metrics import Metrics
from utils.plugins import require_modules
from utils.predict import Predictor
from utils.protocol import hash_of_names
from utils.run_folder import find_model
from utils.shards import read_bytes, stamp

COLUMNS = (
    *("rank", "score", "kind", "set", "image", "label_file", "given", "predicted", "pixels"),
    *("top", "left", "bottom", "right", "seen"),
)


@dataclass(frozen=True, eq=False)
class Judge:
    """A model that labels are compared with.

    Args:
        path: Its checkpoint.
        predictor: Predicts as its validation did.
        trained_on: The images that it was trained on, see `files_of`; None where that cannot be known any more.
    """

    path: Path
    predictor: Predictor
    trained_on: frozenset[Path] | None

    def has_seen(self, image: Path) -> bool:
        """Whether it may have been trained on an image, or on a copy of it of the same name in another folder."""
        if self.trained_on is None or image in self.trained_on:
            return True
        alike = self._by_name_and_size.get((image.name, stamp(image)[0]), ())
        return any(is_copy(image, other) for other in alike)

    @cached_property
    def _by_name_and_size(self) -> Mapping[tuple[str, int], Sequence[Path]]:
        """The images that it was trained on, by name and number of bytes."""
        found: dict[tuple[str, int], list[Path]] = defaultdict(list)
        for image in self.trained_on or ():
            if (size := stamp(image)[0]) >= 0:
                found[image.name, size].append(image)
        return found


@dataclass(frozen=True, eq=False)
class Place:
    """An image whose label was looked at.

    Args:
        where: Path in the config of the set that it is of.
        dataset: The set.
        index: Number of the image in it.
        judge: The model that predicted it.
        seen: Whether that was trained on it, or may have been.
    """

    where: str
    dataset: BaseDataset
    index: int
    judge: Judge
    seen: bool


@dataclass(frozen=True, eq=False)
class LabelCheck:
    """What a check of labels found.

    Args:
        ranked: The suspects with their images, most suspicious first.
        images: Number of images that were looked at.
        seen: How many of these the model was trained on that predicted them.
        config: Whose data it was.
        skipped: What was wrong with images that could not be used, a line each.
    """

    ranked: Sequence[tuple[Suspect, Place]]
    images: int
    seen: int
    config: RunConfig
    skipped: Sequence[str]

    @property
    def suspicious(self) -> int:
        """Number of suspects that are findings."""
        return sum(suspect.score >= SUSPICIOUS for suspect, _ in self.ranked)


def check_labels(
    models: Sequence[Path],
    device: torch.device,
    *,
    config: RunConfig | None = None,
    modules: Sequence[str] = (),
    num_workers: int | None = None,
) -> LabelCheck:
    """Compare the labels of a config's training and validation sets with what models say.

    Args:
        models: Checkpoints, run folders or patterns; several as of `train.py --folds`.
        device: Where to compute.
        config: Whose data to look at; None for that of the first model.
        modules: Names of third-party modules that have been imported.
        num_workers: Processes that read; None for as many as the config says.

    Raises:
        UserError: A model or the data cannot be used, or they have different classes.
    """
    judges = [judge_of(find_model(path), device, modules) for path in models]
    config = config or config_of(judges[0])
    for judge in judges:
        if judge.predictor.classes.names != config.classes.names:
            raise ConfigError(f"--model {judge.path}: its classes are not the data's. Name a model of the same ones.")
    sections = training_sections(config) | ({"val_loader": config.val_loader} if config.val_loader else {})
    finder = SuspectFinder(len(config.classes))
    places: dict[str, Place] = {}
    skipped: list[str] = []
    for where, section in sections.items():
        if num_workers is not None:
            section = replace(section, batches=replace(section.batches, num_workers=num_workers))
        dataset = build_dataset(section, where=where, seed=config.seed, classes=config.classes)
        files = files_of(dataset)
        for judge, indices in divide(files, judges):
            for index in indices:
                key = str(dataset.samples[index].key)
                places[f"{where} {key}"] = Place(where, dataset, index, judge, judge.has_seen(files[index]))
            skipped += look(judge, finder, section, where, dataset, indices)
    ranked = [(suspect, places[suspect.key]) for suspect in finder.ranking()]
    seen = sum(place.seen for place in places.values())
    return LabelCheck(ranked, len(places), seen, config, skipped)


def judge_of(path: Path, device: torch.device, modules: Sequence[str]) -> Judge:
    """Load a model, and find out what it was trained on."""
    predictor = assemble.load_predictor(path, device, modules=modules)
    require_modules(predictor.about, modules, path, used=part_to_evaluate(predictor.about["config"]))
    return Judge(path, predictor, trained_on(predictor))


def config_of(judge: Judge) -> RunConfig:
    """The config that a model was trained with, as far as evaluations need it."""
    return check_config(part_to_evaluate(judge.predictor.about["config"]))


def files_of(dataset: BaseDataset) -> list[Path]:
    """Say which file each image of a dataset is: keys repeat in other splits and datasets, paths do not.

    Of images that are generated, it is no file but the type of the dataset and the key.
    """
    if not len(dataset) or not has_files(dataset):
        return [Path(type(dataset).__name__, str(sample.key)) for sample in dataset.samples]
    return [sample.image.resolve() for sample in dataset.samples]


def is_copy(image: Path, other: Path) -> bool:
    """Whether two files hold the same bytes, or may, as one cannot be read."""
    try:
        return read_bytes(image) == read_bytes(other)
    except (OSError, DataError):
        return True


def trained_on(predictor: Predictor) -> frozenset[Path] | None:
    """Find the images that a model was trained on, see `files_of`; None where the data are not there any more."""
    config = check_config(part_to_evaluate(predictor.about["config"]))
    found: set[Path] = set()
    try:
        for where, section in training_sections(config).items():
            dataset = build_dataset(section, where=where, seed=config.seed)
            kept: Sequence[int] = range(len(dataset))
            if (options := section.batches.held_out) is not None:
                kept, held_out = hold_out(dataset, options, config.seed)
                names = (str(dataset.samples[index].key) for index in held_out)
                if predictor.about["protocol"].get("images") != hash_of_names(names):
                    kept = range(len(dataset))  # images have come or gone: others would be held out today
            files = files_of(dataset)
            found |= {files[index] for index in kept}
    except (ConfigError, DataError):
        return None
    return frozenset(found)


def divide(files: Sequence[Path], judges: Sequence[Judge]) -> list[tuple[Judge, list[int]]]:
    """Give each image, by its number, to the first model that was not trained on it, or else to the first one."""
    shares: list[tuple[Judge, list[int]]] = [(judge, []) for judge in judges]
    for index, file in enumerate(files):
        free = [number for number, judge in enumerate(judges) if not judge.has_seen(file)]
        shares[free[0] if free else 0][1].append(index)
    return [(judge, indices) for judge, indices in shares if indices]


def look(
    judge: Judge,
    finder: SuspectFinder,
    section: LoaderConfig,
    where: str,
    dataset: BaseDataset,
    indices: Sequence[int],
) -> list[str]:
    """Let a model predict some images of a dataset whole; returns what was wrong with those that it could not."""
    batches = replace(section.batches, cache=None, on_bad_sample="skip")
    preparation = judge.predictor.prepare
    loader = build_val_loader(
        replace(section, batches=batches, chain=ChainOptions(val=True)),
        dataset,
        seed=0,
        indices=indices,
        transform=ImageAlone(preparation) if preparation else None,
    )
    classes = judge.predictor.classes
    metrics = Metrics(len(classes), classes.names)

    def listen(batch: PredictedBatch) -> None:
        finder.listen(batch._replace(keys=tuple(f"{where} {key}" for key in batch.keys)))

    move = DevicePrefetcher(judge.predictor.device)
    evaluate(judge.predictor.logits, loader, metrics, move=move, listeners=[listen], title=f"labels of {where}")
    return sorted(loader.skipped)


def rows_of(found: LabelCheck) -> list[dict[str, Any]]:
    """Give a row of plain values, by `COLUMNS`, for each suspect."""
    names = found.config.classes.names
    rows = []
    for rank, (suspect, place) in enumerate(found.ranked, start=1):
        sample = place.dataset.samples[place.index]
        rows.append(
            {
                "rank": rank,
                "score": round(suspect.score, 4),
                "kind": suspect.kind,
                "set": place.where,
                "image": str(sample.key),
                "label_file": str(getattr(sample, "label", "")),
                "given": names[suspect.given],
                "predicted": names[suspect.predicted],
                "pixels": suspect.pixels,
                **suspect.box._asdict(),
                "seen": place.seen,
            }
        )
    return rows


def write_table(path: Path, found: LabelCheck) -> None:
    """Write all suspects as CSV."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows_of(found))
    write_text(path, text.getvalue())


def summary(found: LabelCheck, most: int = 10) -> list[str]:
    """Say what was looked at and what is most suspicious, a line each."""
    findings = [row for row in rows_of(found) if row["score"] >= SUSPICIOUS]
    lines = [f"{found.images} images, {len(found.ranked)} regions, {len(findings)} of them suspicious"]
    if found.seen:
        fix = "`train.py --folds 5` makes models that have not, each of a part"
        lines.append(f"{found.seen} of the images: the model was trained on them, and contradicts them less. {fix}")
    for row in findings[:most]:
        what = {
            "class": f"'{row['given']}' seems to be '{row['predicted']}'",
            "missing": f"'{row['predicted']}' seems to be missing, on '{row['given']}'",
            "outline": f"a part of '{row['given']}' seems to be '{row['predicted']}'",
        }[row["kind"]]
        place = f"rows {row['top']} to {row['bottom']}, columns {row['left']} to {row['right']}"
        lines.append(f"{row['score']:.2f} {row['set']} {row['image']}: {what}, {place}")
    if len(findings) > most:
        lines.append(f"and {len(findings) - most} others")
    return lines
