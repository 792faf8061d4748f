"""README and docs/ do as they say: commands run, configs are right, links lead somewhere, the reference is not stale.

Each page is followed from top to bottom in a folder with a small dataset and a trained model. A block that begins with
the name of a file is saved under that name; other configs are laid over `my.json` and checked. What is not run stands
in `NOT_RUN`, with the reason.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from PIL import Image

import evaluate
import inference
import prepare
import train
from docs.reference import FOLDER, parser_of
from engine.check import check_config
from tests.conftest import ROOT, Answer, call
from tests.test_examples import NAMES, write_folder
from utils.config import load_config, merge, parse_json

DOCS = ROOT / "docs"
GENERATED = [*(DOCS / "reference").glob("*.md"), DOCS / "catalogue.md"]
OTHERS = [DOCS / "deploy.md"]  # has tests of its own
FOLLOWED = sorted({ROOT / "README.md", *DOCS.rglob("*.md")} - {*GENERATED, *OTHERS})
LINKING = sorted({*ROOT.glob("*.md"), *DOCS.rglob("*.md")})
SCRIPTS = {"train.py": train, "evaluate.py": evaluate, "inference.py": inference, "prepare.py": prepare}

# Lines that are not run: what they begin with, and why.
NOT_RUN = {
    "make ": "makes an environment",
    "python3 -m venv": "makes an environment",
    "pip install": "makes an environment",
    "tensorboard": "serves until it is stopped",
    "torchrun": "needs two machines; tests/test_distributed.py starts several processes",
    "python prepare.py download": "fetches gigabytes; tests/test_download.py has a server of its own",
    "python train.py -c pspnet/voc": "needs Pascal VOC; tests/test_examples.py checks every preset",
    "python train.py -c configs/camvid.json": "takes 18 minutes, and needs CamVid",
    "python -m benchmarks.camvid": "trains nine times, and needs CamVid",
    "python inference.py -m trained/": "needs safetensors; tests/test_trained.py loads it",
    "python sweep.py": "trains twenty times; tests/test_sweep.py runs sweeps",
    "python export.py": "takes a minute; the tests of export.py export",
    "python train.py -c migrated.json --check": "needs Pascal VOC; tests/test_migrate.py checks the config",
    "python train.py -c both.json": "its two folders are the reader's",
    "python prepare.py check --model": "the shell expands its pattern; tests/test_label_errors.py checks folds",
    "python train.py -c my.json --folds 5": "trains five times; tests/test_label_errors.py checks folds",
}

TINY = {"backbone": {"type": "resnet18", "args": {"width_mult": 0.125}}, "pretrained": False}
SMALL = [
    *("--epochs", "1", "-s", "trainer.tensorboard=false", "-s", "n_gpu=0"),
    *("-s", "train_loader.args.batch_size=2", "-s", "train_loader.args.num_workers=0"),
    *("-s", "train_loader.args.crop_size=64", "-s", f"arch.args={json.dumps(TINY)}"),
]
TALKS = ("--check", "--list", "--describe")  # train.py then trains nothing


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name that the first line gives it."""
        match = re.match(r"(?://|#) ([\w-]+\.(?:json|py))\n", self.text)
        return match[1] if match else None


def blocks(page: Path) -> list[Block]:
    return blocks_in(page.read_text(encoding="utf-8"))


def blocks_in(text: str) -> list[Block]:
    return [Block(*each) for each in re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]


def commands(block: Block) -> Iterator[str]:
    """The lines of a block, without comments."""
    for line in block.text.splitlines():
        words = line.partition("  #")[0].strip()
        if words:
            yield words


