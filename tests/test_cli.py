"""What the commands answer to input that cannot be used, and to questions about themselves."""

import json
import os
import shutil
import subprocess
import sys

import cv2
import pytest
import torch
from PIL import Image

import evaluate
import train
from tests.conftest import PREFIX, ROOT, program
from tests.tiny import tiny_config
from utils import flags
from utils.registry import KINDS

TINY = ("--import", "tests.tiny")
TRAIN = flags.program("train")  # as help and errors call it


# ------------------------------------------------------------------------------------------- wrong configs

LOADER, ADAM = "train_loader.args", {"type": "Adam", "args": {"lr": 0.1, "momentum": 0.9}}
PSP = {"type": "PSPNet", "args": {"backbone": "resnet18"}}
LEGO = "resnet18+ASPP+FCNHead"

WRONG = {  # changes of a config, and how each line of the answer begins
    "misspelt section": ({"nam": 1}, ["nam: unknown key. Did you mean 'name'?"]),
    "misspelt key": ({"trainer.epoch": 3}, ["trainer.epoch: unknown key. Did you mean 'epochs'?"]),
    "misspelt argument": (
        {f"{LOADER}.crop_sise": 3},
        [f"{LOADER}.crop_sise: unknown key. Did you mean 'crop_size'?"],
    ),
    "text for number": ({"trainer.epochs": "80"}, ["trainer.epochs: expected int of at least 1"]),
    "fraction for number": ({"trainer.epochs": 1.5}, ["trainer.epochs: expected int of at least 1"]),
    "true for number": ({"trainer.epochs": True}, ["trainer.epochs: expected int of at least 1"]),
    "text for bool": ({"trainer.val": "false"}, ['trainer.val: expected true or false, got "false".']),
    "null for bool": ({"trainer.val": None}, ["trainer.val: expected true or false, got null."]),
    "no epochs": ({"trainer.epochs": None}, ["trainer.epochs: missing. Give a number of epochs, or trainer.max"]),
    "zero epochs": ({"trainer.epochs": 0}, ["trainer.epochs: expected int of at least 1"]),
    "zero save_period": ({"trainer.save_period": 0}, ["trainer.save_period: expected int of at least 1, got 0."]),
    "zero val_per_epochs": ({"trainer.val_per_epochs": 0}, ["trainer.val_per_epochs: expected int of at least 1, go"]),
    "zero batch": ({f"{LOADER}.batch_size": 0}, [f"{LOADER}.batch_size: expected int of at least 1"]),
    "huge batch": ({f"{LOADER}.batch_size": 10**12}, [f"{LOADER}.batch_size: expected int of at least 1"]),
    "negative workers": ({f"{LOADER}.num_workers": -1}, [f"{LOADER}.num_workers: expected int of at least 0"]),
    "a million workers": ({f"{LOADER}.num_workers": 10**6}, [f"{LOADER}.num_workers: expected int of at least 0"]),
    "zero crop": ({f"{LOADER}.crop_size": 0}, [f"{LOADER}.crop_size: expected"]),
    "huge crop": ({f"{LOADER}.crop_size": 10**8}, [f"{LOADER}.crop_size: expected"]),
    "negative lr": (
        {"optimizer.args.lr": -1},
        ["optimizer.args.lr: -1.0, which SGD refuses: Invalid learning rate: -1.0. Change it."],
    ),
    "text for lr": ({"optimizer.args.lr": "0.1"}, ['optimizer.args.lr: expected a number, got "0.1".']),
    "Adam with momentum": ({"optimizer": ADAM}, ["optimizer.args.momentum: unknown key. Choose from amsgrad, betas,"]),
    "nesterov without momentum": (
        {"optimizer": {"type": "SGD", "args": {"lr": 0.1, "nesterov": True}}},
        ["optimizer.args.nesterov: true, which SGD refuses: Nesterov momentum requires a momentum and zero dampening."],
    ),
    "params of an optimizer": (
        {"optimizer.args.params": []},
        ["optimizer.args.params: is filled in by the framework. Remove it."],
    ),
    "part that the model has not": (
        {"optimizer.parts": {"bakbone": {"lr_mult": 1}}},
        ["optimizer.parts.bakbone: the model has no such part. Did you mean 'backbone'?"],
    ),
    "unknown optimizer": ({"optimizer.type": "Adm"}, ["optimizer.type: no optimizer is called 'Adm'. Did you mean"]),
    "unknown model": ({"arch": {"type": "PSPNett"}}, ["arch.type: no model is called 'PSPNett'. Did you mean 'PSPNe"]),
    "module for a model": ({"arch": "np"}, ["arch: no model is called 'np'."]),
    "attribute for a model": ({"arch": {"type": "__doc__"}}, ["arch.type: no model is called '__doc__'."]),
    "function for a model": ({"arch": {"type": "make_one_hot"}}, ["arch.type: no model is called 'make_one_hot'."]),
    "number for a model": ({"arch": 5}, ["arch: expected a component, got 5."]),
    "nothing for a model": ({"arch": {}}, ["arch.type: expected a name, got null."]),
    "unknown brick": ({"arch": "resnet18+FCNHed"}, ["arch.type: no head is called 'FCNHed' in 'resnet18+FCNHed'."]),
    "frozen backbone of a net without one": (
        {"arch": {"type": "UNet", "args": {"freeze_backbone": True}}},
        ["arch.args.freeze_backbone: UNet has no backbone"],
    ),
    "fact as argument": ({"arch.args.num_classes": 4}, ["arch.args.num_classes: is filled in by the framework."]),
    "unknown head": ({"arch.args.head": "np"}, ["arch.args.head.type: no head is called 'np'."]),
    "unknown dataset": ({"train_loader.type": "lr_scheduler"}, ["train_loader.type: no dataset is called 'lr_schedul"]),
    "unknown loss": ({"loss": "np"}, ["loss: no loss is called 'np'."]),
    "no loss": ({"loss": []}, ["loss: is empty."]),
    "unknown argument of a loss": ({"loss": {"type": "DiceLoss", "args": {"smoth": 1}}}, ["loss.args.smoth: unknown"]),
    "class weights of a class that is not": (
        {"loss": {"type": "CrossEntropyLoss2d", "args": {"class_weights": {"skwer": 2}}}},
        ["loss.args.class_weights.skwer: no class has this name. Choose from dot, ground, square."],
    ),
    "unknown scheduler": ({"lr_scheduler": "LambdaLR"}, ["lr_scheduler: no scheduler is called 'LambdaLR'."]),
    "scheduler without its arguments": (
        {"lr_scheduler": {"type": "StepLR"}},
        ["lr_scheduler.args.step_size: missing. Give int."],
    ),
    "monitor of nothing": ({"trainer.monitor": "max mIoU"}, ["trainer.monitor: there will be no 'mIoU'."]),
    "monitor without mode": ({"trainer.monitor": "Mean_IoU"}, ["trainer.monitor: expected 'max KEY', 'min KEY' or 'o"]),
    "monitor of no class": (
        {"trainer.monitor": "max Class_IoU/squar"},
        ["trainer.monitor: there will be no 'Class_IoU/squar'. Did you mean 'val/Class_IoU/square'?"],
    ),
    "monitor of validation without one": (
        {"trainer.monitor": "max val/Mean_IoU", "trainer.val": False},
        ["trainer.monitor: there will be no 'val/Mean_IoU'. Did you mean 'train/Mean_IoU'?"],
    ),
    "name that leaves the folder": ({"name": "../x"}, ['name: "../x" cannot name a folder of runs.']),
    "absolute name": ({"name": "/tmp/x"}, ['name: "/tmp/x" cannot name a folder of runs.']),
    "name of TensorBoard's folder": ({"name": "runs"}, ['name: "runs" cannot name a folder of runs.']),
    "empty name": ({"name": ""}, ['name: "" cannot name a folder of runs.']),
    "blank name": ({"name": " "}, ['name: " " cannot name a folder of runs.']),
    "dots in the name": ({"name": "a..b"}, ['name: "a..b" cannot name a folder of runs.']),
    "dots as name": ({"name": ".."}, ['name: ".." cannot name a folder of runs.']),
    "NUL in the name": ({"name": "a\0b"}, ['name: "a\\u0000b" cannot name a folder of runs.']),
    "newline in the name": ({"name": "a\nerror: x"}, ['name: "a\\nerror: x" cannot name a folder of runs.']),
    "half a character as name": ({"name": "\ud83d"}, ["name: "]),
    "long name": ({"name": "x" * 300}, ["name: "]),
    "NUL in a path": ({"trainer.save_dir": "a\0b"}, ["trainer.save_dir: expected a path,"]),
    "batch that cannot be divided": (
        {f"{LOADER}.batch_size": 5, "trainer.accumulate": 2},
        [f"{LOADER}.batch_size: 5 is not divisible by trainer.accumulate 2. Use 4 or 6."],
    ),
    "one image behind global pooling": (
        {"arch": PSP, "trainer.accumulate": 2},
        [f"{LOADER}.batch_size: a part of a step has 1 image, and PSPNet needs 2 in training"],
    ),
    "one image behind the pooling of a brick": (
        {"arch": LEGO, f"{LOADER}.batch_size": 1},
        [f"{LOADER}.batch_size: a part of a step has 1 image, and {LEGO} needs 2 in training"],
    ),
    "more images in a batch than there are": (
        {f"{LOADER}.batch_size": 64},
        [f"{LOADER}.batch_size: 64, but there are only 11 images to train on. Use at most 11."],
    ),
    "class that is not, to ignore": (
        {"ignore_index": 7},
        ["ignore_index: 7 is no class of 0..2. Use a class, or 255 for void only."],
    ),
    "ignore_index below -1": ({"ignore_index": -2}, ["ignore_index: expected int of at least -1"]),
    "contradictions beside an unknown key": (
        {f"{LOADER}.val": True, f"{LOADER}.batchsize": 2},
        [f"{LOADER}.batchsize: unknown key.", f'{LOADER}.val: contradicts "augment": true.'],
    ),
    "augment and val": ({f"{LOADER}.val": True}, [f'{LOADER}.val: contradicts "augment": true.']),
    "augmentation without augment": (
        {f"{LOADER}.augment": False, f"{LOADER}.rotate": False, f"{LOADER}.base_size": None},
        [f"{LOADER}.flip: has no effect."],
    ),
    "transforms and flags": (
        {f"{LOADER}": {"batch_size": 2, "augment": True, "transforms": []}},
        [f'{LOADER}.augment: has no effect beside "transforms".'],
    ),
    "val_split and val_loader": ({f"{LOADER}.val_split": 0.5}, [f"{LOADER}.val_split: there is a val_loader too."]),
    "no validation set": ({"val_loader": None}, ["val_loader: missing."]),
    "val_split that leaves nothing": (
        {"val_loader": None, f"{LOADER}.val_split": 0.01},
        [f"{LOADER}.val_split: 0.01 of 11 images. Leave some on both sides."],
    ),
    "split that is not": (
        {f"{LOADER}.split": "tran"},
        [f"{LOADER}.split: Squares has no 'tran'. Did you mean 'train'"],
    ),
    "other classes in validation": (
        {"val_loader": {"type": "Synthetic", "args": {"batch_size": 2, "split": "val"}}},
        ["val_loader: its classes differ from the train_loader's."],
    ),
    "reserved argument of a dataset": ({f"{LOADER}.seed": 1}, [f"{LOADER}.seed: unknown key."]),
    "negative n_gpu": ({"n_gpu": -1}, ["n_gpu: expected int of at least 0"]),
    "weights that are not": ({"init_from": "nowhere.pth"}, ["nowhere.pth: no such checkpoint."]),
    "pretrained weights that are not": (
        {"arch.args.pretrained": "nowhere.pth"},
        ["arch.args.pretrained: nowhere.pth: no such checkpoint."],
    ),
    "weights that do not fit": ({"init_from": "BEST", "arch": {"type": "UNet"}}, ["BEST: none of its 128 weights"]),
    "TensorBoard below a file": (
        {"trainer.tensorboard": True, "trainer.log_dir": "config.json/x"},
        ["trainer.log_dir: config.json/x/tiny/"],
    ),
    "label_map to no class": (
        {f"{LOADER}.label_map": {"7": "skwer"}},
        [f"{LOADER}.label_map.7: no class 'skwer'. Choose from ground, square, dot or null."],
    ),
    "section that is a list": ({"trainer": []}, ["trainer: expected an object, got []."]),
    "section that is null": ({"train_loader": None}, ["train_loader: expected a component, got null."]),
    "section that is a number": ({"val_loader": 5}, ["val_loader: expected"]),
    "extends a number": ({"extends": 5}, ["CONFIG: extends: expected a path or a list of paths, got 5."]),
    "extends nothing": (
        {"extends": "no.json"},
        ["CONFIG: extends: there is no file FOLDER/no.json, nor a preset of that name, nor no.json in the current"],
    ),
    "several at once": (
        {"name": "..", "trainer.accumulate": 2, f"{LOADER}.batch_size": 5, "trainer.monitor": "x", "ignore_index": 9},
        ["name: ", f"{LOADER}.batch_size: ", "ignore_index: ", "trainer.monitor: "],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_config_is_answered_by_place_and_leaves_no_run(
    config_file, train_command, finished_run, tmp_path, monkeypatch, case
):
    monkeypatch.chdir(tmp_path)
    changes, expected = WRONG[case]
    best = str(finished_run / "best_model.pth")
    file = config_file({key: best if value == "BEST" else value for key, value in changes.items()})
    answer = train_command("-c", file, *TINY)
    found = [line.replace(str(file), "CONFIG").replace(str(tmp_path), "FOLDER") for line in answer.errors]
    found = [line.replace(best, "BEST") for line in found]
    if case == "several at once":
        found = [next((line for line in found if line.startswith(each)), f"no {each}") for each in expected]
    assert answer.status == 2, answer.err
    assert len(found) == len(expected), found
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)
        assert line.rstrip()[-1] in ".?"  # a whole sentence
    assert "Traceback" not in answer.err
    assert [path for path in tmp_path.rglob("*") if path != tmp_path / "saved"] == [file]


MISSING = ["name", "arch", "train_loader", "optimizer", "trainer"]


def test_missing_sections_are_all_named(train_command, tmp_path):
    (tmp_path / "c.json").write_text("{}")
    answer = train_command("-c", tmp_path / "c.json")
    assert answer.status == 2
    assert [line.partition(". ")[0] for line in answer.errors] == [f"{name}: missing" for name in MISSING]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"a": 1,\n "b" 2}', "line 2 column 6: Expecting ':' delimiter. Remove it or add what is missing there."),
        ('{"a": 1, "a": 2}', "key 'a' stands twice in one object. Keep one of them."),
        ('{"a": NaN}', "line 1: a: NaN is no number to train with. Give a finite number."),
        ("", "is empty. Name a JSON config file."),
    ],
)
def test_bad_json_is_answered_in_one_line(train_command, tmp_path, content, what):
    file = tmp_path / "c.json"
    file.write_text(content)
    answer = train_command("-c", file)
    assert (answer.status, answer.errors) == (2, [f"{file}: {what}"])


