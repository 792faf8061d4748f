"""The wheel: one package, whatever the user's folder holds, and the same code as the repository's."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.tiny import tiny_config

pytest.importorskip("hatchling", reason="hatchling builds the wheel; requirements-dev.txt has it")

from hatch_build import build_package, new_homes, rewrite_imports

IMPORTERS = {"import_module", "import_submodules"}  # their texts are not rewritten
HOMES = {"utils": "segwright", "models": "segwright", "train": "segwright.commands"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from utils.registry import HEADS\n", "from segwright.utils.registry import HEADS\n"),
        ("from utils import checkpoint, log\n", "from segwright.utils import checkpoint, log\n"),
        ("import models.presets  # why\n", "import segwright.models.presets  # why\n"),
        ("import utils.log as log\n", "import segwright.utils.log as log\n"),
        ("import train\n", "from segwright.commands import train\n"),
        ("import train as command\n", "import segwright.commands.train as command\n"),
        ("from utils.a import (\n    b,\n    c,\n)\n", "from segwright.utils.a import (\n    b,\n    c,\n)\n"),
        ('def f():\n    x = "é"; import train\n', 'def f():\n    x = "é"; from segwright.commands import train\n'),
    ],
)
def test_imports_of_our_own_modules_are_rewritten(before: str, after: str) -> None:
    assert rewrite_imports(before, HOMES) == after


@pytest.mark.parametrize(
    "source",
    [
        "import torch.utils.data\n",
        "from torch.utils import data\n",
        "from . import utils\n",
        'text = "from utils.registry import HEADS"\n# import train\n',
        "utils = 1\nmodels = utils.models\n",
    ],
)
def test_nothing_else_is_touched(source: str) -> None:
    assert rewrite_imports(source, HOMES) == source


def test_an_import_that_cannot_be_rewritten_is_refused() -> None:
    with pytest.raises(ValueError, match=r"line 1: import utils\.log: write it as from"):
        rewrite_imports("import utils.log\nutils.log.log_to()\n", HOMES)
    with pytest.raises(ValueError, match="one module of ours at a time"):
        rewrite_imports("import train, models\n", HOMES)


def test_the_package_imports_nothing_from_outside_itself_by_our_names(tmp_path: Path) -> None:
    build_package(ROOT, tmp_path / "segwright")
    homes = new_homes(ROOT)
    files = sorted((tmp_path / "segwright").rglob("*.py"))
    assert len(files) > 100
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & homes.keys(), path
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in IMPORTERS:
                given = [each.value for each in node.args if isinstance(each, ast.Constant)]
                assert not {str(name).partition(".")[0] for name in given} & homes.keys(), f"{path}: by a text"
    for data in ("config.json", "config.schema.json", "configs/camvid.json", "dataloader/datasets/classes/voc.csv"):
        assert (tmp_path / "segwright" / data).read_bytes() == (ROOT / data).read_bytes()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT], check=True)
    (wheel,) = folder.glob("segwright-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {name.partition("/")[0] for name in archive.namelist() if ".dist-info" not in name} == {"segwright"}
    site = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    return site


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder of a user whose own modules have our names."""
    for name in ("utils", "base", "models", "dataloader", "engine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong module')\n")
    for name in ("train", "trainer", "inference", "evaluate"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    (tmp_path / "own_module.py").write_text(
        "from segwright.utils.losses.cross_entropy import FocalLoss\n"
        "from segwright.utils.registry import LOSSES\n\n"
        "LOSSES.register('OwnLoss', gamma=1.5)(FocalLoss)\n"
    )
    config = tiny_config(tmp_path / "saved")
    config["train_loader"] = {"type": "Synthetic", "args": {"length": 8, "split": "train", "batch_size": 2}}
    config["train_loader"]["args"] |= {"crop_size": 64, "augment": True, "num_workers": 1}
    config["val_loader"] = {"type": "Synthetic", "args": {"length": 2, "split": "val", "batch_size": 1, "val": True}}
    config["val_loader"]["args"] |= {"num_workers": 0}
    (tmp_path / "my.json").write_text(json.dumps(config))
    return tmp_path


def run(site: Path, folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run ``segwright WORDS`` as the console script would, in `folder`."""
    start = f"import sys; sys.path[0] = {str(site)!r}; from segwright import main; sys.exit(main())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SEGWRIGHT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", start, *map(str, words)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_installed_wheel_works_beside_folders_that_have_our_names(site: Path, hostile: Path) -> None:
    done = run(site, hostile, "train", "-c", "my.json", "--import", "own_module", "-s", "loss=OwnLoss", "-d", "cpu")
    assert done.returncode == 0, done.stderr
    (folder,) = (hostile / "saved" / "tiny").glob("2*")
    model = folder / "best_model.pth"
    done = run(site, hostile, "train", "--resume", folder / "last.pth", "--import", "own_module", "-d", "cpu")
    assert done.returncode == 0, done.stderr
    done = run(site, hostile, "evaluate", "-m", model, "-d", "cpu", "--import", "own_module", "--output", "r.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((hostile / "r.json").read_text())["images"] == 2
    (hostile / "images").mkdir()
    Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save(hostile / "images" / "a.png")
    done = run(site, hostile, "predict", "-m", model, "-i", "images", "-d", "cpu", "--import", "own_module")
    assert done.returncode == 0, done.stderr
    (hostile / "masks").mkdir()
    for number in range(6):
        label = np.zeros((40, 56), np.uint8)
        label[number : number + 20] = 1
        Image.fromarray(label).save(hostile / "masks" / f"{number}.png")
        Image.fromarray(np.repeat(label[..., None] * 90, 3, axis=2)).save(hostile / "images" / f"{number}.png")
    (hostile / "images" / "a.png").unlink()
    done = run(site, hostile, "prepare", "init", "--images", "images", "--masks", "masks", "--output", "own.json")
    assert done.returncode == 0, done.stderr
    done = run(site, hostile, "prepare", "check", "-c", "own.json")
    assert done.returncode in (0, 3), done.stderr
    # The repository's own script uses what the wheel made, and the other way round.
    own = [sys.executable, ROOT / "evaluate.py", "-m", model, "-d", "cpu", "--output", hostile / "repository.json"]
    lines = (hostile / "own_module.py").read_text().replace("segwright.", "")
    (hostile / "repository" / "deep").mkdir(parents=True)
    (hostile / "repository" / "own_module.py").write_text(lines)
    environment = {**os.environ, "PYTHONPATH": str(hostile / "repository")}
    repository = subprocess.run(
        [*own, "--import", "own_module"], env=environment, cwd=hostile / "repository" / "deep", capture_output=True
    )
    assert repository.returncode == 0, repository.stderr
    same = [json.loads((hostile / name).read_text()) for name in ("r.json", "repository.json")]
    assert same[0]["confusion_matrix"] == same[1]["confusion_matrix"]


# ------------------------------------------------------------------------------------------------- the whole suite

# What is not run against the wheel, and why.
ABOUT_THE_REPOSITORY = {
    "test_benchmarks.py": "benchmarks/ is not installed",
    "test_data_benchmark.py": "benchmarks/ is not installed",
    "test_documents.py": "README and docs/ are not installed, and name the scripts of the repository",
    "test_flags.py": "compares with docs/, which is not installed",
    "test_floors.py": "reads which file of the repository imports which",
    "test_strangers.py": "runs the examples of CONTRIBUTING.md, which are about the repository",
    "test_wheel.py": "builds the wheel",
}
DESELECTED = {
    "test_export.py::test_the_runner_of_the_documentation_predicts_the_same": "reads docs/deploy.md",
    "test_export.py::test_the_commands_in_the_documentation_are_accepted": "reads docs/deploy.md",
    "test_export.py::test_the_table_in_the_documentation_shows_the_figures_there_are": "reads docs/deploy.md",
    "test_zoo.py::test_the_catalogue_is_that_of_the_code": "reads docs/catalogue.md",
    "test_zoo.py::test_the_catalogue_counts_parameters_as_the_models_have_them": "reads docs/catalogue.md",
}
AT_HAND = ("pyproject.toml", "requirements.txt")  # pytest's options, and the versions at which figures hold


def installed(folder: Path) -> Path:
    """Make an environment with the wheel, and the tests beside it, in `folder`; gives the environment's Python.

    What else is needed, it finds where this Python does. The tests' imports lead to the wheel.
    """
    environment, wheels = folder / "environment", folder / "wheels"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT], check=True)
    subprocess.run([*pip, "--python", python, "install", "--no-deps", *wheels.glob("segwright-*.whl")], check=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    around = [path for path in sys.path if path.endswith("-packages")]
    (Path(site) / "around.pth").write_text("\n".join(around))
    homes = new_homes(ROOT)
    for path in sorted((ROOT / "tests").rglob("*")):
        if path.is_dir() or "__pycache__" in path.parts or path.name in ABOUT_THE_REPOSITORY:
            continue
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".py":
            copy.write_text(rewrite_imports(path.read_text(encoding="utf-8"), homes), encoding="utf-8")
        else:
            shutil.copyfile(path, copy)
    for name in AT_HAND:
        shutil.copyfile(ROOT / name, folder / name)
    return python


@pytest.mark.slow
def test_the_suite_passes_against_the_installed_wheel(tmp_path: Path) -> None:
    python = installed(tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = [python, "-c", "import segwright; print(segwright.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert found.startswith(str(tmp_path / "environment"))
    several = ["-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"]
    left_out = [f"--deselect=tests/{name}" for name in DESELECTED]
    suite = [python, "-m", "pytest", *several, *left_out, "tests"]
    done = subprocess.run(suite, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
