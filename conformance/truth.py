"""Compares Ouzel's input gradients of whole networks with those of the framework that the network was exported from.

    pip install -r conformance/requirements.txt
    cargo build --release
    python conformance/truth.py                                  # ResNet-18 and MobileNet-V2 of torchvision, MobileNet of Keras
    python conformance/truth.py vgg16 densenet121 keras:ResNet50   # any others, by their name in the library

Run by hand: it needs the frameworks, and minutes. Networks have random (He) weights; the statistics of batch
normalization are those of random pictures; the export keeps batch normalization as its own operator. The target is the
largest logit of each of five random inputs (or as many as --inputs says). Two checks, so that an error is not hidden by rounding:

 (a) rules and graph: `--precision f64` against the framework in float64, relative L2 error at most 1e-9, or 1e-6 where
     constants that the file stores in float32 enter (epsilons, slopes), for each input;
 (b) engine: float32 against the framework in float64. One near tie in a ReLU or a maximum that falls on the other side
     moves a deep network's gradient by 1e-3 to 1e-2 in any correct float32 program, so the lower quartile of the
     errors, of five inputs the second-smallest, is compared: at most max(4 x the framework's own, 1e-5); and no error is
     above max(5e-2, 2 x the framework's own). Where most inputs meet such a tie, as in VGG-16 (13 million activations,
     13 of 20 inputs in PyTorch itself), five inputs are a matter of luck: give it --inputs 20. Of these the means are
     compared where most inputs meet a tie in the framework itself, since there a tie more or less moves any quantile
     from 1e-6 to 1e-2.

Exits with 1 if a check fails.
"""

import argparse
import collections
import contextlib
import math
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
INPUTS = 5
TIE = 1e-4  # an error that only a near tie on the way makes of float32's rounding errors
CALIBRATION = 8  # pictures that the statistics of batch normalization are taken from

# Ops whose attributes are float32 in the file and double in the framework's own double precision.
ROUNDED = {"BatchNormalization", "Elu", "HardSigmoid", "HardSwish", "LayerNormalization", "LeakyRelu", "Selu"}

# What a framework gives: the exported file, the tensor of logits, inputs, target classes, and gradients.
Truth = collections.namedtuple("Truth", "model logits inputs classes float64 float32")


def torch_network(name):
    """A network of torchvision with random weights, and the size of its pictures."""
    import torch
    import torchvision

    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None)
    size = 299 if name == "inception_v3" else 224
    return torch_randomized(network, (3, size, size)), size


def torch_randomized(network, shape, count=CALIBRATION):
    """The network with He weights, noise on parameters of other kinds, and the statistics of random inputs.

    Single numbers of its modules, as epsilons and scales, are rounded to float32, in which files have them.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.conv import _ConvNd

    touched, norms = set(), []
    for module in network.modules():
        for name, value in vars(module).items():
            if type(value) is float:
                setattr(module, name, float(np.float32(value)))
        if isinstance(module, (_ConvNd, torch.nn.Linear)):
            torch.nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, _BatchNorm):
            if module.affine:
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.1)
            norms.append(module)
        else:
            continue
        touched.update(map(id, module.parameters(recurse=False)))
    # Position embeddings, scales of layers that begin at nearly zero, and the like.
    for parameter in network.parameters():
        if id(parameter) not in touched and parameter.is_floating_point():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    network.eval()
    for norm in norms:
        norm.momentum = 1.0  # the statistics of the last batch
        norm.train()
    if norms:
        with torch.no_grad():
            network(torch.randn(count, *shape))
    return network.eval()


@contextlib.contextmanager
def torch_batch_norm_on_whole_rows():
    """Hands batch normalization its cotangents in row-major order.

    PyTorch 2.15 on CPUs, of a batch of one whose cotangent is a transposed one, as behind `x.flatten(2).transpose(1, 2)`,
    computes another gradient, which its own finite differences contradict.
    """
    import torch

    own = torch.nn.functional.batch_norm

    def batch_norm(*arguments, **options):
        y = own(*arguments, **options)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient.contiguous())
        return y

    torch.nn.functional.batch_norm = batch_norm
    try:
        yield
    finally:
        torch.nn.functional.batch_norm = own


@torch_batch_norm_on_whole_rows()
def torch_gradients(network, inputs):
    """Of each input: the class of the highest score, its input gradient in float64 and float32, and the scores.

    Scores are the first output; where they have positions, a class is the mean over them.
    """
    import torch

    def scores(x):
        y = network(x)
        return y[0] if isinstance(y, (tuple, list)) else y

    def gradient(x, target):
        x = x.clone().requires_grad_()
        scores(x)[0, target].mean().backward()
        return x.grad.numpy()

    network.double().requires_grad_(False)
    with torch.no_grad():
        outputs = [scores(x.double()) for x in inputs]
    classes = [y.reshape(y.shape[1], -1).mean(1).argmax().item() for y in outputs]
    float64 = [gradient(x.double(), target) for x, target in zip(inputs, classes)]
    network.float()
    float32 = [gradient(x, target) for x, target in zip(inputs, classes)]
    # Without gradients, attention would take a path that the exporter that traces does not know.
    network.requires_grad_(True)
    return classes, float64, float32, [y.numpy() for y in outputs]


def torch_traced(network, x, model, **options):
    """Exports with PyTorch's exporter that traces."""
    import torch

    torch.onnx.export(network, (x,), model, opset_version=17, dynamo=False, **options)