def reason_not_to_run(line: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if line.startswith(start)), None)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ------------------------------------------------------------------------------------------------------- the folder


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages assume it: images and masks, a config and a run of it."""
    root = tmp_path_factory.mktemp("workshop")
    write_folder(root / "mydata", "index", 12)
    shutil.copytree(root / "mydata" / "images", root / "photos")
    shutil.copy(root / "photos" / "0000.jpg", root / "photo.jpg")
    (root / "mydata" / "jpeg_masks").mkdir()
    for path in (root / "mydata" / "masks").iterdir():
        mask = Image.open(path).point(lambda value: 255 * (value > 0))
        mask.save(root / "mydata" / "jpeg_masks" / f"{path.stem}.jpg")
    for name in ("config.json", "config.schema.json"):
        shutil.copy(ROOT / name, root / name)
    shutil.copy(ROOT / "configs" / "voc_pspnet.json", root / "old.json")
    args = {"data_dir": "mydata", "split": "all", "val_split": 0.2, "classes": NAMES, "batch_size": 2, "augment": True}
    config = {"extends": "config.json", "name": "mydata", "val_loader": None, "trainer": {"epochs": 1}}
    config["train_loader"] = {"type": "Folder", "args": {**args, "crop_size": 64, "num_workers": 0}}
    (root / "my.json").write_text(json.dumps(config))
    before = Path.cwd()
    os.chdir(root)
    try:
        answer = run_script("train.py", ["-c", "my.json"])
    finally:
        os.chdir(before)
    assert answer.status == 0, answer.err
    shutil.copy(root / "saved" / "mydata" / "latest" / "best_model.pth", root / "best_model.pth")
    return root


@pytest.fixture
def folder(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workshop to work in."""
    copy = tmp_path / "copy"
    shutil.copytree(workshop, copy, symlinks=True)
    monkeypatch.chdir(copy)
    monkeypatch.syspath_prepend(str(copy))
    return copy


def run_script(script: str, words: list[str]) -> Answer:
    """Run a command of a page, smaller than it says if it trains."""
    if script == "train.py" and not any(flag in words for flag in TALKS) and ("-c" in words or "--config" in words):
        words = [*words, *SMALL]
    return call(module_of(script), *words)


def module_of(script: str) -> ModuleType:
    return SCRIPTS.get(script) or importlib.import_module(script.removesuffix(".py"))


# ---------------------------------------------------------------------------------------------------------- following


@pytest.mark.parametrize("page", [page for page in FOLLOWED if page.parent != ROOT], ids=name_of)
def test_a_page_can_be_followed_from_top_to_bottom(page: Path, folder: Path) -> None:
    follow_page(page, folder)


def test_the_readmes_lines_lead_from_a_folder_to_predictions(folder: Path) -> None:
    follow_page(ROOT / "README.md", folder)
    photos = {path.stem for path in (folder / "photos").iterdir()}
    assert photos <= {path.stem for path in (folder / "predictions").glob("*.png")}


def follow_page(page: Path, folder: Path) -> None:
    """Do what each block says, in this order."""
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text)
        elif block.language in ("json", "jsonc"):
            check_fragment(block.text)
        elif block.language == "python":
            exec(compile(block.text, name_of(page), "exec"), {})
        elif block.language == "bash":
            for line in commands(block):
                follow(line)
        else:
            assert block.language == "text", f"{block.language}: say what is to be done with it"


def check_fragment(text: str) -> None:
    """A part of a config, laid over `my.json`, gives a right one."""
    text = text.strip()
    fragment = parse_json(text if text.startswith("{") else f"{{\n{text}\n}}")
    fragment.setdefault("n_gpu", 0)
    check_config(merge(load_config(Path("my.json")), fragment))


def follow(line: str) -> None:
    """Run a line, unless there is a reason not to."""
    if reason_not_to_run(line):
        return
    python, script, *words = shlex.split(line)
    assert python == "python", f"{line}: neither run nor in NOT_RUN"
    if Path(script).exists():
        runpy.run_path(script, run_name="__main__")
        return
    answer = run_script(script, words)
    findings = script == "prepare.py" and words[0] == "check"  # on random images there are some
    assert answer.status == 0 or (findings and answer.status == 3), f"{line}\n{answer.err}"


def test_every_reason_not_to_run_a_line_is_needed() -> None:
    lines = [line for page in FOLLOWED for block in blocks(page) for line in commands(block)]
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in lines), f"{start}: no page says so any more"


