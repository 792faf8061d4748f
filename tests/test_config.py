import itertools
import json
import os

import pytest

from utils.config import (
    differences,
    dump_json,
    fingerprint,
    load_config,
    merge,
    override,
    parse_json,
    read_json,
    read_with_parents,
)
from utils.errors import ConfigError


def problem(call, *arguments):
    """The one line that `call` complains with."""
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


# ------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1} // end', {"a": 1}),
        ('/* a\n b */ {"a": /* x */ 1}', {"a": 1}),
        ('{"a": "http://x.y/*z*/"}', {"a": "http://x.y/*z*/"}),
        ('{"a": "\\"//\\\\"} // "', {"a": '"//\\'}),
        ('{"a": [1, 2,], "b": {"c": 3,},}', {"a": [1, 2], "b": {"c": 3}}),
        ('{"a": 1, // last\n}', {"a": 1}),
        ('{"a": "x,}", "b": ",]"}', {"a": "x,}", "b": ",]"}),
        ('{"a": "NaN 1e999 Infinity"}', {"a": "NaN 1e999 Infinity"}),
        ('{"a": -1.5e-3, "b": 1E2, "c": 0}', {"a": -1.5e-3, "b": 100.0, "c": 0}),
        ('{"a": 1e-999}', {"a": 0.0}),
        ('{"ä": "\\u00e9\\ud83d\\ude00"}', {"ä": "é😀"}),
        ("[]", []),
        ("3", 3),
    ],
)
def test_json_may_hold_comments_and_trailing_commas(text, value):
    assert parse_json(text) == value


@pytest.mark.parametrize("text", ["{,}", "[,]", '{"a": ,}', "[1,,]", "[1,,2]", "/* open", "{'a': 1}", '{"a": 01}', "}"])
def test_what_is_no_json_is_refused_even_near_a_comma(text):
    with pytest.raises(json.JSONDecodeError):
        parse_json(text)


def test_places_in_errors_survive_comments_and_commas(tmp_path):
    file = tmp_path / "c.json"
    file.write_text('{ // é comment\n  "a": [1,], /* two\nlines */ "b" 3}')
    line = problem(read_json, file)
    assert line == f"{file}: line 3 column 14: Expecting ':' delimiter. Remove it or add what is missing there."


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"[1]", "holds list, not an object"),
        (b"null", "holds NoneType, not an object"),
        (b'{"a": 1, "a": 2}', "key 'a' stands twice"),
        (b'{"x": [{"b": 1, "c": 0, "b": 1}]}', "key 'b' stands twice"),
        (b'{\n"a": NaN}', "line 2: a: NaN is no number to train with. Give a finite number."),
        (b'{"a": [Infinity]}', "line 1: a: Infinity is no number"),
        (b'{"a": -Infinity}', "line 1: a: -Infinity is no number"),
        (b'{\n\n"a": 1e999}', "line 3: a: 1e999 is no number"),
        (b'{"a": -1E+400}', "line 1: a: -1E+400 is no number"),
        (b'{"a": ' + b"9" * 6000 + b"}", "line 1: a: 9999999999... has 6000 digits. Give a smaller number."),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        ('{"a": 1}'.encode("utf-16"), "is not UTF-8 text"),
        ('{"a": 1}'.encode("utf-16-le"), "is not UTF-8 text"),
        (b"\x80\x02}q\x00.", "is not UTF-8 text"),
        (b"PK\x03\x04\x00\x00", "is not UTF-8 text"),
        (b'{"a": "tab\there"}', "line 1 column 11: Invalid control character."),
        (b'{"a": "open}', "line 1 column 7: Unterminated string starting."),
        (b'{"a": 1} x', "line 1 column 10: Extra data."),
        (b" " * (1 << 20) + b"{}", "larger than 1024 KiB"),
    ],
)
def test_a_file_that_is_no_config_is_answered_in_one_line_that_names_it(tmp_path, content, expected):
    file = tmp_path / "c.json"
    file.write_bytes(content)
    line = problem(read_json, file)
    assert line.startswith(f"{file}: ")
    assert expected in line
    assert line.endswith(".")
    assert line.count(str(file)) == 1


def test_a_file_that_cannot_be_opened_is_answered_in_one_line(tmp_path):
    assert problem(read_json, tmp_path / "no.json").startswith(f"{tmp_path / 'no.json'}: no such file.")
    assert problem(read_json, tmp_path) == f"{tmp_path}: is a folder. Name a JSON config file."
    (tmp_path / "loop").symlink_to("loop")
    assert problem(read_json, tmp_path / "loop").startswith(f"{tmp_path / 'loop'}: ")
    assert "NUL" in problem(read_json, tmp_path / "a\0b").upper()
    (tmp_path / "file").write_text("{}")
    assert problem(read_json, tmp_path / "file" / "c.json").startswith(f"{tmp_path / 'file' / 'c.json'}: ")


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "c.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "c.json") == {"a": 1}


