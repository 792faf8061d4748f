"""What benchmarks measured: files in benchmarks/results/, and the tables and figures that pages show of them.

    make bench                      # measure everything, and write the pages
    python -m benchmarks.results    # write the pages alone

A table stands between `<!-- results: NAME -->` and `<!-- end -->`, and shows results/NAME.json. A figure of a sentence
stands between `<!-- figure: NAME; ROW; COLUMN -->` and `<!-- end -->`; with `*` for ROW, it is the range of all rows.
Three places show several files: `targets` says where what benchmarks/targets.json aims at stands, `busy` how ratios
change while another process uses a core (files in results/busy/), and `gpu` has the tables of all files called gpu_*.
Tests compare the pages with the files.

A file that was filled in from an older table has `measured`, a sentence that says how; its environment is of then.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.files import atomic_write
from utils.run_folder import environment, git_commit

HOME = Path(__file__).resolve().parent
FOLDER = HOME / "results"
TO = "BENCHMARK_RESULTS"  # variable: the folder to write to instead
BUSY = "BENCHMARK_BUSY"  # variable: set while a process keeps a core busy
COMMIT = "BENCHMARK_COMMIT"  # variable: the commit, for code that was copied out of its repository
LATE = "BENCHMARK_LATE"  # variable: seconds since 1970 from when on nothing is repeated more than twice
PAGE = HOME.parent / "BENCHMARKS.md"
EXPLAINED = HOME.parent / "docs" / "explanation"
PAGES = (PAGE, HOME.parent / "README.md", EXPLAINED / "strip-wise-loss.md", EXPLAINED / "exact-resume.md")
STAMP = ("versions", "device_name", "num_threads", "git", "command")  # of what a run's environment holds
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
INLINE = re.compile(r"(<!-- figure: (\w+); ([^;]+); ([^;]*?) -->).*?(<!-- end -->)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", flags=re.DOTALL | re.MULTILINE)
SPEED = re.compile(r"\b\d[\d.,]*\s?(?:x|times|ms|s|seconds|kB|MB|MiB|GB|GiB|images/s)(?![\w/])")


class Figure(NamedTuple):
    """What was measured several times.

    Args:
        what: Name of the row.
        unit: "x" for a ratio.
        values: One of each round.
        column: Of the table; where no figure of a file has one, each has a line of its own.
    """

    what: str
    unit: str
    values: Sequence[float]
    column: str = ""


# Measuring -----------------------------------------------------------------------------------------------------------


def by_turns(
    cases: Mapping[str, Callable[[], float]], rounds: int, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Call the cases in turn, `rounds` times; once `seconds` have passed or it is late no more, but never just once.

    Args:
        cases: Each measures something and returns it.
        rounds: How often each is called.
        seconds: By the clock.
    """
    start = time.perf_counter()
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        if number >= 2 and (late() or time.perf_counter() - start > seconds):
            break
        for name, case in cases.items():
            found[name].append(case())
    return found


def late() -> bool:
    """Whether most of the time for this program is over, so that the rest of it had better be short."""
    return time.time() > float(os.environ.get(LATE, "inf"))


def ratios(times: Sequence[float], to: Sequence[float]) -> list[float]:
    """How many times as long something took as something else, round by round."""
    return [a / b for a, b in zip(times, to, strict=True)]


def beside(what: str, times: Mapping[str, Sequence[float]], unit: str = "ms", first: str = "ours") -> list[Figure]:
    """Make a row of a table: what `first` took, and how many times as long the others did in the same rounds."""
    found = [Figure(what, unit, times[first], first)]
    others = [who for who in times if who != first]
    return found + [Figure(what, "x", ratios(times[who], times[first]), who) for who in others]


