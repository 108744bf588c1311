"""Goes through the networks that people export, and compares Ouzel with ONNX Runtime and with the framework of each.

    pip install -r conformance/requirements.txt
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
    float32   check (b) of truth.py, of the file that the exporter writes by default; where it fails on five inputs, on
              twenty, since a near tie or two on the way are a matter of luck

--inputs 1 is a first look, which finds what does not load, predicts other numbers, or has a wrong gradient: float32 is
then checked on one input, and on five where that fails.

A network at a time runs in a process of its own, which ends after --limit seconds.
"""

import argparse
import importlib
import json
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
TIE = 1e-4  # what only a near tie on the way makes of float32's rounding errors
CALIBRATION = 32  # small pictures, whose last maps have few positions to take statistics from


# Why the numbers of a network cannot be the framework's.
EXPLAINED = {
    "timm:inception_v4": "random weights make it chaotic; PyTorch's own float32 is as far from its float64",
}


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


def attention_as_compiled(calls):
    """Scaled dot-product attention as the compiling exporter writes it: with the root of the scale as float32 has it."""
    import torch

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        calls.append(scale)
        if is_causal or enable_gqa:
            raise NotImplementedError("causal or grouped attention")
        root = float(np.float32((query.shape[-1] ** -0.5 if scale is None else scale) ** 0.5))
        scores = (query * root) @ (key * root).transpose(-2, -1)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, -torch.inf)
        return torch.softmax(scores if attn_mask is None else scores + attn_mask, -1) @ value

    return attention


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
            np.savez(file, inputs=inputs, classes=classes, float64=np.stack(float64), own=own, output=outputs[0])
        return np.load(file)

    def export(self, exporter):
        """Both files of an exporter, which are one where there is no batch normalization."""
        file, plain = self.folder / f"{exporter}.onnx", self.folder / f"{exporter}-plain.onnx"
        done = file.with_suffix(".done")
        if not done.exists():
            unavailable("not made", self.build)
            unavailable("not exported", self.write, exporter, file, False)
            if self.normalizes():
                unavailable("not exported", self.write, exporter, plain, True)
            done.touch()
        return file, plain if plain.exists() else file


class Torch(Subject):
    """A network of PyTorch."""

    ROWS = networks.TORCH
    EXPORTERS = ["torchscript", "dynamo"]

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
        """What the framework computes of the first inputs; of attention what the file says."""
        import torch

        if not exporter.startswith("dynamo"):
            return super().reference(count, exporter)
        unavailable("not made", self.build)
        calls, own = [], torch.nn.functional.scaled_dot_product_attention
        torch.nn.functional.scaled_dot_product_attention = attention_as_compiled(calls)
        try:
            unavailable("not run", self.network, self.inputs[0])
            name = f"truth-compiled-{count}.npz" if calls else f"truth-{count}.npz"
            return self.computed(count, self.folder / name)
        finally:
            torch.nn.functional.scaled_dot_product_attention = own

    def gradients(self, inputs):
        return truth.torch_gradients(self.network, inputs)

    def normalizes(self):
        return any("BatchNorm" in type(module).__name__ for module in self.network.modules())

    def example(self):
        """What the exporter runs the network on, and which of its axes are of any length."""
        return self.inputs[0], []

    def write(self, exporter, file, plain):
        import torch

        x, axes = self.example()
        names = {axis: f"axis{axis}" for axis in axes}
        if exporter.startswith("dynamo"):
            shapes = ({axis: torch.export.Dim.AUTO for axis in axes},) if axes else None
            options = {"dynamic_shapes": shapes, "optimize": not plain, "verbose": False}
            torch.onnx.export(self.network, (x,), file, dynamo=True, **options)
            return
        named = {"input_names": ["input"], "dynamic_axes": {"input": names}} if axes else {}
        if plain:
            truth.torch_unfused(self.network, x, file, **named)
        else:
            torch.onnx.export(self.network, (x,), file, opset_version=17, dynamo=False, **named)


class Sizes(Torch):
    """A network that takes inputs of any size, exported on one that is larger than those that it is checked on."""

    ROWS = networks.SIZES
    EXPORTERS = ["torchscript-sizes", "dynamo-sizes"]

    def example(self):
        import torch

        is_sequence = len(self.row.shape) == 2 and self.row.name != "own:signal"
        axes = [1] if is_sequence else range(2, len(self.row.shape) + 1)
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

    def reference(self, count, exporter):
        if exporter.startswith("dynamo"):
            return super().reference(count, exporter)
        # The exporter that traces writes GELU with the square root of 2 as float16 has it: another function.
        import torch

        own = torch.nn.functional.gelu
        torch.nn.functional.gelu = lambda x, approximate="none": x * 0.5 * (1 + torch.erf(x / 1.4140625))
        try:
            return self.computed(count, self.folder / f"truth-traced-{count}.npz")
        finally:
            torch.nn.functional.gelu = own

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

    def normalizes(self):
        return any("BatchNormalization" in type(layer).__name__ for layer in self.network.layers)

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


