"""Shows that a refactoring changed nothing: two trees of the code do the same work, compared to the bit.

    python benchmarks/compare_versions.py OLD_TREE NEW_TREE [--camvid DIR] [--cache DIR] [--only NAME ...]

`default`: two short epochs of `config.json`; all files of the run, checkpoints by hashes of their tensors. `resume`:
its second epoch once more, from the checkpoint of the first, which has to end the same. `cross`: likewise, but NEW
goes on with what OLD began. `camvid`: ten steps of `configs/camvid.json` on the images in DIR. `check`: `train.py
--check` of all configs, and what they are with every default filled in. `schema`: `config.schema.json`, with every
`$ref` written out. `options`: all that `train.py --list` and `--describe` say. `weights`: first weights, logits and
gradients of every model, backbone, neck and head. Each command is a process of its own, on one core, in an empty
folder.

Prints a line for each, with the seconds that OLD and NEW took, and the first differences below it. Ends with status 1
if there are any, with 2 if OLD itself fails. `--cache` keeps what OLD gave for the next time; that is used as long as
OLD, this file, the machine and the packages that count are the same.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from difflib import unified_diff
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CHECKS = ("default", "resume", "cross", "camvid", "check", "schema", "options", "weights")
# What makes `config.json` take less than a minute.
SHORT = ("trainer.epochs=2", "trainer.save_period=1", "train_loader.args.length=256", "val_loader.args.length=40")
# What is left of a run's folder to go on from.
START = ("checkpoint-epoch1.pth", "config.json", "environment.json", "run.lock")
STEPS = 10  # on CamVid
SHOWN = 6  # differences of one check
LIMIT = 1800  # seconds that a command may take
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENCV_FOR_THREADS_NUM": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONDONTWRITEBYTECODE": "1",  # the trees stay as they are
    "PYTHONHASHSEED": "0",
}
# Their versions may change what a tree gives.
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "pillow", "kornia-rs", "timm")
# What each two runs differ in: the commit and command of `environment`.
OF_THE_RUN = ("git", "command")
DATE = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?")


class Failed(Exception):
    """A command that should have worked did not."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.within:
        sys.path[0] = str(args.old)  # not this file's folder, whose names are other things in the tree
        answer = WITHIN[args.within](args.old, args.camvid)
        Path("answer.json").write_text(json.dumps(answer), encoding="utf-8")
        return 0
    names = [name for name in CHECKS if name in (args.only or CHECKS)]
    status = 0
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        place = Path(folder).resolve()
        old, new = Tree(args.old, place / "old", args.camvid, args.cache), Tree(args.new, place / "new", args.camvid)
        for name in names:
            if name == "camvid" and args.camvid is None:
                print(f"{name:<8}  left out: no --camvid", flush=True)
                continue
            began = time.monotonic()
            try:
                wanted = old.result("default" if name == "cross" else name)
            except Failed as error:
                print(f"{name:<8}  OLD fails: {error}", flush=True)
                return 2
            turned = time.monotonic()
            found = compare(name, old, new, wanted)
            verdict = "differs" if found else "same"
            seconds = f"{turned - began:.0f} s, {time.monotonic() - turned:.0f} s"
            print(f"{name:<8}  {verdict:<8}  {seconds}", *found[:SHOWN], sep="\n    ", flush=True)
            if found[SHOWN:]:
                print(f"    and {len(found) - SHOWN} more")
            status |= bool(found)
    return status


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("old", type=existing, metavar="OLD_TREE", help="the code as it was")
    add("new", type=existing, metavar="NEW_TREE", help="the code as it is")
    add("--camvid", type=existing, metavar="DIR", help="folder of CamVid's images")
    add("--cache", type=Path, metavar="DIR", help="where to keep what OLD gave")
    add("--only", nargs="+", choices=CHECKS, metavar="NAME", help=f"some of {', '.join(CHECKS)}")
    add("--within", choices=WITHIN, help=argparse.SUPPRESS)  # how this file calls itself
    return parser.parse_args(argv)


def existing(text: str) -> Path:
    """A folder that is there."""
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return path