def test_every_command_names_flags_that_exist() -> None:
    """Also of lines that are not run, and of those within sentences and tables."""
    found = 0
    for page in FOLLOWED:
        inline = re.findall(r"`python ([^`]+)`", page.read_text(encoding="utf-8"))
        lines = [line for block in blocks(page) if block.language == "bash" for line in commands(block)]
        lines += [f"python {text}" for text in inline]
        for line in lines:
            match = re.search(r"\bpython ((?:train|evaluate|inference|prepare|export|report|sweep)\.py)\b(.*)", line)
            if match:
                parser_of(module_of(match[1])).parse_args(shlex.split(match[2]))
                found += 1
    assert found > 60


# ----------------------------------------------------------------------------------------------- as a shell script

# Stands for `python` on the PATH of a script, whose own lines stay as they are: $SHORTER is added where one trains.
PYTHON = """\
#!/bin/sh
case "$*" in
*--check*) ;;
train.py*) set -- "$@" $SHORTER ;;
esac
exec "{}" "$@"
"""


def shell_script(text: str) -> str:
    """Put the bash blocks of a page, or of a part of one, together; the environment is there already."""
    lines = "".join(block.text for block in blocks_in(text) if block.language == "bash").splitlines()
    return "".join(f"{line}\n" for line in lines if reason_not_to_run(line) != NOT_RUN["pip install"])


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a clone of the repository would hold once the working tree is committed, with images to train on."""
    if not (ROOT / ".git").exists():
        pytest.skip("the repository is no clone itself")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    target = tmp_path / "clone"
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    write_folder(target / "mydata", "index", 12)
    for path in (target / "mydata").rglob("*.*"):  # small, so that a run of full length takes minutes
        Image.open(path).resize((64, 48), Image.Resampling.NEAREST).save(path)
    shutil.copytree(target / "mydata" / "images", target / "photos")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PYTHON.format(sys.executable))
    python.chmod(0o755)
    return target


def run_shell(folder: Path, script: str, shorter: str) -> str:
    """Run a script as a newcomer would who has no network any more; returns what it printed."""
    own = {"SEGWRIGHT_CACHE": str(folder.parent / "cache"), "TORCH_HOME": str(folder.parent / "torch")}
    own |= {"https_proxy": "http://127.0.0.1:9", "SHORTER": shorter, "PYTHONPATH": ""}
    own |= {"PATH": f"{folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    options = {"cwd": folder, "env": {**os.environ, **own}, "capture_output": True, "text": True}
    answer = subprocess.run(["sh", "-ex"], input=script, **options)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def check_walk(clone: Path, images: Path, ending: str = "") -> None:
    """Predictions are as large as their images, evaluation repeats training's figure, the repository is as it was."""
    for path in images.iterdir():
        assert Image.open(clone / "predictions" / f"{path.stem}{ending}.png").size == Image.open(path).size
    run_shell(clone, "python evaluate.py -m saved/mydata/latest --output again.json", "")
    trained = json.loads((clone / "saved" / "mydata" / "latest" / "results.json").read_text())
    again = json.loads((clone / "again.json").read_text())
    assert again["metrics"] == {key: trained["metrics"][f"val/{key}"] for key in again["metrics"]}
    assert (again["protocol"], again["protocol"]["mode"]) == (trained["protocol"], "single")
    assert (clone / "config.json").read_text() == (ROOT / "config.json").read_text()
    assert (clone / "mydata.json").exists()


@pytest.mark.parametrize(
    "shorter", ["--epochs 2", pytest.param("", marks=pytest.mark.slow)], ids=["two epochs", "literally"]
)
def test_the_readmes_own_data_section_works_as_a_shell_script_in_a_clean_clone(clone: Path, shorter: str) -> None:
    _, _, section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Your own data\n")
    script = shell_script(section.partition("\n## ")[0])
    assert [line.split()[1] for line in script.splitlines()] == ["prepare.py", "train.py", "train.py", "inference.py"]
    said = run_shell(clone, script, shorter)
    assert "whole images at their own size; mode single, scale 1, " in said
    check_walk(clone, clone / "photos")


