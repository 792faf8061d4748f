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
    "OMP_PROC_BIND=true python train.py -c configs/camvid.json": "takes 18 minutes, and needs CamVid",
    "python sweep.py": "trains twenty times; tests/test_sweep.py runs sweeps",
    "python export.py": "takes a minute; the tests of export.py export",
    "python train.py -c migrated.json --check": "needs Pascal VOC; tests/test_migrate.py checks the config",
}

# What pages say that has landed if its script knows it: lines with one of these are run from then on.
LANDING = ("export.py", "report.py", "--seeds", "--folds", "--compare")

TINY = {"backbone": {"type": "resnet18", "args": {"width_mult": 0.125}}, "channels": 16, "pretrained": False}
SMALL = [
    *("-s", "trainer.epochs=1", "-s", "trainer.tensorboard=false", "-s", "n_gpu=0"),
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
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(*each) for each in found]


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
    if script == "train.py":
        if not any(flag in words for flag in TALKS) and ("-c" in words or "--config" in words):
            words = [*words, *SMALL]
        answer = call(train, *words)
        link_newest(Path("saved"))
        return answer
    if script == "inference.py" and "--mode" not in words:
        words = [*words, "--mode", "single"]
    answer = call(module_of(script), *words)
    if "folder" in answer.err and answer.status == 2:  # until --model takes the folder of a run
        answer = call(
            module_of(script), *(f"{word}/best_model.pth" if word.endswith("latest") else word for word in words)
        )
    return answer


def link_newest(saved: Path) -> None:
    """Let `saved/NAME/latest` lead to the newest run, where training has not done so."""
    for runs in saved.glob("*"):
        dated = sorted(path for path in runs.iterdir() if path.is_dir() and path.name[:1].isdigit())
        link = runs / "latest"
        if dated and (not link.exists() or link.resolve() != dated[-1].resolve()):
            link.unlink(missing_ok=True)
            link.symlink_to(dated[-1].name)


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
    if reason_not_to_run(line) or not has_landed(line):
        return
    python, script, *words = shlex.split(line)
    assert python == "python", f"{line}: neither run nor in NOT_RUN"
    if Path(script).exists():
        runpy.run_path(script, run_name="__main__")
        return
    answer = run_script(script, words)
    findings = script == "prepare.py" and words[0] == "check"  # on random images there are some
    assert answer.status == 0 or (findings and answer.status == 3), f"{line}\n{answer.err}"


def has_landed(line: str) -> bool:
    """Whether the script of a line is there, and knows its flags."""
    words = shlex.split(line)
    landing = set(LANDING) & set(words)
    if not landing:
        return True
    if not (ROOT / words[1]).exists():
        return False
    known = {flag for action in parser_of(module_of(words[1]))._actions for flag in action.option_strings}
    return all(word in known for word in landing if word.startswith("--"))


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
            if match and has_landed(f"python {match[1]}{match[2]}"):
                parser_of(module_of(match[1])).parse_args(shlex.split(match[2]))
                found += 1
    assert found > 60


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
        if there in OTHERS and not there.exists():
            continue  # the page comes with export.py
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
        "train.py -c quick.json",
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
