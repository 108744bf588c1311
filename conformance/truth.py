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
     above 5e-2. Where most inputs meet such a tie, as in VGG-16 (13 million activations, 13 of 20 inputs in PyTorch
     itself), five inputs are a matter of luck: give it --inputs 20.

Exits with 1 if a check fails.
"""

import argparse
import collections
import math
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
INPUTS = 5
CALIBRATION = 8  # pictures that the statistics of batch normalization are taken from

# Ops whose attributes are float32 in the file and double in the framework's own double precision.
ROUNDED = {"BatchNormalization", "Elu", "HardSigmoid", "HardSwish", "LayerNormalization", "LeakyRelu", "Selu"}

# What a framework gives: the exported file, the tensor of logits, inputs, target classes, and gradients.
Truth = collections.namedtuple("Truth", "model logits inputs classes float64 float32")


def torch_network(name):
    """A network of torchvision with He weights and the statistics of random pictures, and the size of its pictures."""
    import torch
    import torchvision

    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None)
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
            module.momentum = 1.0  # the statistics of the last batch
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    size = 299 if name == "inception_v3" else 224
    with torch.no_grad():
        network.train()(torch.randn(CALIBRATION, 3, size, size))
    return network.eval(), size


def torch_truth(name, folder, count=INPUTS):
    import torch

    torch.set_num_threads(1)
    network, size = torch_network(name)
    inputs = [torch.randn(1, 3, size, size) for _ in range(count)]

    model = folder / "model.onnx"
    torch.onnx.export(
        network,
        (inputs[0],),
        model,
        input_names=["input"],
        output_names=["logits"],
        opset_version=17,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )

    def gradient(x, target):
        x = x.clone().requires_grad_()
        network(x)[0, target].backward()
        return x.grad.numpy()

    network.double()
    with torch.no_grad():
        classes = [network(x.double())[0].argmax().item() for x in inputs]
    float64 = [gradient(x.double(), target) for x, target in zip(inputs, classes)]
    network.float()
    float32 = [gradient(x, target) for x, target in zip(inputs, classes)]
    return Truth(model, "logits", [x.numpy() for x in inputs], classes, float64, float32)


def keras_truth(name, folder, count=INPUTS):
    import tensorflow as tf
    import tf2onnx
    import tf2onnx.optimizer
    import tf_keras as keras  # Keras 2, whose batch normalization stays an operator of its own

    tf.config.threading.set_intra_op_parallelism_threads(1)
    # Would fold batch normalization into convolutions.
    tf2onnx.optimizer._get_optimizers().pop("remove_back_to_back", None)
    random = np.random.default_rng(0)

    def build(floats):
        keras.mixed_precision.set_global_policy(floats)
        return getattr(keras.applications, name)(weights=None, classifier_activation=None)

    network = build("float32")
    for layer in network.layers:
        for weight in layer.weights:
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
    network(random.standard_normal((CALIBRATION, *shape), dtype=np.float32), training=True)
    inputs = [random.standard_normal((1, *shape), dtype=np.float32) for _ in range(count)]

    model = folder / "model.onnx"
    signature = [tf.TensorSpec((None, *shape), tf.float32, name="input")]
    function = tf.function(lambda x: network(x, training=False), input_signature=signature)
    proto, _ = tf2onnx.convert.from_function(function, signature, opset=17, output_path=str(model))
    logits = proto.graph.output[0].name

    def gradient(network, x, target):
        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = network(x, training=False)[0, target]
        return tape.gradient(y, x).numpy()

    wide = build("float64")
    for to, weight in zip(wide.weights, network.weights, strict=True):
        to.assign(weight.numpy().astype(np.float64))
    classes = [int(np.argmax(wide(x.astype(np.float64), training=False)[0])) for x in inputs]
    float64 = [gradient(wide, x.astype(np.float64), target) for x, target in zip(inputs, classes)]
    float32 = [gradient(network, x, target) for x, target in zip(inputs, classes)]
    return Truth(model, logits, inputs, classes, float64, float32)


def ouzel(command, model, layer, x, filters, precision="f32", more=()):
    """Ouzel's gradients for an input: one, or N if the filters are topN; `more` options choose other attributions."""
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        np.save(folder / "input.npy", x)
        target = ["--layer", layer, "--filters", str(filters), "--grad-modifier", "none", *more]
        out = ["--precision", precision, "--raw-npy", str(folder / "gradient.npy")]
        subprocess.run([command, "explain", model, folder / "input.npy", *target, *out, "--quiet"], check=True)
        # gradient.npy, or gradient_1.npy to gradient_N.npy
        files = sorted(folder.glob("gradient*.npy"), key=lambda file: (len(file.name), file.name))
        return [np.load(file) for file in files]


def relative(ours, theirs):
    return float(np.linalg.norm(ours.astype(np.float64) - theirs) / np.linalg.norm(theirs))


def errors(command, truth, precision):
    """How far Ouzel's gradients of the inputs are from the framework's in float64."""
    pairs = zip(truth.inputs, truth.classes, strict=True)
    ours = [ouzel(command, truth.model, truth.logits, x, target, precision)[0] for x, target in pairs]
    return [relative(a, b) for a, b in zip(ours, truth.float64, strict=True)]


def check(name, command, count):
    """A line of the table, and whether both checks hold."""
    import onnx

    started = time.time()
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        is_keras = name.startswith("keras:")
        make = keras_truth if is_keras else torch_truth
        truth = make(name.removeprefix("keras:"), folder, count)
        ops = collections.Counter(node.op_type for node in onnx.load(truth.model).graph.node)
        exact = errors(command, truth, "f64")
        engine = sorted(errors(command, truth, "f32"))
    quartile = (count - 1) // 4
    own = sorted(relative(a, b) for a, b in zip(truth.float32, truth.float64))
    exact_limit = 1e-6 if ROUNDED & ops.keys() else 1e-9
    engine_limit = max(4 * own[quartile], 1e-5)
    passed = max(exact) <= exact_limit and engine[quartile] <= engine_limit and engine[-1] <= 5e-2
    line = (
        f"{name:<22} {ops['BatchNormalization']:>4} {max(exact):>9.1e} {exact_limit:>7.0e}"
        f" {engine[quartile]:>9.1e} {engine_limit:>8.1e} {engine[-1]:>9.1e} {own[quartile]:>9.1e} {own[-1]:>9.1e}"
        f" {'passed' if passed else 'FAILED'} {time.time() - started:>5.0f}s"
    )
    return line, passed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["resnet18", "mobilenet_v2", "keras:MobileNet"])
    parser.add_argument("--inputs", type=int, default=INPUTS, help="how many inputs (default: %(default)s)")
    parser.add_argument("--ouzel", default=str(ROOT / "target" / "release" / "ouzel"), help="the program")
    arguments = parser.parse_args()
    print(f"{'':<27} {'(a) float64':>17} {'(b) float32 against float64':>28} {'framework float32':>19}")
    print(
        f"{'network':<22} {'BN':>4} {'worst':>9} {'limit':>7} {'quartile':>9} {'limit':>8} {'worst':>9}"
        f" {'quartile':>9} {'worst':>9}"
    )
    failed = False
    for name in arguments.networks:
        line, passed = check(name, arguments.ouzel, arguments.inputs)
        print(line, flush=True)
        failed |= not passed
    sys.exit(failed)


if __name__ == "__main__":
    main()
