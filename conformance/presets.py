"""Runs every preset of rules, and DeepLIFT, on a network of every family, and says where relevance does not add up.

    pip install -r conformance/requirements.txt
    cargo build --release
    python conformance/presets.py                      # the first network of each family of PyTorch's
    python conformance/presets.py --only vit swin      # those whose names contain a word
    python conformance/presets.py --table              # nothing but conformance/PRESETS.md, from the results

Run by hand. Networks and inputs are those of sweep.py, and stay where it keeps them; what came out stays in
target/sweep/presets.json. Of each map, this is told:

    adds up    the relevance of the input is the target's value less what biases took, within 1 %
    runs       the preset is a gradient, which adds up to nothing in particular
    rounding   it adds up in float64, and in float32 it does not: relevance of both signs grew large and cancels
    float64    it exceeds what float32 can hold, and the program says so; in float64 it is a map
    lost n %   it is off by this share, all of which the rules themselves lose: where no contribution has the sign that the
               rule follows, or a stabilizer outweighs them
    off n %    it is off by this share, in float64 as well, for no such reason
    nothing    the map is zero everywhere, or has values that are no numbers
    refused    the program says why it cannot be done
    a letter   the program warns: the list below the table says of what
"""

import argparse
import collections
import json
import pathlib
import re
import string
import subprocess
import sys
import tempfile
import warnings

import networks
import numpy as np
import sweep
import truth

PRESETS = sorted(file.stem for file in (truth.ROOT / "crates/ouzel/src/rules/presets").glob("*.toml"))
WAYS = {name: ["--method", "lrp", "--rules", name] for name in PRESETS if name != "common"} | {"deeplift": ["--method", "deeplift"]}
BOUNDS = "--input-range=-5,5"  # of the inputs, which are normally distributed; for the box rule
PATTERNS = 4  # inputs that patterns are estimated from
NUMBERS = re.compile(r"\b\d+\b|(?<=_)\d+")  # of which warnings differ that are alike; not that of float64
FILE = sweep.FOLDER / "presets.json"
TABLE = truth.ROOT / "conformance" / "PRESETS.md"


def report(options, model, x, way, patterns, more=()):
    """What the program says of one map: its report and the map, or why there is none."""
    more = [*more, BOUNDS] if "lrp" in WAYS[way] else [*more]
    more += ["--patterns", patterns] if way.startswith("pattern") else []
    with tempfile.TemporaryDirectory() as folder:
        files = ["--json", f"{folder}/report.json", "--raw-npy", f"{folder}/raw.npy", "--npy", f"{folder}/map.npy"]
        command = [options.ouzel, "explain", str(model), x, *WAYS[way], *more, *files]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit)
        except subprocess.TimeoutExpired:
            return None, ("not done", [f"not done after {options.limit} seconds"])
        if not pathlib.Path(f"{folder}/report.json").exists():
            said = re.search(r"^error: (?:[^ ]*\.npy: )?(.*)$", done.stderr, re.MULTILINE)
            return None, ("refused", [NUMBERS.sub("n", said[1]) if said else f"exit code {done.returncode}"])
        found = json.loads(pathlib.Path(f"{folder}/report.json").read_text())
        return found[0] if isinstance(found, list) else found, np.load(f"{folder}/raw.npy")


def accounted(sums):
    """Whether rules lose all that is missing."""
    lost, *others = (sums[name] or 0 for name in ("lost", "expected", "found", "absorbed"))
    return abs(sums["gap"] - lost) <= sums["tolerance"] * max(map(abs, others))