def torch_unfused(network, x, model, **options):
    """Exports with PyTorch's exporter that traces, which leaves batch normalization alone if it is told to."""
    import torch

    # What training is preserved of is a network that evaluates.
    options |= {"training": torch.onnx.TrainingMode.PRESERVE}
    try:
        torch_traced(network, x, model, do_constant_folding=False, **options)
    except torch.onnx.errors.SymbolicValueError:  # it needs a size that it finds by folding
        torch_traced(network, x, model, **options)


def torch_truth(name, folder, count=INPUTS):
    import torch

    torch.set_num_threads(1)
    network, size = torch_network(name)
    inputs = [torch.randn(1, 3, size, size) for _ in range(count)]
    model = folder / "model.onnx"
    torch_unfused(network, inputs[0], model, input_names=["input"], output_names=["logits"])
    classes, float64, float32, _ = torch_gradients(network, inputs)
    return Truth(model, "logits", [x.numpy() for x in inputs], classes, float64, float32)


def keras_single(value):
    """A number in double precision, or some, as float32 has it; anything else as it is."""
    array = None if isinstance(value, str) or value is None else np.asarray(value)
    if array is None or array.dtype != np.float64:
        return value
    rounded = array.astype(np.float32).astype(np.float64)
    return rounded if array.ndim else rounded.item()


def keras_network(keras, name, count=CALIBRATION, **arguments):
    """A network of Keras 2 or 3 with random weights and the statistics of random pictures, and the same in float64.

    Single numbers of its layers are rounded to float32, in which files have them.
    """
    random = np.random.default_rng(0)

    def build(floats):
        keras.mixed_precision.set_global_policy(floats)
        keras.backend.set_floatx(floats)  # of the input, through which the gradient comes out
        network = getattr(keras.applications, name)(weights=None, classifier_activation=None, **arguments)
        for layer in network._flatten_layers(include_self=False):
            for attribute in {"epsilon", "scale", "offset", "mean"} & set(vars(layer)):
                setattr(layer, attribute, keras_single(getattr(layer, attribute)))
            if isinstance(layer, keras.layers.Normalization):  # TensorFlow multiplies by what it should divide by
                factor = 1 / np.sqrt(np.asarray(layer.variance).astype(np.float32))
                layer.variance = (1 / factor.astype(np.float64) ** 2).astype(floats)
            for node in layer._inbound_nodes:
                if hasattr(node, "_flat_arguments"):  # what Keras 2 calls a function of TensorFlow with
                    node._flat_arguments = [a if hasattr(a, "shape") else keras_single(a) for a in node._flat_arguments]
        return network

    network = build("float32")
    for layer in network._flatten_layers(include_self=False):
        for weight in layer.weights if not hasattr(layer, "layers") else []:
            shape = tuple(weight.shape)
            kind = weight.name.rpartition("/")[2].removesuffix(":0")
            if kind.endswith("kernel"):
                fan_in = math.prod(shape[:2] if kind == "depthwise_kernel" else shape[:-1])
                weight.assign(random.normal(0, math.sqrt(2 / fan_in), shape))
            elif kind == "gamma":
                weight.assign(random.uniform(0.5, 1.5, shape))
            elif kind in ("beta", "bias"):
                weight.assign(random.normal(0, 0.1, shape))
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the statistics of the last batch
    shape = network.input_shape[1:]
    network(random.standard_normal((count, *shape), dtype=np.float32), training=True)
    wide = build("float64")
    for to, weight in zip(wide.weights, network.weights, strict=True):
        to.assign(np.asarray(weight).astype(np.float64))
    keras.mixed_precision.set_global_policy("float32")
    keras.backend.set_floatx("float32")
    return network, wide


