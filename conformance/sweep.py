"""Goes through the networks that people export, and compares Ouzel with ONNX Runtime and with the framework of each.

    pip install -r conformance/requirements.txt
    cargo build --release
    python conformance/sweep.py                            # all of PyTorch's networks, with both of its exporters
    python conformance/sweep.py --only vit swin --again    # those whose names contain a word, once more
    python conformance/sweep.py --again failed             # those that did not pass

Run by hand: it takes hours. The networks are those of networks.py, with random weights as truth.py makes them. Results
are lines of the table, so that a sweep goes on where it ended; what is exported and computed by the framework stays in
target/sweep.
For each network and exporter:

    forward   every output of the file that the exporter writes by default, against ONNX Runtime: the mean over five inputs
              of the relative L2 distance is at most 1e-5, or 4 x that of ONNX Runtime from the framework in float64 (one
              input is not enough where numbers are rounded on the way, as in a quantized network, which has near ties, too)
    float64   check (a) of truth.py, of a file in which nothing has been folded
    float32   check (b) of truth.py, of the file that the exporter writes by default; where it fails on five inputs, on
              twenty, since a near tie or two on the way are a matter of luck

Where an exporter of PyTorch cannot write attention as the one operator that it is, timm's own switch spells it out.

--inputs 1 is a first look, which finds what does not load, predicts other numbers, or has a wrong gradient: float32 is
then checked on one input, and on five where that fails.

A network at a time runs in a process of its own, which ends after --limit seconds.
"""

import argparse
import importlib
import multiprocessing
import pathlib
import re
import shutil
import sys
import tempfile
import textwrap
import time
import traceback
import warnings

import interpreter
import networks
import numpy as np
import onnx
import truth

FOLDER = truth.ROOT / "target" / "sweep"
TABLE = truth.ROOT / "conformance" / "SWEEP.md"
EXACT_INPUTS = 2  # of the inputs, how many the reference evaluation goes through
MORE_INPUTS = 20  # where five are a matter of luck
CALIBRATION = 32  # small pictures, whose last maps have few positions to take statistics from


class Unavailable(Exception):
    """Something that the framework, an exporter or ONNX Runtime cannot do."""