def compare(name: str, old: Tree, new: Tree, wanted: Any) -> list[str]:
    """How what `new` does differs from `wanted`, which `old` did; and how resumed runs differ from whole ones."""
    try:
        if name == "cross":
            return differences(wanted["files"], new.go_on(old.start, "cross")["files"])
        found = differences(wanted, new.result(name))
        if name == "resume":
            for kind, tree in (("OLD", old), ("NEW", new)):
                pair = tree.result("default")["files"], tree.result("resume")["files"]
                found += [f"{kind}'s resumed run: {line}" for line in differences(*pair)]
    except Failed as error:
        return [f"NEW fails: {error}"]
    return found


# ------------------------------------------------------------------------------------------------ what a tree does


class Tree:
    """One of the two versions, and what it gave so far.

    Args:
        path: Its root.
        place: An empty folder to work in; need not exist.
        images: Folder of CamVid.
        cache: Where to keep its results for another time; None for nowhere.
    """

    def __init__(self, path: Path, place: Path, images: Path | None, cache: Path | None = None) -> None:
        self.path, self.place, self.images, self.cache = path, place, images, cache
        self.results: dict[str, Any] = {}
        self.start = (cache or place) / "start"  # a run folder with what `default` had after its first epoch

    def result(self, name: str) -> Any:
        """What the check `name` gives, as plain JSON.

        Raises:
            Failed: A command ended as it should not.
        """
        if name in self.results:
            return self.results[name]
        kept = self.cache / f"{name}.json" if self.cache else None
        of = [self.identity, str(self.images) if name in ("camvid", "check") else ""]
        if kept and kept.exists():
            content = json.loads(kept.read_text(encoding="utf-8"))
            if content["of"] == of:
                self.results[name] = content["result"]
                return content["result"]
        make: Callable[[], Any] = getattr(self, name)
        self.results[name] = json.loads(json.dumps(make()))
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps({"of": of, "result": self.results[name]}), encoding="utf-8")
        return self.results[name]

    @functools.cached_property
    def identity(self) -> str:
        """A hash of all that decides what this tree gives."""
        machine = [platform.node(), platform.platform(), torch.backends.cpu.get_cpu_capability(), sys.version]
        installed = {each.name.lower(): each.version for each in importlib.metadata.distributions()}
        sha = hashlib.sha256(json.dumps([*machine, *map(installed.get, PACKAGES)]).encode())
        parts = [path for path in self.path.iterdir() if not path.name.startswith(".") and path.name != "saved"]
        files = [file for part in parts for file in ([part] if part.is_file() else part.rglob("*")) if file.is_file()]
        for file in sorted(file for file in files if file.suffix in (".py", ".json")):
            sha.update(file.relative_to(self.path).as_posix().encode() + b"\0" + file.read_bytes())
        sha.update(Path(__file__).read_bytes())
        return sha.hexdigest()

    def default(self) -> dict[str, Any]:
        """Two short epochs of the default config."""
        run_dir, output = self.train("default", "-c", str(self.path / "config.json"), *sets(*SHORT))
        shutil.rmtree(self.start, ignore_errors=True)
        self.start.mkdir(parents=True)
        for name in START:
            shutil.copy(run_dir / name, self.start)
        return {"output": output, "files": contents(run_dir)}

    def resume(self) -> dict[str, Any]:
        """The second epoch alone, after the first."""
        self.result("default")
        return self.go_on(self.start, "resume")

    def go_on(self, start: Path, name: str) -> dict[str, Any]:
        """Go on with the run in `start`, a copy of which is made, after its first epoch."""
        run_dir = self.place / name / "saved" / "street" / "run"
        shutil.copytree(start, run_dir)
        _, output = self.train(name, "--resume", str(run_dir / "checkpoint-epoch1.pth"))
        return {"output": output, "files": contents(run_dir)}

    def camvid(self) -> dict[str, Any]:
        """Some steps on photographs, in bf16, with averaged weights and class weights, and a validation."""
        words = sets(*camvid_places(self.images), f"trainer.max_steps={STEPS}")
        run_dir, output = self.train("camvid", "-c", str(self.path / "configs" / "camvid.json"), *words)
        return {"output": output, "files": contents(run_dir)}

    def schema(self) -> Any:
        """The JSON Schema, without references."""
        return written_out(json.loads((self.path / "config.schema.json").read_text(encoding="utf-8")))

    def train(self, name: str, *words: str) -> tuple[Path, list[str]]:
        """The folder of the only run that `train.py` leaves, and what it printed."""
        output = self.call(name, str(self.path / "train.py"), *words)
        runs = [path.parent for path in (self.place / name / "saved").glob("*/*/config.json")]
        if len(runs) != 1:
            raise Failed(f"train.py {' '.join(words)}: leaves {len(runs)} runs, not one")
        return runs[0], output

    def within(self, name: str) -> Any:
        """What a function of this file gives in a process that imports this tree."""
        images = ["--camvid", str(self.images)] if self.images else []
        self.call(name, str(Path(__file__).resolve()), str(self.path), str(self.path), "--within", name, *images)
        return json.loads((self.place / name / "answer.json").read_text(encoding="utf-8"))

    def call(self, name: str, *words: str) -> list[str]:
        """Lines that Python prints when called with `words`, in the folder of the check `name`."""
        place = self.place / name
        place.mkdir(parents=True, exist_ok=True)
        mine = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SEGWRIGHT_IMPORT")}
        command = " ".join([Path(words[0]).name, *words[1:]])
        try:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=place,
                env={**mine, **ENVIRONMENT, "SEGWRIGHT_CACHE": str(place / "cache")},
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{command}: not done after {LIMIT} seconds") from None
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "in silence").splitlines()[-1]
            raise Failed(f"{command}: ended with status {done.returncode}: {last}")
        return plain_lines(done.stdout, self.path, place)

    def check(self) -> Any:
        return self.within("check")

    def options(self) -> Any:
        return self.within("options")

    def weights(self) -> Any:
        return self.within("weights")