def keras_gradients(network, wide, inputs):
    """What torch_gradients gives, of a network of Keras."""
    import tensorflow as tf

    def gradient(network, x, target):
        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = network(x, training=False)[0, target]
        return tape.gradient(y, x).numpy()

    outputs = [np.asarray(wide(x.astype(np.float64), training=False)) for x in inputs]
    classes = [int(np.argmax(y[0])) for y in outputs]
    float64 = [gradient(wide, x.astype(np.float64), target) for x, target in zip(inputs, classes)]
    float32 = [gradient(network, x, target) for x, target in zip(inputs, classes)]
    return classes, float64, float32, outputs


def keras_export(network, model):
    """Exports as tf2onnx does."""
    import tensorflow as tf
    import tf2onnx

    signature = [tf.TensorSpec((None, *network.input_shape[1:]), tf.float32, name="input")]
    function = tf.function(lambda x: network(x, training=False), input_signature=signature)
    tf2onnx.convert.from_function(function, signature, opset=17, output_path=str(model))


def keras_unfused():
    """From now on batch normalization stays as it is when tf2onnx exports."""
    import tf2onnx.optimizer

    tf2onnx.optimizer._get_optimizers().pop("remove_back_to_back", None)


def keras_truth(name, folder, count=INPUTS):
    import onnx
    import tensorflow as tf
    import tf_keras  # Keras 2, whose batch normalization stays an operator of its own

    tf.config.threading.set_intra_op_parallelism_threads(1)
    network, wide = keras_network(tf_keras, name)
    random = np.random.default_rng(1)
    inputs = [random.standard_normal((1, *network.input_shape[1:]), dtype=np.float32) for _ in range(count)]
    model = folder / "model.onnx"
    keras_unfused()
    keras_export(network, model)
    classes, float64, float32, _ = keras_gradients(network, wide, inputs)
    return Truth(model, onnx.load(model).graph.output[0].name, inputs, classes, float64, float32)


class Refused(Exception):
    """What Ouzel said instead of doing it."""