def one(options, model, x, way, patterns):
    """What comes of one preset: a word and warnings."""
    found, raw = report(options, model, x, way, patterns)
    if found is None and "float64" in raw[1][0]:
        found, raw = report(options, model, x, way, patterns, ["--precision", "f64"])
        return ("float64", [NUMBERS.sub("n", warning) for warning in found["warnings"]]) if found else raw
    if found is None:
        return raw
    warned = [NUMBERS.sub("n", warning) for warning in found["warnings"]]
    if not np.isfinite(raw).all() or not raw.any():
        return "nothing", warned
    sums = found["completeness"]
    if sums is None:
        return "runs", warned
    if sums["holds"]:
        return "adds up", warned
    if not accounted(sums):
        found, raw = report(options, model, x, way, patterns, ["--precision", "f64"])
        if found is None:
            return raw
        sums = found["completeness"]
        if sums["holds"]:
            return "rounding", warned
    return f"{'lost' if accounted(sums) else 'off'} {100 * sums['relative_gap']:.2g} %", warned


def family(options, row, known):
    """What comes of every preset for a network; what is known already is not asked for again."""
    subject = sweep.Torch(row)
    model = None
    for exporter in subject.EXPORTERS:
        try:
            subject.build()
            model, _ = subject.export(exporter)
            break
        except sweep.Unavailable as error:
            reason = str(error)
    if model is None:
        return {"unavailable": reason}
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", np.asarray(subject.inputs[0]))
        patterns = pathlib.Path(folder, "patterns")
        patterns.mkdir()
        for index in range(PATTERNS):
            np.save(patterns / f"{index}.npy", np.asarray(subject.inputs[1 + index]))
        return {way: known.get(way) or one(options, model, f"{folder}/x.npy", way, str(patterns)) for way in WAYS}


def table(results):
    """The results as a table, and what the letters in it say."""
    letters = collections.OrderedDict()
    names = [*string.ascii_lowercase, *(a + b for a in string.ascii_lowercase for b in string.ascii_lowercase)]
    lines = ["# Presets on networks of every family", "", "Written by `conformance/presets.py`, which says what the words are.", ""]
    lines += ["| family | network | " + " | ".join(f"`{way}`" for way in WAYS) + " |", "|" + " --- |" * (2 + len(WAYS))]
    for row in rows():
        result = results.get(networks.title(row))
        if result is None or "unavailable" in result:
            continue
        cells = []
        for way in WAYS:
            word, warned = result.get(way, ["", []])
            marks = [letters.setdefault(warning, names[len(letters)]) for warning in warned]
            cells.append(" ".join([word, *marks]))
        lines.append(f"| {row.family} | `{row.name}` | " + " | ".join(cells) + " |")
    lines += ["", *(f" - {letter}: {warning}" for warning, letter in letters.items())]
    return "\n".join(lines) + "\n"


def rows():
    """The first network of each family."""
    return list({row.family: row for row in reversed(networks.TORCH)}.values())[::-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="networks that contain one of these words")
    parser.add_argument("--again", action="store_true", help="run what was run before")
    parser.add_argument("--limit", type=float, default=120, help="seconds for a map (default: %(default)s)")
    parser.add_argument("--ouzel", default=str(truth.ROOT / "target" / "release" / "ouzel"), help="the program")
    parser.add_argument("--table", action="store_true", help="write the table, run nothing")
    options = parser.parse_args()
    sweep.FOLDER.mkdir(parents=True, exist_ok=True)
    results = json.loads(FILE.read_text()) if FILE.exists() else {}
    warnings.simplefilter("ignore")
    silent = False
    for row in [] if options.table else rows():
        title = networks.title(row)
        known = {} if options.again else results.get(title, {})
        if all(way in known for way in WAYS) or not any(word in f"{row.family} {title}" for word in options.only):
            continue
        results[title] = result = family(options, row, known)
        FILE.write_text(json.dumps(results, indent=1))
        words = collections.Counter(word for word, _ in result.values()) if "unavailable" not in result else result
        print(title, dict(words), flush=True)
        silent |= any(word in ("nothing", "refused", "not done") for word in words)
    TABLE.write_text(table(results))
    sys.exit(silent)


if __name__ == "__main__":
    main()