def sets(*overrides: str) -> list[str]:
    """Words of a command that overrides keys of its config."""
    return [word for text in overrides for word in ("--set", text)]


def camvid_places(images: Path | None) -> list[str]:
    """Overrides that let a config find CamVid's images."""
    return [f"{loader}.args.data_dir={images}" for loader in ("train_loader", "val_loader")]


def plain_lines(text: str, tree: Path, place: Path) -> list[str]:
    """Lines of `text` without what differs from folder to folder and from second to second."""
    return DATE.sub("DATE", text.replace(str(place), "PLACE").replace(str(tree), "TREE")).splitlines()


# ------------------------------------------------------------------------------------------- within one of the trees


def command(tree: Path, *words: str) -> tuple[int, list[str]]:
    """Call the script ``train.py`` in this process: its status, what it prints, and its error lines."""
    out, err, before, status = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = [str(tree / "train.py"), *words]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1 if end.code else 0
    finally:
        sys.argv = before
    errors = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    return status, plain_lines("\n".join([*out.getvalue().splitlines(), *errors]), tree, Path.cwd())


def check(tree: Path, images: Path | None) -> dict[str, Any]:
    """For every config: what ``--check`` says of it, and what it is with every default filled in."""
    load_config = function("load_config", "utils.config", "engine.config", "engine.check")
    check_config = function("check_config", "engine.config", "engine.check", "run_config")
    found: dict[str, Any] = {}
    for path in [tree / "config.json", *sorted((tree / "configs").rglob("*.json"))]:
        status, lines = command(tree, "-c", str(path), "--check")
        try:
            resolved = check_config(load_config(path)).to_json()
        except ValueError as error:
            resolved = plain_lines(f"{type(error).__name__}: {error}", tree, Path.cwd())
        name = path.relative_to(tree).as_posix()
        found[name] = {"status": status, "output": lines, "resolved": resolved}
    if images:
        words = ["-c", str(tree / "configs" / "camvid.json"), "--check", *sets(*camvid_places(images))]
        found["camvid with its images"] = command(tree, *words)
    return found


def function(name: str, *modules: str) -> Callable[..., Any]:
    """The function `name` of the first of `modules` that has it."""
    for module in modules:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            if error.name not in (module, module.partition(".")[0]):
                raise
            continue
        if found is not None:
            return found
    raise ImportError(f"no {name} in any of {', '.join(modules)}")