def short(error):
    """The line of an error that says most, without the place of this repository and without colors."""
    lines = [line.strip() for line in re.sub(r"\x1b\[\d*m", "", str(error)).replace(f"{truth.ROOT}/", "").splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def unavailable(what, work, *arguments):
    try:
        return work(*arguments)
    except Exception as error:
        (FOLDER / "errors.txt").open("a").write(f"{what}\n{traceback.format_exc()}\n")
        raise Unavailable(f"{what}: {short(error)}") from error


class Subject:
    """A row of networks.py: its folder, what the framework computes, and the files that are exported."""

    GROUP = ""  # subjects of the same group and title compute the same

    def __init__(self, row):
        self.row, self.title = row, networks.title(row)
        self.folder = FOLDER / self.GROUP / re.sub(r"[^\w.]+", "-", self.title)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.network = None

    def reference(self, count, exporter):
        """What the framework computes of the first inputs."""
        return self.computed(count, self.folder / f"truth-{count}.npz")

    def computed(self, count, file):
        if not file.exists():
            unavailable("not made", self.build)
            inputs = self.inputs[:count]
            classes, float64, float32, outputs = unavailable("no gradient", self.gradients, inputs)
            own = [truth.relative(a, b) for a, b in zip(float32, float64)]
            inputs = np.stack([np.asarray(x) for x in inputs])
            float64, outputs = np.stack(float64), np.stack(outputs[: truth.INPUTS])
            np.savez(file, inputs=inputs, classes=classes, float64=float64, own=own, outputs=outputs)
        return np.load(file)

    def export(self, exporter):
        """Both files of an exporter: what it writes by default, and one in which nothing is folded."""
        file, plain = self.folder / f"{exporter}.onnx", self.folder / f"{exporter}-plain.onnx"
        done = file.with_suffix(".done")
        if not done.exists():
            unavailable("not made", self.build)
            unavailable("not exported", self.write, exporter, file, False)
            unavailable("not exported", self.write, exporter, plain, True)
            done.touch()
        return file, plain


def without_expanded_biases(file):
    """Convolutions that have no bias have none, where PyTorch's exporter gives those of volumes zeros of a wrong shape."""
    model = onnx.load(file, load_external_data=False)
    expanded = {name for node in model.graph.node if node.op_type == "Expand" for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[-1] in expanded:
            node.input.pop()
    onnx.save(model, file)


class Torch(Subject):
    """A network of PyTorch."""

    ROWS = networks.TORCH
    EXPORTERS = ["torchscript", "dynamo"]
    ROOT_OF_2 = float(np.float32(2**0.5))  # as the exporter that traces writes it where it spells GELU out

    @staticmethod
    def load():
        for library in ("onnxruntime", "onnxscript", "torchvision", "timm"):
            importlib.import_module(library)

    def build(self):
        import torch

        if self.network is None:
            torch.set_num_threads(1)
            torch.manual_seed(0)
            self.network = truth.torch_randomized(networks.make(self.row), self.row.shape, CALIBRATION)
            self.inputs = [torch.randn(1, *self.row.shape) for _ in range(MORE_INPUTS)]

    def reference(self, count, exporter):
        """What the framework computes of the first inputs, with GELU as the file has it."""
        import torch

        if not exporter.startswith("torchscript"):
            return super().reference(count, exporter)
        calls, own = [], torch.nn.functional.gelu

        def gelu(x, approximate="none"):
            calls.append(approximate)
            if approximate != "none":
                return own(x, approximate=approximate)
            return x * 0.5 * (1 + torch.erf(x / self.ROOT_OF_2))

        unavailable("not made", self.build)
        torch.nn.functional.gelu = gelu
        try:
            unavailable("not run", self.network, self.inputs[0])
            return self.computed(count, self.folder / (f"truth-traced-{count}.npz" if calls else f"truth-{count}.npz"))
        finally:
            torch.nn.functional.gelu = own

    def gradients(self, inputs):
        return truth.torch_gradients(self.network, inputs)

    def example(self):
        """What the exporter runs the network on, and which of its axes are of any length."""
        return self.inputs[0], []

    def write(self, exporter, file, plain):
        try:
            self.write_as_it_is(exporter, file, plain)
        except Exception:
            # What an exporter cannot do with the one operator that attention is, it can with attention spelled out.
            fused = [module for module in self.network.modules() if getattr(module, "fused_attn", False)]
            if not fused:
                raise
            for module in fused:
                module.fused_attn = False
            self.write_as_it_is(exporter, file, plain)

    def write_as_it_is(self, exporter, file, plain):
        import torch

        x, axes = self.example()
        names = {axis: f"axis{axis}" for axis in axes}
        if exporter.startswith("dynamo"):
            shapes = ({axis: torch.export.Dim.AUTO for axis in axes},) if axes else None
            options = {"dynamic_shapes": shapes, "optimize": not plain, "verbose": False}
            torch.onnx.export(self.network, (x,), file, dynamo=True, **options)
            if plain:
                without_expanded_biases(file)
            return
        named = {"input_names": ["input"], "dynamic_axes": {"input": names}} if axes else {}
        write = truth.torch_unfused if plain else truth.torch_traced
        write(self.network, x, file, **named)


class Sizes(Torch):
    """A network that takes inputs of any size, exported on one that is larger than those that it is checked on."""

    ROWS = networks.SIZES
    EXPORTERS = ["torchscript-sizes", "dynamo-sizes"]

    def example(self):
        import torch

        axes = [1] if len(self.row.shape) == 2 else range(2, len(self.row.shape) + 1)
        shape = list(self.inputs[0].shape)
        for axis in axes:
            shape[axis] += 32 if axis > 1 else 8
        return torch.randn(2, *shape[1:]), [0, *axes]


class Batches(Torch):
    """A network that takes batches of any size."""

    ROWS = networks.BATCHES
    EXPORTERS = ["torchscript-batches", "dynamo-batches"]

    def example(self):
        import torch

        return torch.cat(self.inputs[:2]), [0]


class Half(Torch):
    """A network whose weights, inputs and outputs are float16; what it computes exactly is compared."""

    GROUP = "float16"
    ROWS = networks.HALF
    EXPORTERS = ["torchscript-float16", "dynamo-float16"]
    ROOT_OF_2 = 1.4140625  # as float16 has it

    def build(self):
        super().build()
        self.network.half().float()
        self.inputs = [x.half().float() for x in self.inputs]

    def example(self):
        self.network.half()
        return self.inputs[0].half(), []

    def export(self, exporter):
        # Where batch normalization is folded into convolutions, weights are rounded once more: another network.
        _, plain = super().export(exporter)
        return plain, plain


class Quantized(Torch):
    """A network of bytes between QuantizeLinear and DequantizeLinear, as onnxruntime.quantization makes it.

    The gradient passes straight through rounding, and stops where a number was clipped.
    """

    GROUP = "quantized"
    ROWS = networks.QUANTIZED
    EXPORTERS = ["quantized"]

    def build(self):
        from onnxruntime.quantization import CalibrationDataReader, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self, name, inputs):
                self.left = [{name: x.numpy()} for x in inputs]

            def get_next(self):
                return self.left.pop() if self.left else None

        if self.network is None:
            super().build()
            self.made = self.folder / "made.onnx"
            wide, prepared = self.folder / "float.onnx", str(self.folder / "prepared.onnx")
            super().write("torchscript", wide, False)
            quant_pre_process(str(wide), prepared)
            reader = Reader(onnx.load(prepared).graph.input[0].name, self.inputs[: truth.INPUTS])
            quantize_static(prepared, str(self.made), reader, per_channel=True)
            self.network = interpreter.network(onnx.load(self.made))

    def write(self, exporter, file, plain):
        shutil.copyfile(self.made, file)


class Keras(Subject):
    """A network of Keras, version 3."""

    ROWS = networks.KERAS
    EXPORTERS = ["keras"]
    MODULE = "keras"

    @classmethod
    def load(cls):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        for library in ("onnxruntime", "tf2onnx", cls.MODULE):
            importlib.import_module(library)

    def build(self):
        if self.network is None:
            keras, arguments = importlib.import_module(self.MODULE), self.row.arguments
            name = self.row.name.partition(":")[2]
            self.network, self.wide = truth.keras_network(keras, name, CALIBRATION, input_shape=self.row.shape, **arguments)
            random = np.random.default_rng(1)
            shape = (MORE_INPUTS, 1, *self.row.shape)
            self.inputs = list(random.standard_normal(shape, dtype=np.float32))

    def gradients(self, inputs):
        return truth.keras_gradients(self.network, self.wide, inputs)

    def write(self, exporter, file, plain):
        # TensorFlow folds batch normalization before the exporter sees it: in float64, that changes nothing.
        network = self.wide if plain else self.network
        network.export(str(file), format="onnx", verbose=False)


class Keras2(Keras):
    """A network of Keras, version 2."""

    ROWS = networks.KERAS2
    EXPORTERS = ["tf2onnx"]
    MODULE = "tf_keras"

    def write(self, exporter, file, plain):
        if plain:
            truth.keras_unfused()
        truth.keras_export(self.network, file)


KINDS = {
    "torch": Torch,
    "sizes": Sizes,
    "batches": Batches,
    "float16": Half,
    "quantized": Quantized,
    "keras": Keras,
    "tf_keras": Keras2,
}


def forward(command, file, inputs, exact):
    """Ouzel's and ONNX Runtime's outputs: the mean of their distances over the inputs, and what it may be."""
    import onnxruntime

    session = unavailable("ONNX Runtime", onnxruntime.InferenceSession, file, None, ["CPUExecutionProvider"])
    # Keras lists constants that it has folded as inputs too, which no node reads.
    taken, *unread = session.get_inputs()
    names = [value.name for value in session.get_outputs()]
    nothing = {value.name: np.zeros(value.shape, np.float32) for value in unread}
    distances, own = [], []
    for x, output in zip(inputs, exact):
        taken_as = np.float16 if taken.type == "tensor(float16)" else x.dtype
        theirs = unavailable("ONNX Runtime", session.run, names, {taken.name: x.astype(taken_as), **nothing})
        ours = [predicted(command, file, x, name, expected) for name, expected in zip(names, theirs)]
        distances.append(max(truth.relative(found, expected) for found, expected in zip(ours, theirs)))
        own.append(truth.relative(theirs[0], output))
    return float(np.mean(distances)), max(1e-5, 4 * float(np.mean(own)))


def predicted(command, file, x, name, expected):
    """Ouzel's output of a name, which has to have an expected shape."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", x)
        truth.run(command, "predict", file, f"{folder}/x.npy", "--output", name, "--out-dir", f"{folder}/out")
        [written] = pathlib.Path(folder, "out").glob("*.npy")
        found = np.load(written)
    if found.shape != expected.shape:
        raise truth.Refused(f"output {name} has the shape {found.shape}, not {expected.shape}")
    return found


def errors(options, file, reference, precision, count=None):
    """Of the first inputs, how far Ouzel's gradients of the first output are from the framework's in float64."""
    [layer, *_] = [value.name for value in onnx.load(file, load_external_data=False).graph.output]
    inputs = reference["inputs"][:count]
    found = truth.Truth(file, layer, inputs, reference["classes"], reference["float64"], None)
    return truth.errors(options.ouzel, found, precision)


def check(options, subject, exporter):
    """A line of the results."""
    result = {"family": subject.row.family, "network": subject.title, "exporter": exporter}
    started = time.time()
    try:
        reference = subject.reference(options.inputs, exporter)
        file, plain = subject.export(exporter)
        started = time.time()
        model = onnx.load(file, load_external_data=False)
        result["nodes"] = len(model.graph.node)
        result["opset"] = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        distance, limit = forward(options.ouzel, file, reference["inputs"], reference["outputs"])
        result |= {"forward": distance, "forward_limit": limit}
        engine = errors(options, file, reference, "f32")
        limit_exact = truth.exact_limit(onnx.load(plain, load_external_data=False))
        exact = errors(options, plain, reference, "f64", EXACT_INPUTS)
        found = truth.verdict(exact, engine, reference["own"], limit_exact)
        if not found.passed and found.exact <= found.exact_limit:
            reference = subject.reference(MORE_INPUTS if options.inputs >= truth.INPUTS else truth.INPUTS, exporter)
            engine = errors(options, file, reference, "f32")
            found = truth.verdict(exact, engine, reference["own"], limit_exact)
        result |= found._asdict()
        result |= {"inputs": len(reference["own"]), "passed": found.passed and distance <= limit}
        result["verdict"] = "passed" if result["passed"] else "wrong numbers"
        if not result["passed"] and distance <= limit and found.exact <= found.exact_limit:
            ours, own = (sum(error > truth.TIE for error in series) for series in (engine, reference["own"]))
            result["verdict"] += f": near ties on {ours} of {len(engine)} inputs, in the framework's own float32 on {own}"
    except Unavailable as error:
        result["verdict"] = str(error)
    except truth.Refused as error:
        result["verdict"] = f"failed: {error}"
    result["seconds"] = time.time() - started
    return result


class Table:
    """The results, which are the lines of a table of text."""

    # Of each entry of a result its heading, in the order of the columns.
    FIGURES = {
        "forward": "forward",
        "exact": "float64",
        "exact_limit": "limit",
        "engine": "float32",
        "engine_limit": "limit",
        "worst": "worst",
    }
    COLUMNS = {
        **{key: key for key in ("family", "network", "exporter", "opset", "nodes")},
        **FIGURES,
        **{key: key for key in ("inputs", "verdict")},
    }

    def __init__(self, file):
        self.file = file
        self.read()

    def read(self):
        self.lines = {}
        for line in self.file.read_text().splitlines() if self.file.exists() else []:
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if len(cells) == len(self.COLUMNS) and cells[1].startswith("`"):
                self.lines[cells[1].strip("`"), cells[2]] = line

    def has_passed(self, row, exporter):
        """Whether an export has passed; nothing of one that has not been tried."""
        line = self.lines.get((networks.title(row), exporter))
        return line and line.endswith("| passed |")

    def add(self, result):
        """Puts a result in its place, and writes the table."""
        cells = {key: str(value) for key, value in result.items()}
        cells |= {key: f"{result[key]:.1e}" for key in self.FIGURES if key in result}
        verdict = textwrap.shorten(result["verdict"], 200).replace("|", "\\|")
        cells |= {"network": f"`{result['network']}`", "verdict": verdict}
        line = " | ".join(cells.get(key, "") for key in self.COLUMNS)
        self.read()  # what another sweep has put there since
        self.lines[result["network"], result["exporter"]] = f"| {line} |"
        kinds = KINDS.values()
        tried = [(networks.title(row), exporter) for kind in kinds for row in kind.ROWS for exporter in kind.EXPORTERS]
        lines = [self.lines[key] for key in tried if key in self.lines]
        passed = sum(line.endswith("| passed |") for line in lines)
        no_file = sum(bool(re.search(r"\| (not exported|ONNX Runtime): ", line)) for line in lines)
        head = ["# Networks that were tried", "", "Written by `conformance/sweep.py`, which says what the columns are.", ""]
        head += [f"{passed} of {len(lines) - no_file} exports pass. {no_file} more give no file that ONNX Runtime can run."]
        head += ["", "| " + " | ".join(self.COLUMNS.values()) + " |", "|" + " --- |" * len(self.COLUMNS)]
        self.file.write_text("\n".join(head + lines) + "\n")


def work(options, subject, exporter, connection):
    connection.send(check(options, subject, exporter))


def limited(options, subject, exporter):
    """A check in a process of its own, which may take so long."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(options, subject, exporter, sender))
    process.start()
    sender.close()
    result = {"family": subject.row.family, "network": subject.title, "exporter": exporter}
    try:
        if receiver.poll(options.limit):
            result = receiver.recv()
        else:
            result["verdict"] = f"not done after {options.limit:.0f} seconds"
    except EOFError:
        result["verdict"] = "the process ended"
    if process.is_alive():
        process.kill()
    process.join()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="torch", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="rows that contain one of these words")
    parser.add_argument("--exporters", nargs="+", metavar="NAME", help="of the kind's exporters, these")
    parser.add_argument("--again", nargs="?", const="all", choices=["all", "failed"], help="check what was checked before")
    parser.add_argument("--inputs", type=int, default=truth.INPUTS, help="(default: %(default)s)")
    parser.add_argument("--limit", type=float, default=300, help="seconds for a network (default: %(default)s)")
    parser.add_argument("--ouzel", default=str(truth.ROOT / "target" / "release" / "ouzel"), help="the program")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    table, kind, failed = Table(TABLE), KINDS[options.kind], False

    def is_wanted(row, exporter):
        passed = table.has_passed(row, exporter)
        named = any(word in f"{row.family} {networks.title(row)}" for word in options.only)
        again = passed is None or options.again == "all" or options.again == "failed" and not passed
        return named and again and exporter in (options.exporters or kind.EXPORTERS)

    wanted = [(row, exporter) for row in kind.ROWS for exporter in kind.EXPORTERS if is_wanted(row, exporter)]
    if wanted:
        warnings.simplefilter("ignore")
        kind.load()  # once, for all processes
    for row, exporter in wanted:
        result = limited(options, kind(row), exporter)
        table.add(result)
        figures = [f"{result[key]:.1e}" for key in ("forward", "exact", "engine", "worst") if key in result]
        print(result["network"], exporter, *figures, f"{result.get('seconds', 0):.0f}s", result["verdict"], flush=True)
        failed |= not result.get("passed", False)
    sys.exit(failed)


if __name__ == "__main__":
    main()