# ------------------------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--nope"], f"command line: unrecognized arguments: --nope. `{TRAIN} --help` lists what there is."),
        (["extra"], "command line: extra: there is --config "),
        (["--epochs", "0"], "trainer.epochs: expected int of at least 1"),
        (["--set", "epochs=3"], "epochs: unknown key. Did you mean 'trainer.epochs'?"),
        (["--set", "batch_size=3"], "batch_size: unknown key. Did you mean 'train_loader.args.batch_size'?"),
        (["--set", "lr=3"], "lr: unknown key. Did you mean 'optimizer.args.lr'?"),
        (["--batch-size", "1.5"], "command line: argument --batch-size: invalid int value: '1.5'."),
        (["--lr", "fast"], "command line: argument --lr: invalid float value: 'fast'."),
        (["--lr", "nan"], 'optimizer.args.lr: expected a number, got "nan".'),
        (["--lr", "-1"], "optimizer.args.lr: -1.0, which SGD refuses: Invalid learning rate: -1.0."),
        (["--bs", "0"], f"{LOADER}.batch_size: expected int of at least 1"),
        (["--set", "trainer.epochs"], "--set trainer.epochs: expected KEY=VALUE."),
        (["--set", "trainer.epoch=3"], "trainer.epoch: unknown key. Did you mean 'epochs'?"),
        (["--set", "trainer.epochs=many"], "trainer.epochs: expected int of at least 1"),
        (["--set", "trainer.epochs=NaN"], "--set trainer.epochs=NaN: line 1: NaN is no number to train with."),
        (["--set", "name.x=2"], 'name: expected a text, got {"x": 2}.'),
        (["--set", "new_section.x=2"], "new_section: unknown key."),
        (["-d", "9"], "--device 9: no such GPU is available. Use --device cpu."),
        (["-d", "gpu"], "--device gpu: unknown. Use GPU numbers such as 0 or 0,1, or cpu, cuda, mps."),
        (["-d", ""], "--device : unknown."),
        (["--import", "no_such_module"], "--import no_such_module: No module named 'no_such_module'."),
        (["--import", ""], "--import : "),
        (["--import", ".tiny"], "--import .tiny: "),
        (["--import", "../tiny"], "--import ../tiny: "),
        (["--list", "gpus"], "command line: argument --list: invalid choice: 'gpus'"),
        (["--describe", "nothing"], "--describe nothing: no such name. `train.py --list` shows what there is."),
        (["--describe", ""], "--describe : no such name."),
        (["--resume", "none.pth"], "none.pth: no such checkpoint. Name a .pth file of a run folder."),
        (["--resume", ""], ".: no such checkpoint."),
    ],
)
def test_wrong_arguments_are_answered_in_one_line(config_file, train_command, tmp_path, arguments, expected):
    if torch.cuda.is_available() and "-d" in arguments and "9" in arguments:
        pytest.skip("hiding all GPUs from this process would hide them from other tests")
    file = config_file()
    answer = train_command("-c", file, *TINY, *arguments)
    (line,) = answer.errors
    assert answer.status == 2
    assert line.startswith(expected)
    assert list(tmp_path.iterdir()) == [file]