@pytest.mark.slow
def test_the_tutorial_works_as_a_shell_script_in_a_clean_clone(clone: Path) -> None:
    shutil.rmtree(clone / "mydata")  # the tutorial draws its own
    for block in blocks(DOCS / "tutorial.md"):
        if block.file:
            (clone / block.file).write_text(block.text)
    script = shell_script((DOCS / "tutorial.md").read_text(encoding="utf-8"))
    run_shell(clone, script, "--epochs 2")
    check_walk(clone, clone / "mydata" / "images", "_color")
    assert (clone / "saved" / "index.html").exists()


# -------------------------------------------------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    """The places that a page's headings make, as GitHub and mkdocs name them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.strip().lower())
        found.add(words.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        place, _, anchor = target.partition("#")
        there = (page.parent / place).resolve() if place else page
        assert there.exists(), f"{target}: there is no such file"
        if anchor:
            assert anchor in anchors(there), f"{target}: {there.name} has no such heading"


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    for page in DOCS.rglob("*.md"):
        assert f" {page.relative_to(DOCS).as_posix()}\n" in menu, page


def test_every_page_of_docs_is_reached_from_the_readme_or_the_index() -> None:
    start = (ROOT / "README.md").read_text(encoding="utf-8") + (DOCS / "index.md").read_text(encoding="utf-8")
    for page in FOLLOWED:
        if page.parent != ROOT and page.name != "index.md":
            assert page.relative_to(DOCS).as_posix() in start, page


def test_the_readme_fits_on_a_screen() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 70


# ---------------------------------------------------------------------------------------------------------- reference


def test_the_reference_says_what_the_signatures_say() -> None:
    # In a process of its own: tests register components, too.
    program = "import json; from docs.reference import PAGES; print(json.dumps({n: p() for n, p in PAGES.items()}))"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    for name, text in json.loads(answer.stdout).items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"{name}: run `make reference`"


# --------------------------------------------------------------------------------------------------------- stopwatch


MKDOCS = ROOT / ".venv-docs" / "bin" / "mkdocs"


@pytest.mark.slow
@pytest.mark.skipif(not MKDOCS.exists(), reason="`make docs` has not been run here")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    options = {"cwd": ROOT, "env": {**os.environ, "NO_MKDOCS_2_WARNING": "1"}, "capture_output": True, "text": True}
    answer = subprocess.run([MKDOCS, "build", "--strict", "--site-dir", tmp_path / "site"], **options)
    assert answer.returncode == 0
    assert "WARNING" not in answer.stderr


@pytest.mark.slow
def test_the_tutorial_takes_less_than_ten_minutes_and_beats_the_location_prior(tmp_path: Path) -> None:
    for block in blocks(DOCS / "tutorial.md"):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SEGWRIGHT_CACHE": str(tmp_path / "cache")}
    started = time.monotonic()
    for line in (
        "frames.py",
        "prepare.py init --images mydata/images --masks mydata/masks -o mydata.json",
        "train.py -c mydata.json --check",
        "train.py -c mydata.json --epochs 100",
    ):
        script, *words = shlex.split(line)
        path = script if script == "frames.py" else str(ROOT / script)
        subprocess.run([sys.executable, path, *words], cwd=tmp_path, env=environment, check=True)
    assert time.monotonic() - started < 600
    (results,) = (tmp_path / "saved" / "mydata").glob("[0-9]*/results.json")
    figures = json.loads(results.read_text())
    assert figures["metrics"]["val/Mean_IoU"] > figures["location_prior"]["Mean_IoU"] + 0.2


def test_no_page_names_a_place_on_one_machine() -> None:
    for page in FOLLOWED:
        assert not re.search(r"/(?:home|root|work|tmp)/", page.read_text(encoding="utf-8")), page