def run(command, *arguments):
    done = subprocess.run([command, *map(str, arguments), "--quiet"], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise Refused(" ".join(done.stderr.split()) or f"it ended with {done.returncode}")


def ouzel(command, model, layer, x, filters, precision="f32", more=()):
    """Ouzel's gradients for an input: one, or N if the filters are topN; `more` options choose other attributions."""
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        np.save(folder / "input.npy", x)
        target = ["--layer", layer, "--filters", str(filters), "--grad-modifier", "none", *more]
        out = ["--precision", precision, "--raw-npy", str(folder / "gradient.npy")]
        run(command, "explain", model, folder / "input.npy", *target, *out)
        # gradient.npy, or gradient_1.npy to gradient_N.npy
        files = sorted(folder.glob("gradient*.npy"), key=lambda file: (len(file.name), file.name))
        return [np.load(file) for file in files]


def relative(ours, theirs):
    distance = np.linalg.norm(ours.astype(np.float64) - theirs)
    return float(distance / np.linalg.norm(theirs)) if distance else 0.0


def errors(command, truth, precision):
    """How far Ouzel's gradients of the inputs are from the framework's in float64."""
    pairs = zip(truth.inputs, truth.classes)
    ours = [ouzel(command, truth.model, truth.logits, x, target, precision)[0] for x, target in pairs]
    return [relative(a, b) for a, b in zip(ours, truth.float64)]


def exact_limit(model):
    """How far float64 may be off: more where the file has rounded single numbers that the framework has in double precision."""
    import onnx.numpy_helper

    def roundings(tensor):
        if math.prod(tensor.dims) == 1:
            value = abs(onnx.numpy_helper.to_array(tensor).item()) if tensor.data_type in (1, 10) else 0
            if tensor.data_type == onnx.TensorProto.FLOAT and value != float(np.float16(value)) and value < 1e4:
                yield 1e-6
            if tensor.data_type == onnx.TensorProto.FLOAT16 and value * 256 % 1:
                yield 2e-3

    nodes = model.graph.node
    constants = [attribute.t for node in nodes if node.op_type == "Constant" for attribute in node.attribute]
    scalars = [tensor for tensor in model.graph.initializer if not tensor.external_data]
    limits = [limit for tensor in constants + scalars for limit in roundings(tensor)]
    return max([1e-6 if any(node.op_type in ROUNDED for node in nodes) else 1e-9, *limits])


# Both checks of a network: errors and what they may be. Those of float32 are summed up by their lower quartile or mean.
Verdict = collections.namedtuple("Verdict", "exact exact_limit engine engine_limit worst own own_worst passed")


def verdict(exact, engine, own, exact_limit):
    """What the errors of Ouzel in float64 and float32, and of the framework in float32, amount to."""
    most_meet_ties = len(own) > INPUTS and np.median(own) > TIE
    summary = np.mean if most_meet_ties else lambda errors: sorted(errors)[(len(errors) - 1) // 4]
    ours, theirs = float(summary(engine)), float(summary(own))
    # What single numbers were rounded to counts for float32 too.
    limit = max(4 * theirs, 1e-5, 2 * max(exact) if exact_limit > 1e-6 else 0)
    passed = max(exact) <= exact_limit and ours <= limit and max(engine) <= max(5e-2, 2 * max(own))
    return Verdict(max(exact), exact_limit, ours, limit, max(engine), theirs, max(own), bool(passed))


def check(name, command, count):
    """A line of the table, and whether both checks hold."""
    import onnx

    started = time.time()
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        is_keras = name.startswith("keras:")
        make = keras_truth if is_keras else torch_truth
        truth = make(name.removeprefix("keras:"), folder, count)
        model = onnx.load(truth.model)
        exact = errors(command, truth, "f64")
        engine = errors(command, truth, "f32")
    own = [relative(a, b) for a, b in zip(truth.float32, truth.float64)]
    found = verdict(exact, engine, own, exact_limit(model))
    norms = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    line = (
        f"{name:<22} {norms:>4} {found.exact:>9.1e} {found.exact_limit:>7.0e}"
        f" {found.engine:>9.1e} {found.engine_limit:>8.1e} {found.worst:>9.1e} {found.own:>9.1e} {found.own_worst:>9.1e}"
        f" {'passed' if found.passed else 'FAILED'} {time.time() - started:>5.0f}s"
    )
    return line, found.passed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["resnet18", "mobilenet_v2", "keras:MobileNet"])
    parser.add_argument("--inputs", type=int, default=INPUTS, help="how many inputs (default: %(default)s)")
    parser.add_argument("--ouzel", default=str(ROOT / "target" / "release" / "ouzel"), help="the program")
    arguments = parser.parse_args()
    print(f"{'':<27} {'(a) float64':>17} {'(b) float32 against float64':>28} {'framework float32':>19}")
    print(
        f"{'network':<22} {'BN':>4} {'worst':>9} {'limit':>7} {'summary':>9} {'limit':>8} {'worst':>9}"
        f" {'summary':>9} {'worst':>9}"
    )
    failed = False
    for name in arguments.networks:
        line, passed = check(name, arguments.ouzel, arguments.inputs)
        print(line, flush=True)
        failed |= not passed
    sys.exit(failed)


if __name__ == "__main__":
    main()