def peers(*packages: str, **checkouts: Path | None) -> dict[str, str]:
    """Name who else took part: versions of the packages that are there, commits of the checkouts that were given."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name, folder in checkouts.items():
        if folder is not None:
            command = ["git", "-C", str(folder), "rev-parse", "--short=7", "HEAD"]
            answer = subprocess.run(command, capture_output=True, text=True)
            found[name] = answer.stdout.strip() or "of unknown commit"
    return found


# Files ---------------------------------------------------------------------------------------------------------------


def summary(figure: Figure) -> dict[str, Any]:
    """Return median and spread of a figure, as plain JSON; to four digits."""
    low, middle, high = min(figure.values), statistics.median(figure.values), max(figure.values)
    rounded = {name: float(f"{value:.4g}") for name, value in (("median", middle), ("low", low), ("high", high))}
    place = {"column": figure.column} if figure.column else {}
    return {"what": figure.what, **place, "unit": figure.unit, **rounded, "runs": len(figure.values)}


def show(figures: list[Figure]) -> list[Figure]:
    """Print figures while others are still being measured; returns them."""
    for figure in figures:
        name = f"{figure.what}: {figure.column}" if figure.column else figure.what
        print(f"{name}: {cell(summary(figure), figure.unit)}", flush=True)
    return figures


def write(
    name: str,
    title: str,
    figures: Sequence[Figure],
    *,
    device: str = "cpu",
    peers: Mapping[str, str] | None = None,
    failed: Mapping[str, str] | None = None,
    made_by: str | None = None,
    runs: Sequence[Mapping[str, Any]] = (),
    folder: Path | None = None,
) -> Path:
    """Write NAME.json: median and spread of each figure, the commit, and the machine with its load at the end.

    Args:
        name: Of the benchmark; letters, digits and ``_``.
        title: What was measured, for the head of the table.
        figures: In the order of the table.
        device: What was computed on.
        peers: Who else took part, and in which version.
        failed: Parts that did not come to an end, and why.
        made_by: Commit of the code that was measured, or several; None for that which is there now.
        runs: Trainings behind the figures, for programs that do not make them twice.
        folder: Where results lie; None for benchmarks/results/ or where ``BENCHMARK_RESULTS`` says.
    """
    made = environment(device, seed=0)
    stamp = {key: made[key] for key in STAMP}
    stamp["git"] = made_by or commit() or os.environ.get(COMMIT)
    stamp["command"] = ["DIR" if os.path.isabs(word) else word for word in stamp["command"]]
    if stamp["command"][0] == "__main__.py":  # of a folder, whose name says more
        stamp["command"][0] = Path(sys.argv[0]).parent.name
    stamp |= {"device": device, "processor": processor(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    stamp |= {"busy": bool(os.environ.get(BUSY)), "date": date.today().isoformat()}
    content = {"title": title, "figures": [summary(figure) for figure in figures]}
    content |= {"failed": dict(failed)} if failed else {}
    content |= {"runs": list(runs)} if runs else {}
    content |= {"peers": dict(peers or {}), "environment": stamp}
    path = (folder or folder_to_write()) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of results, whole or not at all: whoever writes it may be killed when its time is over."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def commit(repository: Path = HOME.parent) -> str | None:
    """Return the commit of the code, with ``+`` where it was changed; None outside a repository.

    Results and the pages that show them are no code: of several benchmarks, the first would change it for the others.
    """
    return git_commit(repository, ["benchmarks/results", *(str(page.relative_to(HOME.parent)) for page in PAGES)])


def processor() -> str:
    """Return the processor's name, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def folder_to_write() -> Path:
    """Return benchmarks/results/, or the folder that ``BENCHMARK_RESULTS`` names."""
    return Path(os.environ.get(TO) or FOLDER)