def test_a_module_that_fails_is_named_with_its_reason(config_file, train_command, tmp_path, monkeypatch):
    (tmp_path / "failing_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    answer = train_command("-c", config_file(), "--import", "failing_module")
    assert answer.status == 2
    assert answer.errors[0].startswith("--import failing_module: ZeroDivisionError: division by zero.")
    assert "Traceback" not in answer.err
    answer = train_command("-c", config_file(), "--import", "failing_module", "--debug")
    assert "failing_module.py" in answer.err


def test_debug_adds_the_traceback_and_changes_nothing_else(train_command):
    plain, debug = train_command("-c", "none.json"), train_command("-c", "none.json", "--debug")
    assert (plain.status, plain.errors) == (debug.status, debug.errors)
    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err


def test_frozen_batch_norms_need_no_second_image(config_file, train_command):
    arch = {"type": PSP["type"], "args": {**PSP["args"], "freeze_bn": True}}
    answer = train_command("-c", config_file({"arch": arch, f"{LOADER}.batch_size": 1, "trainer.epochs": 1}))
    assert answer.status == 0, answer.err


def test_overrides_change_the_resolved_config_with_their_types(config_file, train_command, tmp_path):
    file = config_file()
    sets = ["trainer.epochs=1", "trainer.val=false", "trainer.monitor=off", "loss=DiceLoss", "name=1e3"]
    flags = [flag for text in sets for flag in ("--set", text)]
    answer = train_command("-c", file, *TINY, *flags, "--lr", "0.125", "--bs", "3", "-s", 'name="other"')
    assert answer.status == 0, answer.err
    (stored,) = (tmp_path / "saved" / "other").glob("2*/config.json")
    config = json.loads(stored.read_text())
    assert config["optimizer"]["args"]["lr"] == 0.125
    assert config[LOADER.partition(".")[0]]["args"]["batch_size"] == 3
    assert config["trainer"]["val"] is False
    assert config["loss"][0]["type"] == "DiceLoss"


# ---------------------------------------------------------------------------------------------- checkpoints


def test_the_checkpoint_of_a_third_party_dataset_says_what_to_import(train_command, finished_run):
    answer = train_command("--resume", finished_run / "last.pth")
    assert (answer.status, answer.errors) == (
        2,
        [f"{finished_run / 'last.pth'}: was made with components of your own. Add --import tests.tiny."],
    )


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("missing", "no such checkpoint"),
        ("text", "torch did not write it"),
        ("cut", "is damaged (its end is missing)"),
        ("flipped", "is damaged (checksum of"),
        ("foreign", "is not a Segwright checkpoint (no 'format', expected 1)"),
        ("hollow", "is not a whole Segwright checkpoint (lacks 'arch')"),
        ("code", "it holds Python objects, which could run code when loaded"),
    ],
)
@pytest.mark.parametrize("command", ["train", "train with config", "evaluate", "inference"])
def test_a_checkpoint_that_cannot_be_used_is_answered_in_one_line(
    request, config_file, finished_run, tmp_path, kind, what, command
):
    path, image = tmp_path / "x.pth", tmp_path / "x.png"
    image.write_bytes(b"")
    if kind in ("cut", "flipped"):
        data = bytearray((finished_run / "last.pth").read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data if kind == "flipped" else data[: len(data) // 3])
    elif kind == "text":
        path.write_text("hello")
    elif kind != "missing":
        content = {"foreign": {"state_dict": {}}, "hollow": {"format": 1}, "code": {"x": pytest.Class}}[kind]
        torch.save(content, path)
    before = sorted(tmp_path.iterdir())
    name, _, rest = command.partition(" ")
    arguments = {
        "train": ["--resume", path, *(["-c", config_file()] if rest else [])],
        "evaluate": ["-m", path],
        "inference": ["-m", path, "-i", image, "-o", tmp_path / "out"],
    }[name]
    answer = request.getfixturevalue(f"{name}_command")(*arguments, *TINY)
    (line,) = answer.errors
    assert answer.status == 2
    assert line.startswith(f"{path}: ")
    assert what in line
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "config.json"] == before


def test_what_would_change_a_runs_meaning_is_refused_by_name(config_file, train_command, finished_run):
    file = config_file({"seed": 1, "optimizer.args.lr": 0.5, "trainer.epochs": 9, f"{LOADER}.num_workers": 1})
    answer = train_command("-c", file, "--resume", finished_run / "last.pth", *TINY)
    assert answer.status == 2
    assert {line.partition(":")[0] for line in answer.errors} == {"seed", "optimizer.args.lr"}
    assert all('"init_from"' in line for line in answer.errors)


# ------------------------------------------------------------------------------------- questions and answers


def test_a_path_that_may_not_be_looked_at_is_one_line(train_command, inference_command, tmp_path):
    long = tmp_path / ("a" * 300)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    for answer in (train_command(long), inference_command("-m", long, "-i", tmp_path)):
        assert answer.status == 2
        assert answer.errors == [f"{long}: File name too long. Check the path and its permissions."]


def test_where_an_answer_may_not_be_written_it_is_not_computed(evaluate_command, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for flag in ("--output", "--report", "--canvas"):
        answer = evaluate_command("-m", "a.pth", flag, tmp_path / "x")
        assert answer.errors == [f"{flag} {tmp_path / 'x'}: cannot be written (permission denied). Name another file."]


def test_everything_registered_is_listed_and_described(train_command):
    listed = train_command("--list", *TINY)
    assert listed.status == 0
    for kind, registry in KINDS.items():
        if kind == "writers":
            continue
        alone = train_command("--list", kind, *TINY)
        assert alone.out.partition("\n\nEditors complete")[0] in listed.out  # the hint at the schema stands last
        for name in registry:
            assert f"\n  {name} " in alone.out
            described = train_command("--describe", name, *TINY)
            assert described.status == 0, name
            assert described.out.startswith(f"{name} (")


def test_a_description_names_public_weights_and_their_license(train_command):
    for name, weights in {"resnet18": "torchvision/resnet18", "xception65": "timm/xception65.tf_in1k"}.items():
        out = train_command("--describe", name).out
        assert f"public weights: {weights}, license: " in out
    assert "public weights: torchvision/resnet" in train_command("--describe", "PSPNet").out
    assert "public weights: " not in train_command("--describe", "UNet").out


def test_a_description_says_types_defaults_and_meanings(train_command):
    out = train_command("--describe", "Squares", *TINY).out
    assert "length: int = 11" in out
    assert "Number of pictures." in out
    assert "seed: " not in out


def test_the_schedule_of_a_run_can_be_drawn_without_training(config_file, train_command, tmp_path):
    file, picture = config_file(), tmp_path / "schedule.png"
    changes = ("-s", 'optimizer.no_decay=["bias"]', "-s", 'lr_scheduler={"type": "Poly", "args": {"warmup_epochs": 1}}')
    answer = train_command("-c", file, *TINY, *changes, "--draw-schedule", picture)
    assert answer.status == 0, answer.err
    # 11 images in batches of 2 are 5 steps in each of 3 epochs.
    highest, last = 0.05 * (1 - 5 / 15) ** 0.9, 0.05 * (1 - 14 / 15) ** 0.9
    assert answer.out.splitlines()[:2] == [
        f"decoder: {0.05 / 6:.3g} at first, {highest:.3g} at step 5, {last:.3g} at 14",
        f"backbone: {0.005 / 6:.3g} at first, {highest / 10:.3g} at step 5, {last / 10:.3g} at 14",
    ]
    assert cv2.imread(str(picture)).shape == (480, 960, 3)
    assert not (tmp_path / "saved").exists()
    gamma = 'lr_scheduler={"type": "ExponentialLR", "args": {"gamma": 0.5}}'
    torchs = train_command("-c", file, *TINY, "-s", gamma, "--draw-schedule", picture)
    assert torchs.out.startswith("decoder: 0.05 at first, 0.05 at step 0, 0.0125 at 14\n")
    plateau = train_command(
        "-c",
        file,
        *TINY,
        "-s",
        'lr_scheduler={"type": "ReduceLROnPlateau", "args": {"mode": "max"}}',
        "--draw-schedule",
        picture,
    )
    assert plateau.errors == ["lr_scheduler: ReduceLROnPlateau depends on results. --draw-schedule needs another type."]
    nowhere = train_command("-c", file, *TINY, "--draw-schedule", tmp_path / "no" / "folder.png")
    assert nowhere.status == 2


def test_check_says_what_one_step_needs_and_makes_no_folder(config_file, train_command, tmp_path):
    file = config_file()
    answer = train_command("-c", file, *TINY, "--check")
    assert answer.status == 0, answer.err
    for word in (
        "EncoderDecoder, 3 classes",
        "parameters",
        "[2, 3, ",
        "32x32",
        "of activations",
        "11 images",
        "3 images",
    ):
        assert word in answer.out
    assert list(tmp_path.iterdir()) == [file]


def test_the_documented_example_passes_check_of_the_config(config_file, train_command, tmp_path):
    """Up to its data, which are not here: what is missing is named by the folder that the config gives."""
    args = {
        "data_dir": str(tmp_path / "nowhere"),
        "batch_size": 4,
        "split": "train_aug",
        "crop_size": 96,
        "base_size": 99,
    }
    loader = {"type": "VOC", "args": {**args, "augment": True}}
    file = config_file({"train_loader": loader, "val_loader": None, "trainer.val": False, "trainer.monitor": "off"})
    answer = train_command("-c", file, "--check")
    (line,) = answer.errors
    assert answer.status == 2
    assert str(tmp_path / "nowhere") in line


def run_script(command, *arguments, cwd=ROOT, **environment):
    line = [*program(command), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


IMPORTS_OF = """
import sys
sys.path.insert(0, {root!r})
from importlib import import_module
run = import_module({prefix!r} + "utils.errors").run
for script, *argv in {calls!r}:
    try:
        status = run(import_module(script).main, argv)
    except SystemExit as end:
        status = end.code
    heavy = {{"torch", "numpy", "cv2", "PIL", "tqdm", "torchvision"}} & sys.modules.keys()
    print("ANSWER", script, status, sorted(heavy))
"""


def test_help_and_plain_mistakes_are_answered_without_importing_torch(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    scripts = ("train", "evaluate", "inference", "export")
    calls = [(script, flag) for script in scripts for flag in ("--help", "--nope")]
    calls += [("train", "-c", "none.json"), ("train", "-c", str(bad)), ("train", "--set", "x", "-c", str(bad))]
    calls += [("inference", "-m", "x", "-i", "x", "--save", "nothing")]
    home = train.__name__.removesuffix("train")  # in the wheel they have a package of their own
    calls = [(f"{home}{script}", *words) for script, *words in calls]
    code = IMPORTS_OF.format(root=str(ROOT), prefix=PREFIX, calls=calls)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert answers == [f"ANSWER {call[0]} {0 if '--help' in call else 2} []" for call in calls]
    assert "Traceback" not in done.stderr


def test_help_lists_every_flag_with_a_text(capsys):
    import train

    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    for flag in (
        "--config",
        "--resume",
        "--device",
        "--set",
        "--lr",
        "--batch-size",
        "--check",
        "--import",
        "--list",
        "--describe",
    ):
        assert flag in out


def test_scripts_work_from_any_folder_and_import_modules_from_there(config_file, tmp_path):
    config_file()
    shutil.copy(ROOT / "tests" / "tiny.py", tmp_path / "own_dataset.py")
    answer = run_script(train, "--import", "own_dataset", "--set", "trainer.epochs=1", cwd=tmp_path, PYTHONPATH=".")
    assert answer.returncode == 0, answer.stderr
    (best,) = (tmp_path / "saved" / "tiny").glob("2*/best_model.pth")
    answer = run_script(
        evaluate, "-m", best.relative_to(tmp_path), cwd=tmp_path, SEGWRIGHT_IMPORT="own_dataset", PYTHONPATH="."
    )
    assert answer.returncode == 0, answer.stderr
    assert "Squares val, 3 images" in answer.stdout


def test_a_stored_config_alone_repeats_the_run(finished_run, train_command, tmp_path):
    resolved = json.loads((finished_run / "config.json").read_text())
    resolved["trainer"] |= {"save_dir": str(tmp_path / "saved"), "log_dir": str(tmp_path / "logs")}
    (tmp_path / "c.json").write_text(json.dumps(resolved))
    answer = train_command("-c", tmp_path / "c.json", *TINY)
    assert answer.status == 0, answer.err
    (folder,) = (tmp_path / "saved" / "tiny").glob("2*")
    assert (folder / "metrics.jsonl").read_text() == (finished_run / "metrics.jsonl").read_text()
    one, other = (torch.load(path / "last.pth", weights_only=True) for path in (folder, finished_run))
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())


def test_two_runs_that_start_in_one_second_get_two_folders(tmp_path):
    from datetime import datetime

    from utils.run_folder import create

    now = datetime(2026, 1, 2, 3, 4, 5)
    folders = [create(tmp_path, "x", now) for _ in range(3)]
    assert [folder.name for folder in folders] == [
        "2026-01-02_03-04-05",
        "2026-01-02_03-04-05-2",
        "2026-01-02_03-04-05-3",
    ]


def test_a_save_dir_below_a_file_is_refused_by_its_key(config_file, train_command, tmp_path):
    (tmp_path / "file").write_text("")
    answer = train_command("-c", config_file({"trainer.save_dir": str(tmp_path / "file" / "x")}), *TINY)
    (line,) = answer.errors
    assert answer.status == 2
    assert line.startswith(f"trainer.save_dir: {tmp_path / 'file' / 'x' / 'tiny'} cannot be written (")


def test_the_start_of_a_run_says_what_is_trained(finished_run):
    log = (finished_run / "train.log").read_text()
    assert "M parameters" in log
    assert '"batch_size": 2' in log
    assert "batch norm sees 2 images at a time" in log
    assert tiny_config(finished_run)["name"] in log


def test_a_notebook_trains_by_the_command_and_gets_the_folder_of_the_run(config_file, tmp_path):
    args = train.parse(["-c", str(config_file({"trainer.epochs": 1})), *TINY])
    run_dir = train.train(args)
    assert run_dir.parent == tmp_path / "saved" / "tiny"
    assert (run_dir / "best_model.pth").exists()