def options(tree: Path, images: Path | None) -> dict[str, Any]:
    """All that ``--list`` and ``--describe`` say."""
    listed = {kind: said(tree, "--list", kind) for kind in ("all", "presets")}
    names = dict.fromkeys(name for each in kinds(tree).values() for name in each)
    return {"list": listed, "describe": {name: said(tree, "--describe", name) for name in names}}


def said(tree: Path, *words: str) -> list[str]:
    """What ``train.py`` prints; it has to succeed."""
    status, lines = command(tree, *words)
    if status:
        raise Failed(f"train.py {' '.join(words)}: ended with status {status}: {lines[-1:]}")
    return lines


def kinds(tree: Path) -> dict[str, list[str]]:
    """Names of all components, by kind."""
    found: dict[str, list[str]] = {}
    for line in said(tree, "--list", "all"):
        if heading := re.fullmatch(r"(\w+):", line):
            names = found.setdefault(heading[1], [])
        elif line.startswith("  "):
            names.append(line.split()[0])
    del found["presets"]
    return found


def weights(tree: Path, images: Path | None) -> dict[str, Any]:
    """Hashes of the first weights of every network, and of what it makes of fixed images."""
    torch.set_num_threads(1)
    build_model = function("build_model", "models.build")
    pixels = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = {}
    for name, arch in networks(tree):
        torch.manual_seed(0)
        model = build_model(arch, num_classes=5)
        first = model.state_dict()
        found[name] = {
            "arch": arch,
            "names": digest(list(first)),
            "weights": digest(list(first.values())),
            "parameters": digest([parameter for _, parameter in model.named_parameters()]),
        }
        with torch.inference_mode():
            found[name]["logits"] = digest(model.eval()(pixels[:1]).logits)
        output = model.train()(pixels)
        outputs = [output.logits, *output.aux]
        sum((each.square().mean() for each in outputs), torch.zeros(())).backward()
        found[name]["training"] = digest([each.detach() for each in outputs])
        found[name]["gradients"] = digest([parameter.grad for parameter in model.parameters()])
    return found


FAMILIES = {"DeepLab_Xception": "xception41", "LRASPP": "mobilenet_v2", "PSPDenseNet": "densenet121"}


def networks(tree: Path) -> Iterator[tuple[str, Any]]:
    """Every model and, put together with a small ResNet, every brick; as narrow as they can be said to be."""

    def narrow(name: str) -> dict[str, Any]:
        known = re.findall(r"^  (\w+)[: ,]", "\n".join(said(tree, "--describe", name)), re.MULTILINE)
        args: dict[str, Any] = {"width_mult": 0.25} if "width_mult" in known else {}
        if "backbone" in known:
            args["backbone"] = narrow(FAMILIES.get(name, "resnet18"))
        if "head" in known:
            args["head"] = "FCNHead"
        return {"type": name, "args": args}

    known = kinds(tree)
    for name in known["models"]:
        yield name, narrow(name)
    bricks: list[tuple[str, str, Any]] = [("backbone", name, narrow(name)) for name in known["backbones"]]
    bricks += [("head", name, name) for name in known["heads"]] + [("necks", name, [name]) for name in known["necks"]]
    for key, name, brick in bricks:
        args = {"backbone": narrow("resnet18"), "head": "FCNHead"}
        yield f"{key} {name}", {"type": "EncoderDecoder", "args": {**args, key: brick}}


WITHIN = {"check": check, "options": options, "weights": weights}


# ------------------------------------------------------------------------------------------------ what is compared


def contents(run_dir: Path) -> dict[str, Any]:
    """All that is in a run's folder: JSON as it is, tensors and pictures by their hashes; of logs, that there are."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in run_dir.rglob("*") if path.is_file()):
        name = path.relative_to(run_dir).as_posix()
        if path.suffix == ".pth":
            found[name] = checkpoint(torch.load(path, map_location="cpu", weights_only=True))
        elif path.suffix == ".json":
            value = json.loads(path.read_text(encoding="utf-8"))
            found[name] = of_all_runs(value) if name == "environment.json" else value
        elif path.suffix == ".jsonl":
            found[name] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        elif path.suffix in (".log", ".lock"):
            found[name] = "there"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of a checkpoint: plain values as they are, and hashes of those that hold tensors."""
    plain = {**state, "environment": of_all_runs(state["environment"])}
    return {key: digest(value) if has_tensors(value) else value for key, value in plain.items()}


