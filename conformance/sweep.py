"""Goes through the networks that people export, and compares Ouzel with ONNX Runtime and with the framework of each.

    pip install -r conformance/requirements-sweep.txt
    cargo build --release
    python conformance/sweep.py                            # all of PyTorch's networks, with both of its exporters
    python conformance/sweep.py --only vit swin --again    # those whose names contain a word, once more
    python conformance/sweep.py --again failed             # those that did not pass
    python conformance/sweep.py --table                    # nothing but conformance/SWEEP.md, from the results

Run by hand: it takes hours. The networks are those of networks.py, with random weights as truth.py makes them. What is
exported and computed by the framework stays in target/sweep, and so do results, so that a sweep goes on where it ended.
For each network and exporter:

    forward   every output of the file that the exporter writes by default, against ONNX Runtime: the relative L2
              distance is at most 1e-5, or 4 x ONNX Runtime's own distance from the framework in float64
    float64   check (a) of truth.py, of a file in which batch normalization has not been folded into convolutions
    float32   check (b) of truth.py, of the file that the exporter writes by default

A network at a time runs in a process of its own, which ends after --limit seconds.
"""

import argparse
import importlib
import json
import multiprocessing
import pathlib
import re
import sys
import tempfile
import time
import traceback
import warnings

import networks
import numpy as np
import truth

FOLDER = truth.ROOT / "target" / "sweep"
TABLE = truth.ROOT / "conformance" / "SWEEP.md"
EXACT_INPUTS = 2  # of the inputs, how many the reference evaluation goes through


class Unavailable(Exception):
    """Something that the framework, an exporter or ONNX Runtime cannot do."""


def short(error):
    """The line of an error that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def unavailable(what, work, *arguments):
    try:
        return work(*arguments)
    except Exception as error:
        (FOLDER / "errors.txt").open("a").write(f"{what}\n{traceback.format_exc()}\n")
        raise Unavailable(f"{what}: {short(error)}") from error


def tracing(network, x, file, plain):
    import torch

    if plain:
        truth.torch_unfused(network, x, file)
    else:
        torch.onnx.export(network, (x,), file, opset_version=17, dynamo=False)


def dynamo(network, x, file, plain):
    import torch

    torch.onnx.export(network, (x,), file, dynamo=True, optimize=not plain, verbose=False)


# Name: what exports, given a network, an input, a file, and whether batch normalization is to stay as it is.
EXPORTERS = {"TorchScript": tracing, "dynamo": dynamo}


class Subject:
    """A row of networks.py: its folder, what the framework computes, and the files that are exported."""

    def __init__(self, row):
        self.row, self.title = row, networks.title(row)
        self.folder = FOLDER / re.sub(r"[^\w.]+", "-", self.title)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.network = None

    def file(self, exporter, plain=False):
        return self.folder / f"{exporter}{'-plain' if plain else ''}.onnx"

    def build(self):
        """PyTorch's network, and its inputs."""
        import torch

        if self.network is None:
            torch.set_num_threads(1)
            torch.manual_seed(0)
            made = networks.make(self.row)
            self.network = truth.torch_randomized(made, self.row.shape)
            self.inputs = [torch.randn(1, *self.row.shape) for _ in range(truth.INPUTS)]
        return self.network, self.inputs

    def reference(self):
        """What the framework computes."""
        file = self.folder / "truth.npz"
        if not file.exists():
            network, inputs = unavailable("not made", self.build)
            classes, float64, float32, outputs = unavailable("no gradient", truth.torch_gradients, network, inputs)
            own = [truth.relative(a, b) for a, b in zip(float32, float64)]
            inputs = np.stack([x.numpy() for x in inputs])
            np.savez(file, inputs=inputs, classes=classes, float64=np.stack(float64), own=own, output=outputs[0])
        return np.load(file)

    def export(self, exporter):
        """Both files of an exporter, which are one where there is no batch normalization."""
        file, plain = self.file(exporter), self.file(exporter, plain=True)
        done = file.with_suffix(".done")
        if not done.exists():
            network, inputs = unavailable("not made", self.build)
            network.float()
            unavailable("not exported", EXPORTERS[exporter], network, inputs[0], file, False)
            if any("BatchNorm" in type(module).__name__ for module in network.modules()):
                unavailable("not exported", EXPORTERS[exporter], network, inputs[0], plain, True)
            done.touch()
        return file, plain if plain.exists() else file


def forward(command, file, x, output):
    """Ouzel's and ONNX Runtime's outputs: their distance, and what it may be."""
    import onnxruntime

    session = unavailable("ONNX Runtime", onnxruntime.InferenceSession, file, None, ["CPUExecutionProvider"])
    [taken] = session.get_inputs()
    names = [value.name for value in session.get_outputs()]
    theirs = unavailable("ONNX Runtime", session.run, names, {taken.name: x})
    distances = []
    for name, expected in zip(names, theirs):
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/x.npy", x)
            truth.run(command, "predict", file, f"{folder}/x.npy", "--output", name, "--out-dir", f"{folder}/out")
            [written] = pathlib.Path(folder, "out").glob("*.npy")
            found = np.load(written)
        if found.shape != expected.shape:
            raise truth.Refused(f"output {name} has the shape {found.shape}, not {expected.shape}")
        distances.append(truth.relative(found, expected))
    limit = max(1e-5, 4 * truth.relative(theirs[0], output))
    return names[0], max(distances), limit


