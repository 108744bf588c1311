"""Runs exported explanations with ONNX Runtime and compares them with Ouzel's own, and with PyTorch in float64.

    cargo build --release
    python3 conformance/export.py                                   # every op, and the networks in this repository
    python3 conformance/export.py --networks resnet18 vgg11 ...     # networks of torchvision, by their names; needs torch

The first form makes an environment of its own in `target/export` (requirements-export.txt) and
checks, for every file: `onnx.checker` with full check, strict shape inference, and the numbers of ONNX Runtime on the CPU.

 - ops: every sample of every op as a file of its own, written by a test of the library.
 - networks here: each target mode, grad modifier and backprop modifier, CAMs, LRP, DeepLIFT, SmoothGrad and integrated
   gradients at once and in rounds, batches of 1 and 3; the attribution and the heatmap are those of `ouzel explain`, and the
   file is read by Ouzel again and predicts its own heatmap; tract runs some of them, too.
 - the Python of the README, on a network that fits it.

The second form is run by hand, in an environment with torch and torchvision beside the requirements. Networks have random
(He) weights, as in truth.py, and a dynamic batch. It checks the attribution of ONNX Runtime against PyTorch in float64, by
the rule of truth.py for float32 (the second-smallest relative error of five inputs is at most 4 times PyTorch's own, or
1e-5; none above 5e-2), with batches of 1 and 3, and prints how much the file grew and how many times the forward pass's
time the explanation takes in ONNX Runtime (the least of some runs each, on a quiet machine).

Exits with 1 if a check fails.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "export"
REQUIREMENTS = ROOT / "conformance" / "requirements-export.txt"

# Samples of ops that another program refuses or reads otherwise, and why; nothing of them is ours to mend, as these attributes
# are those of a network's own nodes.
KNOWN = {
    "ConvTranspose_2": "an output padding that is not less than the stride: ONNX Runtime refuses it",
    "ConvTranspose_3": "SAME padding of a kernel shorter than the stride: ONNX infers a shorter output than it specifies",
    "ConvTranspose_4": "likewise",
    "ConvTranspose_5": "an output shape beyond what the kernel reaches: ONNX Runtime refuses it",
    "Einsum_6": "an ellipsis that stands for fewer axes in one operand: ONNX does not infer it",
    "LRN_1": "a window of even length: ONNX Runtime refuses it",
    "LRN_2": "likewise",
    "Pad_5": "reflection beyond the length of the axis: ONNX Runtime refuses it",
    "Pad_6": "likewise",
    "Resize_1": "5 times 1.4 is 7 in float32, in which runtimes compute, and 6 where ONNX infers it",
    "TopK_1": "sorted=0: any order is right",
}


def in_own_environment(modules):
    """Runs the script again in an environment that has what it needs, unless this one has."""
    if not all(importlib.util.find_spec(name) for name in modules):
        python = WORK / "venv" / "bin" / "python"
        if pathlib.Path(sys.executable) == python:
            sys.exit(f"the environment in {WORK / 'venv'} lacks one of {', '.join(modules)}: remove it")
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", WORK / "venv"], check=True)
        quiet = ["--quiet", "--disable-pip-version-check"]
        subprocess.run([python, "-m", "pip", "install", *quiet, "-r", REQUIREMENTS], check=True)
        sys.exit(subprocess.run([python, *sys.argv]).returncode)


def session(path, threads=0, profile=False):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.enable_profiling = profile
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check_file(path):
    """The checker of ONNX with everything it has, and strict shape inference."""
    import onnx

    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    domains = {node.domain for node in model.graph.node}
    if domains - {"", "ai.onnx"}:
        raise ValueError(f"ops of other domains: {domains}")
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def run_tract(path, x):
    """The attribution of a file without loops, as tract computes it."""
    import tract

    model = tract.onnx().load(str(path))
    count = model.output_count()
    model.set_input_fact(0, ",".join(map(str, x.shape)) + ",f32")
    for index in range(count):
        model.set_output_fact(index, None)
    # tract calls outputs after nodes; the attribution is the last but one.
    return model.into_model().into_runnable().run([x])[count - 2].to_numpy()


def relative(found, expected):
    """The relative L2 error."""
    import numpy as np

    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        return float("inf")
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    difference = np.where(same, 0.0, found - expected)
    size = np.linalg.norm(np.where(np.isfinite(expected), expected, 0.0))
    return float(np.linalg.norm(difference) / max(size, 1e-12))


def message(path):
    import onnx

    tensor = onnx.TensorProto()
    tensor.ParseFromString(path.read_bytes())
    return tensor.name, onnx.numpy_helper.to_array(tensor)


def check_ops(failures):
    command = ["cargo", "test", "--quiet", "-p", "ouzel", "--lib", "write_every_op_for_onnx_runtime", "--", "--ignored"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    ran = skipped = known = 0
    for folder in sorted((WORK / "ops").iterdir()):
        name = folder.name
        if name.split("_opset")[0] in KNOWN:
            known += 1
            continue
        inputs = dict(message(path) for path in folder.glob("input_*.pb"))
        outputs = dict(message(path) for path in folder.glob("output_*.pb"))
        try:
            check_file(folder / "model.onnx")
            found = session(folder / "model.onnx", 1).run(list(outputs), inputs)
        except Exception as error:
            text = str(error).strip().splitlines()[0]
            if "NOT_IMPLEMENTED" in text:
                skipped += 1
            else:
                failures.append(f"{name}: {text[:300]}")
            continue
        ran += 1
        for (output, expected), array in zip(outputs.items(), found):
            error = relative(array, expected)
            if error > 1e-5:
                failures.append(f"{name}: {output} differs by {error:.1e}")
    print(f"ops: {ran} files checked and run, {skipped} checked only for want of a kernel, {known} known not to fit")


# The binary that is checked.
OUZEL = ROOT / "target" / "release" / "ouzel"


def ouzel(*arguments):
    done = subprocess.run([OUZEL, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ouzel {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return done


BASELINES = ["--baseline", "zeros,blur"]

# Options of `export` and `explain` that are compared, by a name for messages; LAYER is that of class activation maps.
VARIANTS = {
    "top": [],
    "class 0": ["--class", "0"],
    "input": ["--class", "input"],
    "guided, relu": ["--backprop-modifier", "guided", "--grad-modifier", "relu"],
    "rectified, none": ["--backprop-modifier", "rectified", "--grad-modifier", "none"],
    "negate": ["--grad-modifier", "negate"],
    "input x gradient": ["--method", "input-x-gradient", "--grad-modifier", "none"],
    "keepdims": ["--keepdims"],
    "grad-cam": ["--method", "grad-cam"],
    "lrp": ["--method", "lrp"],
    "deeplift": ["--method", "deeplift"],
    "smoothgrad at once": ["--method", "smoothgrad", "--samples", "4"],
    "smoothgrad in rounds": ["--method", "smoothgrad", "--samples", "10", "--seed", "3"],
    "vargrad in rounds": ["--method", "vargrad", "--samples", "9"],
    "integrated gradients": ["--method", "integrated-gradients", "--steps", "12", "--baseline", "blur"],
    "integrated gradients of a layer": ["--method", "integrated-gradients", "--steps", "7", "--wrt", "LAYER", *BASELINES],
}

# What tract is asked to run, too: it has no loops.
IN_TRACT = {"top", "guided, relu", "grad-cam"}

# What is said of files alone.
SAVED = {"smoothgrad in rounds": ["--samples-per-pass", "4"]}


def check_networks(failures, folder):
    import numpy as np

    random = np.random.default_rng(0)
    ran = 0
    for model in sorted((ROOT / "assets").glob("*.onnx")):
        described = json.loads(ouzel("inspect", model, "--json").stdout)
        shape = described["inputs"][0]["shape"][1:]
        for title, options in VARIANTS.items():
            options = [described["cam_layer"]["name"] if option == "LAYER" else option for option in options]
            if title == "input" and model.stem == "steering":
                continue  # one output: there is nothing to name
            exported = folder / "exported.onnx"
            where = f"{model.stem}, {title}"
            try:
                ouzel("export", model, "-o", exported, *options, *SAVED.get(title, []), "--quiet")
                check_file(exported)
                runtime = session(exported, 1)
                errors = {"attribution": [], "heatmap": [], "heatmap that Ouzel reads": [], "attribution in tract": []}
                for batch in [1, 3]:
                    x = random.random((batch, *map(int, shape)), np.float32)
                    np.save(folder / "x.npy", x)
                    feeds = {runtime.get_inputs()[0].name: x}
                    asked = options
                    if title == "input":
                        feeds["target"] = np.arange(batch, dtype=np.int64) % 2
                        asked = ["--class", "0"]
                    names = [output.name for output in runtime.get_outputs()]
                    found = dict(zip(names, runtime.run(None, feeds)))
                    arrays = ["--raw-npy", folder / "raw.npy", "--npy", folder / "map.npy"]
                    ouzel("explain", model, folder / "x.npy", *asked, *arrays, "--quiet")
                    raw, maps = np.load(folder / "raw.npy"), np.load(folder / "map.npy")
                    maps = maps if batch > 1 else maps[None]
                    pairs = [("attribution", found["attribution"], raw), ("heatmap", found["heatmap"], maps)]
                    if title != "input":
                        out = ["--output", "heatmap", "--out-dir", folder / "own"]
                        ouzel("predict", exported, folder / "x.npy", *out, "--quiet")
                        own = np.load(folder / "own" / "heatmap.npy")
                        pairs.append(("heatmap that Ouzel reads", own, found["heatmap"]))
                    if title in IN_TRACT:
                        pairs.append(("attribution in tract", run_tract(exported, x), raw))
                    for name, a, b in pairs:
                        rows = range(0, batch, 2) if title == "input" else range(batch)
                        errors[name] += [relative(a[row], b[row]) for row in rows]
                    ran += 1
                # A near tie at a Relu may fall on the other side in any two programs that round differently, and moves a
                # gradient by about 1e-3: hence the second-smallest error. Among many variants, some tie nearly.
                limit = 1e-3 if "--samples" in options or "--steps" in options else 1e-5
                for name, of_samples in errors.items():
                    if of_samples and (sorted(of_samples)[1] > limit or max(of_samples) > 5e-2):
                        shown = ", ".join(f"{error:.1e}" for error in of_samples)
                        failures.append(f"{where}: {name} differs by {shown}")
            except Exception as error:
                failures.append(f"{where}: {str(error).strip().splitlines()[0][:400]}")
    print(f"networks here: {ran} runs compared")


def check_readme(failures, folder):
    """Runs the Python of the README on a network that fits it."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array(random.normal(0, 0.5, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["conv1"], strides=[4, 4]),
        helper.make_node("Relu", ["conv1"], ["relu1"]),
        helper.make_node("GlobalAveragePool", ["relu1"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w2"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in [("input", ["n", 3, 224, 224]), ("logits", ["n", 5])]
    ]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], [weight("w1", 4, 3, 4, 4), weight("w2", 4, 5)])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "network.onnx")
    ouzel("export", folder / "network.onnx", "-o", folder / "explainer.onnx", "--quiet")
    np.save(folder / "pictures.npy", random.random((2, 3, 224, 224), np.float32))
    section = (ROOT / "README.md").read_text().split("## Explanations without Ouzel")[1]
    code = section.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    if done.returncode or "(2, 3, 224, 224) (2, 224, 224)" not in done.stdout:
        failures.append(f"the README's Python: {done.stdout} {done.stderr}")
    print("the README's Python runs")