# -------------------------------------------------------------------------------------------------- extends


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{next(iter(files))}.json"


def test_a_config_lays_itself_over_the_files_it_extends(tmp_path):
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", grand={"a": 1, "b": {"x": 1, "y": 1}, "l": [1, 2]}, one={"extends": "grand.json", "c": 1})
    write(tmp_path / "base", two={"c": 2, "b": {"y": 2}})
    file = write(tmp_path, c={"extends": ["base/one.json", "base/two.json"], "b": {"z": 3}, "l": [3]})
    assert read_with_parents(file) == {"a": 1, "b": {"x": 1, "y": 2, "z": 3}, "c": 2, "l": [3]}


def test_a_file_may_stand_twice_among_the_parents_as_long_as_there_is_no_circle(tmp_path):
    file = write(tmp_path, c={"extends": ["a.json", "b.json"]}, a={"extends": "x.json"}, b={"extends": "x.json"}, x={})
    assert read_with_parents(file) == {}


def test_a_missing_file_to_extend_is_named_as_what_it_is(tmp_path):
    file = write(tmp_path, c={"extends": "nowhere.json"})
    said = problem(read_with_parents, file)
    assert said.startswith(f"{file}: extends: there is no file {tmp_path / 'nowhere.json'}, nor a preset")


def test_circles_of_extends_are_refused(tmp_path):
    file = write(tmp_path, a={"extends": "b.json"}, b={"extends": "./a.json"})
    assert "extends itself" in problem(read_with_parents, file)


def test_eight_levels_of_extends_are_enough(tmp_path):
    names = [f"f{i}" for i in range(9)]
    files = {name: {"extends": f"{after}.json"} for name, after in itertools.pairwise(names)}
    write(tmp_path, **files, f8={"end": 1})
    assert read_with_parents(tmp_path / "f1.json") == {"end": 1}
    assert problem(read_with_parents, tmp_path / "f0.json").startswith(f"{tmp_path / 'f8.json'}: ")


@pytest.mark.parametrize("value", [5, None, {"a": 1}, ["x.json", 3]])
def test_extends_takes_paths_only(tmp_path, value):
    assert "expected a path or a list of paths" in problem(read_with_parents, write(tmp_path, c={"extends": value}))


@pytest.mark.parametrize("parent", ["gone.json", "", "a\0b"])
def test_a_parent_that_cannot_be_read_is_named(tmp_path, parent):
    problem(read_with_parents, write(tmp_path, c={"extends": parent}))


def test_the_key_by_which_editors_find_the_schema_is_no_part_of_the_config(tmp_path):
    assert read_with_parents(write(tmp_path, c={"$schema": "../config.schema.json", "a": 1})) == {"a": 1}


@pytest.mark.parametrize(
    ("parent", "child", "merged"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"m": {"type": "A", "args": {"x": 1}}}, {"m": {"type": "A", "args": {"y": 2}}}, "keep"),
        ({"m": {"args": {"x": 1}}}, {"m": {"type": "A", "args": {"y": 2}}}, "keep"),
        ({"m": {"type": "A", "args": {"x": 1}}}, {"m": {"args": {"y": 2}}}, "keep"),
        ({"m": {"type": "B", "args": {"x": 1}}}, {"m": {"type": "A"}}, {"m": {"type": "A"}}),
        ({"m": {"type": "B", "args": {"x": 1}}}, {"m": {"type": "A", "args": {}}}, {"m": {"type": "A", "args": {}}}),
        ({"m": {"type": "B", "args": {"x": 1}}}, {"m": "A"}, {"m": "A"}),
        ({"m": "A"}, {"m": {"args": {"x": 1}}}, {"m": {"type": "A", "args": {"x": 1}}}),
        ({"o": "Adam"}, {"o": {"differential_lr": True}}, {"o": {"type": "Adam", "differential_lr": True}}),
        ({"o": {"type": "A", "args": {}, "factor": 2}}, {"o": {"type": "B"}}, {"o": {"type": "B", "factor": 2}}),
    ],
)
def test_objects_merge_key_by_key_and_a_new_type_drops_the_old_args(parent, child, merged):
    before = json.dumps([parent, child])
    if merged == "keep":
        args = {**parent["m"]["args"], **child["m"]["args"]}
        merged = {"m": {"type": "A", "args": args}}
    assert merge(parent, child) == merged
    assert json.dumps([parent, child]) == before