def read(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Read NAME.json.

    Raises:
        FileNotFoundError: It is not there.
    """
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return content


def find(name: str, row: str, column: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Return the figures of a column of NAME.json; `*` for `row` means all that there are.

    Raises:
        FileNotFoundError: There is no such file.
        LookupError: It has no such figure.
    """
    results = read(name, folder)
    chosen = [each for each in results["figures"] if each.get("column", "") == column and row in ("*", each["what"])]
    if not chosen:
        who = ", ".join(results.get("peers", {})) or "nobody else"
        raise LookupError(f"{name}.json: has no figure '{row}; {column}' ({who} took part). Measure it, or drop it.")
    return chosen


# Pages ---------------------------------------------------------------------------------------------------------------


def short(value: float) -> str:
    """Show three digits of a number, and never an exponent."""
    return f"{float(f'{value:.3g}'):.12g}"


def cell(figure: Mapping[str, Any], unit: str = "") -> str:
    """Show a median and, where there were several rounds, its spread."""
    spread = f" ({short(figure['low'])} to {short(figure['high'])})" if figure["low"] < figure["high"] else ""
    return f"{short(figure['median'])}{unit and ' '}{unit}{spread}"


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(results: Mapping[str, Any]) -> str:
    """Return the table of what `write` wrote, in Markdown, with a line of where it was measured."""
    figures = results["figures"]
    lines = crossed(results["title"], figures) if any("column" in each for each in figures) else listed(results)
    lines += [line([f"**failed**: {part}", why]) for part, why in results.get("failed", {}).items()]
    return "\n".join([*lines, "", stamp_line(results)]) + "\n"


def listed(results: Mapping[str, Any]) -> list[str]:
    """Lines of a table that has a line for each figure."""
    lines = [line([results["title"], "median", "lowest to highest", "rounds"]), line(["---"] * 4)]
    for row in results["figures"]:
        spread = f"{row['low']:g} to {row['high']:g}" if row["low"] < row["high"] else ""
        lines.append(line([row["what"], f"{row['median']:g} {row['unit']}", spread, str(row["runs"] or "")]))
    return lines


def crossed(title: str, figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a table that has columns; cells are medians with their spread."""
    units: dict[str, set[str]] = {}
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for each in figures:
        units.setdefault(each["column"], set()).add(each["unit"])
        rows.setdefault(each["what"], {})[each["column"]] = each
    alike = {column: next(iter(found)) for column, found in units.items() if len(found) == 1}
    heads = [f"{column}, {alike[column]}" if alike.get(column) else column for column in units]
    noted = any("note" in each for each in figures)  # by hand: how and when a row was measured
    lines = [line([title, *heads, *["how"] * noted]), line(["---"] * (1 + len(heads) + noted))]
    for what, row in rows.items():
        cells = []
        for column in units:
            unit = "" if column in alike or column not in row else row[column]["unit"]
            cells.append(cell(row[column], unit) if column in row else "")
        notes = [each.get("note", "") for each in row.values()][:1] if noted else []
        lines.append(line([what, *cells, *notes]))
    return lines


def stamp_line(results: Mapping[str, Any]) -> str:
    """Say where figures come from: rounds, commit, machine, versions, and who else took part."""
    stamp = results["environment"]
    runs = sorted({each["runs"] for each in results["figures"] if each.get("runs")})
    said = [f"Medians (lowest to highest) of {runs[0]} to {runs[-1]} rounds"] if len(runs) > 1 else []
    said += [f"Medians (lowest to highest) of {runs[0]} rounds"] if len(runs) == 1 else []
    said += [f"commit {stamp['git']}" + (f" of {stamp['date']}" if "date" in stamp else "")]
    said += [", ".join(f"{name} {version}" for name, version in stamp["versions"].items())]
    if "cores" in stamp:
        device = stamp["device_name"] if stamp.get("device", "cpu") != "cpu" else stamp.get("processor", "")
        machine = f"{stamp['cores']} cores, {stamp['num_threads']} of torch's threads, load {stamp['load']:g}"
        kept_busy = "a core kept busy" if stamp.get("busy") else ""
        said.append(", ".join(part for part in (device, machine, kept_busy) if part))
    if results.get("peers"):
        said.append("others: " + ", ".join(f"{name} {version}" for name, version in results["peers"].items()))
    text = "; ".join(said)
    return text[0].upper() + text[1:] + "." + (f" {results['measured']}" if "measured" in results else "")


def targets(folder: Path = FOLDER) -> list[tuple[str, str, str, str]]:
    """Return what is aimed at, the limit, what was measured, and "met", "missed: WHY" or "not measured" for each."""
    found = []
    for each in json.loads((HOME / "targets.json").read_text(encoding="utf-8")):
        most = "at_most" in each
        limit = each["at_most"] if most else each["at_least"]
        aim = f"at {'most' if most else 'least'} {limit:g} {each['unit']}"
        try:
            (figure,) = find(*each["figure"].split("; "), folder)
        except (FileNotFoundError, LookupError):
            found.append((each["target"], aim, "", "not measured"))
            continue
        met = figure["median"] <= limit if most else figure["median"] >= limit
        verdict = "met" if met else f"**missed**: {each['why']}" if "why" in each else "**missed**"
        found.append((each["target"], aim, cell(figure, figure["unit"]), verdict))
    return found


def busy(folder: Path = FOLDER) -> list[str]:
    """Lines of a table of all ratios that were measured both on a quiet machine and with a core kept busy."""
    lines = [line(["ratio, ours = 1", "quiet", "a core kept busy"]), line(["---"] * 3)]
    for path in sorted((folder / "busy").glob("*.json")):
        for each in read(path.stem, folder / "busy")["figures"]:
            if each["unit"] != "x":
                continue
            try:
                (quiet,) = find(path.stem, each["what"], each.get("column", ""), folder)
            except (FileNotFoundError, LookupError):
                continue
            name = f"{each['what']}: {each['column']}" if each.get("column") else each["what"]
            lines.append(line([f"{path.stem}, {name}", cell(quiet), cell(each)]))
    return lines if len(lines) > 2 else ["Not measured."]


def page(text: str, folder: Path = FOLDER) -> str:
    """Return the page `text` with the tables and figures of all results in their places.

    Raises:
        FileNotFoundError: A place has no results.
        LookupError: They have no such figure.
    """

    def block(match: re.Match[str]) -> str:
        if match[2] == "targets":
            heads = line(["target", "aimed at", "measured", "stands"])
            inside = "\n".join([heads, line(["---"] * 4), *map(line, targets(folder))]) + "\n"
        elif match[2] == "busy":
            inside = "\n".join(busy(folder)) + "\n"
        elif match[2] == "gpu":
            tables = [table(read(path.stem, folder)) for path in sorted(folder.glob("gpu_*.json"))]
            inside = "\n".join(tables) or "Not measured yet: no GPU was at hand.\n"
        else:
            inside = table(read(match[2], folder))
        return f"{match[1]}{inside}{match[3]}"

    def inline(match: re.Match[str]) -> str:
        found = find(match[2], match[3], match[4], folder)
        shown = sorted({each["median"] for each in found})
        unit = "times" if found[0]["unit"] == "x" else found[0]["unit"]
        span = [short(shown[0]), short(shown[-1])] if len(shown) > 1 else [short(shown[0])]
        return f"{match[1]}{' to '.join(span)} {unit}{match[5]}"

    return INLINE.sub(inline, BLOCK.sub(block, text))


def unbacked(text: str, *, tables: bool = False) -> list[str]:
    """Return the figures of time, size and speed in a page that no file backs.

    Args:
        text: The page.
        tables: Whether it may have no table but those of results.
    """
    prose = CODE.sub("", INLINE.sub("", BLOCK.sub("", text)))
    own = [row for row in prose.splitlines() if row.startswith("|")] if tables else []
    return own + SPEED.findall(prose)


def main() -> None:
    for path in PAGES:
        try:
            path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
        except LookupError as error:
            print(f"{path.name}: left as it is: {error.args[0]}")
    for target, aim, measured, verdict in targets():
        print(f"{target}: {aim}; {measured or '-'}; {verdict.replace('**', '')}")


if __name__ == "__main__":
    main()
