"""When and where reports are written: after validations, at the end of a run, anew by `report.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from base.base_dataloader import Loader
from engine.reporting.collect import Collector, WorstImages, collect
from engine.reporting.content import (
    FROM_EVALUATION,
    evaluation_content,
    read_object,
    read_report,
    run_content,
)
from engine.reporting.data import describe_training_data
from engine.reporting.figures import confusion_picture
from engine.reporting.page import page
from engine.reporting.recorder import RunRecorder
from utils.checkpoint import write_text
from utils.classes import ClassTable, as_colors
from utils.errors import DataError
from utils.predict import Predictor

REPORT = "report.html"


def record_run(
    run_dir: Path, protocol: Mapping[str, Any], classes: ClassTable, facts: Mapping[str, Any], resumed_at: int | None
) -> RunRecorder:
    """A writer that keeps the course of a run, and its report up to date.

    Args:
        run_dir: Folder of the run; exists.
        protocol: How validation measures.
        classes: Its classes.
        facts: Others for the head of the page, such as the number of parameters.
        resumed_at: Step at which the run goes on; None for a new run.
    """

    def refresh() -> None:
        write_page(run_dir / REPORT, run_content(run_dir, protocol=protocol, classes=classes, facts=facts))

    return RunRecorder(run_dir, refresh, resumed_at)


def measure_run(
    predictor: Predictor, loader: Loader, training: Loader | None, worst: WorstImages | None = None
) -> dict[str, Any]:
    """What the report of a run says of its model, from a pass over the validation set.

    Args:
        predictor: The best model.
        loader: The validation loader, of one process or of several; one pass takes all its images.
        training: The training loader; None to say nothing of the training data.
        worst: What keeps the worst images at their own size, if anything does.
    """
    found = measured(collect(predictor, of_one_process(loader), worst))
    if training is not None:
        found["data"] = describe_training_data(training, loader)
    return found


def measured(collector: Collector) -> dict[str, Any]:
    """Values for a report of what was collected."""
    return {"evaluation": collector.to_json(), **collector.pictures()}


def of_one_process(loader: Loader) -> Loader:
    """A loader of all images, also where the given one belongs to one of several processes."""
    if loader.sampler.world_size == 1:
        return loader
    return Loader(loader.view, loader.batch_size, training=False, shuffle=False)


def results_of_images(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json says of classes and single images, so that runs can be compared."""
    evaluation = measured["evaluation"]
    keys = ("name", "pixels", "iou", "precision", "recall", "f1", "ignored")
    return {
        "classes": [{key: row[key] for key in keys} for row in evaluation["table"]],
        "image_figures": evaluation["images"],
    }


def write_run_report(
    run_dir: Path,
    protocol: Mapping[str, Any],
    classes: ClassTable,
    results: Mapping[str, Any],
    measured: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
) -> None:
    """Write the report of a finished run, and its confusion matrix as a picture.

    Args:
        run_dir: The run's folder.
        protocol: How validation measures.
        classes: Its classes.
        results: What results.json says.
        measured: From `measure_run`; None for a run that does not validate.
        facts: Others for the head of the page, such as the number of parameters.

    Raises:
        OSError: The disk is full.
    """
    content = run_content(run_dir, protocol=protocol, classes=classes, results=results, measured=measured, facts=facts)
    write_page(run_dir / REPORT, content)
    if content["evaluation"]:
        matrix = content["evaluation"]["matrix"]
        (run_dir / "confusion.png").write_bytes(confusion_picture(matrix, classes.names))


def rewrite(run_dir: Path) -> Path:
    """Write a run's report anew, with what the old one measured and what its files say now; returns its path.

    Raises:
        DataError: The folder is no run's, or its report cannot be used.
    """
    if run_dir.resolve().name != run_dir.name:  # as `latest`, which would be compared with the run it points to
        run_dir = run_dir.resolve()
    path = run_dir / REPORT
    if not (run_dir / "config.json").is_file():
        raise DataError(f"{run_dir}: holds no config.json. Name the folder of a run, or one of runs.")
    old = read_report(path) if path.exists() else None
    if old is None:
        raise DataError(f"{path}: no such file. Write one by evaluate.py -m {run_dir}/best_model.pth --report FILE.")
    table = old["classes"]
    classes = ClassTable(
        tuple(table["names"]),
        as_colors([list(bytes.fromhex(color[1:])) for color in table["colors"]]),
        tuple((index,) for index in range(len(table["names"]))),
        ignored_classes=tuple(table["ignored"]),
    )
    kept = {key: old[key] for key in FROM_EVALUATION}
    results = read_object(run_dir / "results.json")
    content = run_content(
        run_dir, protocol=old["protocol"], classes=classes, results=results, measured=kept, facts=old["facts"]
    )
    write_page(path, content)
    return path


def write_evaluation_report(
    path: Path, *, name: str, results: Mapping[str, Any], collector: Collector, command: Sequence[str]
) -> None:
    """Write the report of an evaluation.

    Args:
        path: File to write.
        name: What was evaluated.
        results: What evaluate.py writes with --output.
        collector: What it measured.
        command: The command line.
    """
    content = evaluation_content(
        name=name, results=results, classes=collector.classes, measured=measured(collector), command=command
    )
    write_page(path, content)


def write_page(path: Path, content: Mapping[str, Any]) -> None:
    """Write a report; a reader finds the old one or the new one, whole."""
    write_text(path, page(content))