def check_torch(name, failures, folder, times):
    """A network of torchvision: truth, growth and time."""
    import numpy as np
    import torch

    sys.path.insert(0, str(ROOT / "conformance"))
    from truth import torch_network

    network, size = torch_network(name)
    model, exported = folder / f"{name}.onnx", folder / f"{name}.explainer.onnx"
    axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
    names = {"input_names": ["input"], "output_names": ["logits"], "dynamic_axes": axes}
    torch.onnx.export(network, (torch.randn(1, 3, size, size),), model, opset_version=17, dynamo=False, **names)
    ouzel("export", model, "-o", exported, "--quiet")
    check_file(exported)
    growth = exported.stat().st_size / model.stat().st_size - 1
    torch.manual_seed(1)
    inputs = torch.randn(5, 3, size, size)

    def gradient(x):
        x = x.clone().requires_grad_()
        y = network(x)
        y.max(1).values.sum().backward()
        return x.grad.numpy()

    single = np.concatenate([gradient(x[None]) for x in inputs])
    network.double()
    double = np.concatenate([gradient(x[None].double()) for x in inputs])
    runtime = session(exported)
    run = lambda x: runtime.run(["attribution"], {"input": x.numpy()})[0]
    by_batch = {1: np.concatenate([run(x[None]) for x in inputs]), 3: np.concatenate([run(inputs[:3]), run(inputs[2:])[1:]])}
    errors = lambda found: sorted(relative(a, b) for a, b in zip(found, double))
    own = errors(single)
    limit = max(4 * own[1], 1e-5)
    text = []
    for batch, found in by_batch.items():
        error = errors(found)
        text.append(f"batch {batch} {error[1]:.1e}")
        if error[1] > limit or error[-1] > 5e-2:
            failures.append(f"{name}, batch {batch}: errors {error}, PyTorch's own {own}")
    ratio = ""
    if times:
        x = inputs[:1].numpy()
        forward = session(model)

        def least(runtime, outputs):
            taken = []
            for _ in range(times):
                start = time.perf_counter()
                runtime.run(outputs, {"input": x})
                taken.append(time.perf_counter() - start)
            return min(taken) * 1e3

        both = least(forward, None), least(runtime, ["logits", "heatmap"])
        ratio = f", {both[0]:.1f} ms forward, {both[1]:.1f} ms explained: {both[1] / both[0]:.2f} times"
    print(f"{name:<20} {', '.join(text)} (PyTorch {own[1]:.1e}); grew by {100 * growth:.2f} %{ratio}", flush=True)


def main():
    global OUZEL
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", metavar="NAME", help="networks of torchvision instead")
    parser.add_argument("--times", type=int, default=10, help="runs that times are the least of; 0: no times")
    parser.add_argument("--keep", type=pathlib.Path, help="where exported networks are left")
    parser.add_argument("--ouzel", type=pathlib.Path, default=OUZEL, help="the binary that is checked")
    typed = parser.parse_args()
    in_own_environment(["onnx", "onnxruntime"] if typed.networks else ["onnx", "onnxruntime", "tract"])
    OUZEL = typed.ouzel.resolve()
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        folder = typed.keep or pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if typed.networks is None:
            check_ops(failures)
            check_networks(failures, folder)
            check_readme(failures, folder)
        for name in typed.networks or []:
            try:
                check_torch(name, failures, folder, typed.times)
            except Exception as error:
                failures.append(f"{name}: {str(error).strip().splitlines()[0][:400]}")
                print(failures[-1], flush=True)
    for failure in failures:
        print(f"FAILED {failure}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