def gradients(options, file, layer, reference, precision, count):
    found = truth.Truth(file, layer, reference["inputs"][:count], reference["classes"], reference["float64"], None)
    return truth.errors(options.ouzel, found, precision)


def check(options, subject, exporter):
    """A line of the results."""
    import onnx

    result = {"family": subject.row.family, "network": subject.title, "exporter": exporter}
    started = time.time()
    try:
        reference = subject.reference()
        file, plain = subject.export(exporter)
        result["export_seconds"] = time.time() - started
        started = time.time()
        model = onnx.load(file, load_external_data=False)
        result["nodes"] = len(model.graph.node)
        result["opset"] = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        layer, distance, limit = forward(options.ouzel, file, reference["inputs"][0], reference["output"])
        result |= {"forward": distance, "forward_limit": limit}
        timed = time.time()
        engine = gradients(options, file, layer, reference, "f32", truth.INPUTS)
        result["explain_seconds"] = (time.time() - timed) / truth.INPUTS
        plain_model = onnx.load(plain, load_external_data=False)
        layer = plain_model.graph.output[0].name
        exact = gradients(options, plain, layer, reference, "f64", EXACT_INPUTS)
        found = truth.verdict(exact, engine, list(reference["own"]), truth.rounds(plain_model))
        result |= found._asdict()
        result["passed"] = bool(found.passed and distance <= limit)
        result["verdict"] = "passed" if result["passed"] else "wrong numbers"
    except Unavailable as error:
        result["verdict"] = str(error)
    except truth.Refused as error:
        result["verdict"] = f"failed: {error}"
    result["seconds"] = time.time() - started
    return result


def table(results):
    """The results as a table."""
    lines = [
        "# Networks that were tried",
        "",
        "Written by `conformance/sweep.py`, which says what the columns are.",
        "",
    ]
    passed = sum(result.get("passed", False) for result in results)
    lines += [f"{passed} of {len(results)} exports pass.", ""]
    headings = ["family", "network", "exporter", "opset", "nodes", "forward", "float64", "limit", "float32", "limit", "worst", "verdict"]
    lines += ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    for result in results:
        cells = [result["family"], f"`{result['network']}`", result["exporter"]]
        cells += [str(result.get(key, "")) for key in ("opset", "nodes")]
        for key in ("forward", "exact", "exact_limit", "quartile", "quartile_limit", "worst"):
            cells.append(f"{result[key]:.1e}" if key in result else "")
        lines.append("| " + " | ".join([*cells, result["verdict"].replace("|", "\\|")]) + " |")
    return "\n".join(lines) + "\n"


class Results:
    """What came out so far, in a file."""

    def __init__(self, file):
        self.file = file
        self.all = json.loads(file.read_text()) if file.exists() else {}

    @staticmethod
    def key(title, exporter):
        return f"{title}, {exporter}"

    def add(self, result):
        self.all[self.key(result["network"], result["exporter"])] = result
        self.file.write_text(json.dumps(self.all, indent=1))

    def in_order(self, rows):
        keys = [self.key(networks.title(row), exporter) for row in rows for exporter in EXPORTERS]
        return [self.all[key] for key in keys if key in self.all]


def work(options, row, exporter, connection):
    connection.send(check(options, Subject(row), exporter))


def limited(options, row, exporter):
    """A check in a process of its own, which may take so long."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(options, row, exporter, sender))
    process.start()
    sender.close()
    result = {"family": row.family, "network": networks.title(row), "exporter": exporter}
    try:
        if receiver.poll(options.limit):
            result = receiver.recv()
        else:
            result["verdict"] = f"not done after {options.limit} seconds"
    except EOFError:
        result["verdict"] = "the process ended"
    if process.is_alive():
        process.kill()
    process.join()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="rows that contain one of these words")
    parser.add_argument("--exporters", nargs="+", default=list(EXPORTERS), choices=EXPORTERS)
    parser.add_argument("--again", nargs="?", const="all", choices=["all", "failed"], help="check what was checked before")
    parser.add_argument("--limit", type=float, default=300, help="seconds for a network (default: %(default)s)")
    parser.add_argument("--ouzel", default=str(truth.ROOT / "target" / "release" / "ouzel"), help="the program")
    parser.add_argument("--table", action="store_true", help="write the table, check nothing")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    for library in ("onnxruntime", "onnxscript", "torchvision", "timm"):
        importlib.import_module(library)  # once, for all processes
    results = Results(FOLDER / "results.json")
    failed = False
    for row in [] if options.table else networks.TORCH:
        if not any(word in f"{row.family} {networks.title(row)}" for word in options.only):
            continue
        for exporter in options.exporters:
            before = results.all.get(results.key(networks.title(row), exporter))
            if before and not (options.again == "all" or options.again and not before.get("passed")):
                continue
            result = limited(options, row, exporter)
            results.add(result)
            figures = [f"{result[key]:.1e}" for key in ("forward", "exact", "quartile", "worst") if key in result]
            print(result["network"], exporter, *figures, f"{result.get('seconds', 0):.0f}s", result["verdict"], flush=True)
            failed |= not result.get("passed", False)
    TABLE.write_text(table(results.in_order(networks.TORCH)))
    sys.exit(failed)


if __name__ == "__main__":
    main()