# ---------------------------------------------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["a.b=2"], {"a": {"b": 2, "c": 1}}),
        (["a.b=2", "a.b=3"], {"a": {"b": 3, "c": 1}}),
        (["a.b=true"], {"a": {"b": True, "c": 1}}),
        (["a.b=null"], {"a": {"b": None, "c": 1}}),
        (["a.b=1.5e-3"], {"a": {"b": 0.0015, "c": 1}}),
        (["a.b=resnet18"], {"a": {"b": "resnet18", "c": 1}}),
        (['a.b="80"'], {"a": {"b": "80", "c": 1}}),
        (["a.b=[1, 2]"], {"a": {"b": [1, 2], "c": 1}}),
        (["a.b=x=y"], {"a": {"b": "x=y", "c": 1}}),
        (["a.b="], {"a": {"b": "", "c": 1}}),
        (["a.b=/data/Infinity"], {"a": {"b": "/data/Infinity", "c": 1}}),
        (["a.b=run-1e999"], {"a": {"b": "run-1e999", "c": 1}}),
        (["d.e.f=1"], {"a": {"b": 1, "c": 1}, "d": {"e": {"f": 1}}}),
        (['a={"b": 5}'], {"a": {"b": 5, "c": 1}}),
    ],
)
def test_set_takes_json_and_else_text(sets, expected):
    assert override({"a": {"b": 1, "c": 1}}, sets) == expected


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["x"], "expected KEY=VALUE"),
        (["=1"], "expected KEY=VALUE"),
        ([""], "expected KEY=VALUE"),
        (["a..b=1"], "expected KEY=VALUE"),
        ([".a=1"], "expected KEY=VALUE"),
        (["a=NaN"], "NaN is no number"),
        (["a=1e999"], "1e999 is no number"),
        (["a=" + "9" * 6000], "6000 digits"),
        (['a={"b": 1, "b": 2}'], "key 'b' stands twice"),
        (["a=1", "a.b=2"], "an earlier --set gave 'a' a plain value"),
        (["a=" + "[" * 200_000], "nested too deeply"),
    ],
)
def test_a_set_that_cannot_be_meant_is_named(sets, expected):
    line = problem(override, {}, sets)
    assert line.startswith("--set ")
    assert expected in line


def test_set_comes_after_extends(tmp_path):
    file = write(tmp_path, c={"extends": "p.json", "a": 2}, p={"a": 1, "b": 1})
    assert load_config(file, ["a=3"]) == {"a": 3, "b": 1}


def test_a_new_type_by_set_drops_the_args_of_the_old_one_but_not_its_own():
    config = {"optimizer": {"type": "SGD", "args": {"momentum": 0.9}}}
    changed = override(config, ["optimizer.type=Adam", "optimizer.args.lr=0.5"])
    assert changed == {"optimizer": {"type": "Adam", "args": {"lr": 0.5}}}


# ---------------------------------------------------------------------------------------------------- files


def test_what_dump_json_writes_is_read_back():
    value = {"a": [1, 2.5, None, True], "b": {"c": ["x, y", "] [", "//"], "d": []}, "e": [[1, 2], [3, 4]], "é": "\n"}
    assert parse_json(dump_json(value)) == value
    assert json.loads(dump_json(value)) == value
    assert "[1, 2]" in dump_json(value)


def test_differences_name_every_key_that_differs_and_no_other():
    old = {"a": 1, "b": {"c": [1], "d": 2}, "gone": {"x": 1}, "same": {"y": 0}}
    new = {"a": 1, "b": {"c": [2], "d": 2, "e": 3}, "same": {"y": 0}}
    assert differences(old, new) == {"b.c": ([1], [2]), "b.e": (None, 3), "gone": ({"x": 1}, None)}
    assert differences(new, new) == {}


def test_a_fingerprint_depends_on_values_and_not_on_order():
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_config_may_come_through_a_pipe(tmp_path):
    reader, writer = os.pipe()
    os.write(writer, b'{"a": 1}')
    os.close(writer)
    try:
        assert read_json(type(tmp_path)(f"/dev/fd/{reader}")) == {"a": 1}
    finally:
        os.close(reader)


def test_differences_name_what_differs_inside_of_lists_of_objects():
    old = {"a": [{"x": 1, "y": [1, 2]}, {"x": 2}], "b": [1, 2], "c": [{}], "d": 1}
    new = {"a": [{"x": 1, "y": [1, 3]}, {"x": 3}], "b": [2, 1], "c": [{}, {}], "e": 1}
    assert differences(old, new) == {
        "a[0].y": ([1, 2], [1, 3]),
        "a[1].x": (2, 3),
        "b": ([1, 2], [2, 1]),
        "c": ([{}], [{}, {}]),
        "d": (1, None),
        "e": (None, 1),
    }
    assert differences(old, old) == {}