def of_all_runs(environment: Mapping[str, Any]) -> dict[str, Any]:
    """`environment` without what each two runs differ in."""
    return {key: value for key, value in environment.items() if key not in OF_THE_RUN}


def has_tensors(value: Any) -> bool:
    """Whether there is a tensor anywhere in `value`."""
    if isinstance(value, Mapping):
        return any(map(has_tensors, value.values()))
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(has_tensors, value)))


def digest(value: Any) -> str:
    """A hash of every bit of `value`: tensors, plain values, and lists and objects of them, in their order."""
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            sha.update(f"tensor {value.dtype} {list(value.shape)}\0".encode())
            sha.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping):
            sha.update(f"object {len(value)}\0".encode())
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, list | tuple):
            sha.update(f"list {len(value)}\0".encode())
            for item in value:
                add(item)
        else:
            sha.update(f"{type(value).__name__} {value!r}\0".encode())

    add(value)
    return sha.hexdigest()


def written_out(schema: Mapping[str, Any]) -> Any:
    """`schema` without `$defs`: what they hold stands wherever it is referred to, under what is said beside it."""

    def expand(value: Any, above: tuple[str, ...]) -> Any:
        if isinstance(value, list):
            return [expand(item, above) for item in value]
        if not isinstance(value, Mapping):
            return value
        if not isinstance(value.get("$ref"), str):  # a property may be called so
            return {key: expand(value[key], above) for key in sorted(value)}
        target = value["$ref"]
        if target in above:
            return {"$ref": f"{len(above) - above.index(target)} levels up"}
        found: Any = schema
        for name in target.removeprefix("#").split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            found = found[int(name) if isinstance(found, list) else name]
        beside = {key: item for key, item in value.items() if key != "$ref"}
        return dict(sorted({**expand(found, (*above, target)), **expand(beside, above)}.items()))

    return expand({key: value for key, value in schema.items() if key != "$defs"}, ())


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """A line for every place in which two JSON values differ, also in the order of keys."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in {**old, **new}:
            place = f"{where} > {key}" if where else str(key)
            if key not in new or key not in old:
                found.append(f"{place}: only in {'OLD' if key in old else 'NEW'}")
            else:
                found += differences(old[key], new[key], place)
        # Checkpoints are read by key; in a config, in figures and in a schema people see the order.
        if not found and list(old) != list(new) and not where.endswith(".pth"):
            found.append(f"{where}: keys in another order")
        return found
    if is_text(old) and is_text(new):
        lines = [*unified_diff(old, new, n=0, lineterm="")][2:]
        return [f"{where}: {short(line)}" for line in lines if not line.startswith("@@")]
    if isinstance(old, list) and isinstance(new, list):
        pairs = enumerate(zip(old, new, strict=False))
        found = [line for index, pair in pairs for line in differences(*pair, f"{where}[{index}]")]
        if len(old) != len(new):
            found.append(f"{where}: {len(old)} entries, now {len(new)}")
        return found
    if type(old) is type(new) and json.dumps(old) == json.dumps(new):  # NaN is equal to itself here
        return []
    return [f"{where}: {short(json.dumps(old, ensure_ascii=False))}, now {short(json.dumps(new, ensure_ascii=False))}"]


def is_text(value: Any) -> bool:
    """Whether it is a list of lines."""
    return isinstance(value, list) and bool(value) and all(isinstance(line, str) for line in value)


def short(text: str) -> str:
    """`text`, or its beginning; of a hash, enough to know it by."""
    length = 12 if re.fullmatch(r'"[0-9a-f]{64}"', text) else 200
    return text if len(text) <= length else f"{text[:length]}..."


if __name__ == "__main__":
    sys.exit(main())