def is_valid(file, x):
    """Whether ONNX Runtime can run a network."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(file, None, ["CPUExecutionProvider"])
        session.run(None, {session.get_inputs()[0].name: x})
    except Exception:
        return False
    return True


def forward(command, file, x, output):
    """Ouzel's and ONNX Runtime's outputs: their distance, and what it may be."""
    import onnxruntime

    session = unavailable("ONNX Runtime", onnxruntime.InferenceSession, file, None, ["CPUExecutionProvider"])
    # Keras lists constants that it has folded as inputs too, which no node reads.
    taken, *unread = session.get_inputs()
    names = [value.name for value in session.get_outputs()]
    nothing = {value.name: np.zeros(value.shape, np.float32) for value in unread}
    taken_as = np.float16 if taken.type == "tensor(float16)" else x.dtype
    theirs = unavailable("ONNX Runtime", session.run, names, {taken.name: x.astype(taken_as), **nothing})
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
    return max(distances), max(1e-5, 4 * truth.relative(theirs[0], output))


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
        result["export_seconds"] = time.time() - started
        started = time.time()
        model = onnx.load(file, load_external_data=False)
        result["nodes"] = len(model.graph.node)
        result["opset"] = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        distance, limit = forward(options.ouzel, file, reference["inputs"][0], reference["output"])
        result |= {"forward": distance, "forward_limit": limit}
        timed = time.time()
        engine = errors(options, file, reference, "f32")
        result["explain_seconds"] = (time.time() - timed) / options.inputs
        limit_exact = truth.exact_limit(onnx.load(plain, load_external_data=False))
        if plain != file and not is_valid(plain, reference["inputs"][0]):
            # Not optimized, biases of convolutions of volumes have a wrong shape. What optimizing folds is float32.
            plain, limit_exact = file, 1e-6
        exact = errors(options, plain, reference, "f64", EXACT_INPUTS)
        found = truth.verdict(exact, engine, reference["own"], limit_exact)
        if not found.passed and found.exact <= found.exact_limit:
            reference = subject.reference(MORE_INPUTS if options.inputs >= truth.INPUTS else truth.INPUTS, exporter)
            engine = errors(options, file, reference, "f32")
            found = truth.verdict(exact, engine, reference["own"], limit_exact)
        result |= found._asdict()
        result |= {"inputs": len(reference["own"]), "passed": bool(found.passed and distance <= limit)}
        result["verdict"] = "passed" if result["passed"] else "wrong numbers"
        if not result["passed"] and distance <= limit and found.exact <= found.exact_limit:
            ours, own = (sum(error > TIE for error in series) for series in (engine, reference["own"]))
            result["verdict"] += f": near ties on {ours} of {len(engine)} inputs, in the framework's own float32 on {own}"
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
    headings = ["family", "network", "exporter", "opset", "nodes", "forward", "float64", "limit", "float32", "limit", "worst", "inputs", "verdict"]
    lines += ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    for result in results:
        cells = [result["family"], f"`{result['network']}`", result["exporter"]]
        cells += [str(result.get(key, "")) for key in ("opset", "nodes")]
        for key in ("forward", "exact", "exact_limit", "quartile", "quartile_limit", "worst"):
            cells.append(f"{result[key]:.1e}" if key in result else "")
        cells.append(str(result.get("inputs", "")))
        reason = EXPLAINED.get(result["network"]) if result["verdict"].startswith("wrong numbers") else None
        verdict = textwrap.shorten(f"{result['verdict']}: {reason}" if reason else result["verdict"], 200)
        lines.append("| " + " | ".join([*cells, verdict.replace("|", "\\|")]) + " |")
    return "\n".join(lines) + "\n"


class Results:
    """What came out so far, in a file."""

    def __init__(self, file):
        self.file = file
        self.all = json.loads(file.read_text()) if file.exists() else {}

    @staticmethod
    def key(row, exporter):
        return f"{networks.title(row)}, {exporter}"

    def add(self, row, exporter, result):
        self.all[self.key(row, exporter)] = result
        self.file.write_text(json.dumps(self.all, indent=1))

    def in_order(self):
        tried = [(row, exporter) for kind in KINDS.values() for row in kind.ROWS for exporter in kind.EXPORTERS]
        keys = [self.key(row, exporter) for row, exporter in tried]
        return [self.all[key] for key in keys if key in self.all]


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
    parser.add_argument("--table", action="store_true", help="write the table, check nothing")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    results, kind, failed = Results(FOLDER / "results.json"), KINDS[options.kind], False

    def is_wanted(row, exporter):
        before = results.all.get(Results.key(row, exporter))
        named = any(word in f"{row.family} {networks.title(row)}" for word in options.only)
        again = options.again == "all" or options.again and not before.get("passed") if before else True
        return named and again and exporter in (options.exporters or kind.EXPORTERS)

    wanted = [] if options.table else [(r, e) for r in kind.ROWS for e in kind.EXPORTERS if is_wanted(r, e)]
    if wanted:
        warnings.simplefilter("ignore")
        kind.load()  # once, for all processes
    for row, exporter in wanted:
        result = limited(options, kind(row), exporter)
        results.add(row, exporter, result)
        figures = [f"{result[key]:.1e}" for key in ("forward", "exact", "quartile", "worst") if key in result]
        print(result["network"], exporter, *figures, f"{result.get('seconds', 0):.0f}s", result["verdict"], flush=True)
        failed |= not result.get("passed", False)
    TABLE.write_text(table(results.in_order()))
    sys.exit(failed)


if __name__ == "__main__":
    main()
