"""Golden data for DeepLIFT by its authors' own package: a small network of convolutions and dense layers.

    python conformance/deeplift_golden.py     # writes conformance/golden/deeplift_small/

Needs deeplift 0.6.13 (`pip install --no-deps deeplift pyyaml`), TensorFlow, of which it uses the version 1 functions, and
onnx. The network is made of random numbers and is written both as the package's layers and as an ONNX file.
"""

import pathlib
import sys

import golden_cases
import numpy as np
import onnx
import tensorflow
from onnx import helper, numpy_helper

sys.modules["tensorflow"] = tensorflow.compat.v1
tensorflow.compat.v1.disable_v2_behavior()

from deeplift import layers, models  # noqa: E402

FOLDER = pathlib.Path(__file__).resolve().parent / "golden" / "deeplift_small"
MODES = {"Rescale": layers.NonlinearMxtsMode.Rescale, "RevealCancel": layers.NonlinearMxtsMode.RevealCancel}


def weights():
    random = np.random.default_rng(7)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "conv1.w": 0.4 * normal(4, 2, 3, 3),
        "conv1.b": 0.3 * normal(4),
        "conv2.w": 0.3 * normal(5, 4, 3, 3),
        "conv2.b": 0.3 * normal(5),
        "dense1.w": 0.3 * normal(45, 6),
        "dense1.b": 0.3 * normal(6),
        "dense2.w": 0.5 * normal(6, 3),
        "dense2.b": 0.3 * normal(3),
    }, normal(2, 2, 7, 7)


def as_onnx(w):
    nodes = [
        helper.make_node("Conv", ["input", "conv1.w", "conv1.b"], ["conv1"]),
        helper.make_node("Relu", ["conv1"], ["relu1"]),
        helper.make_node("Conv", ["relu1", "conv2.w", "conv2.b"], ["conv2"]),
        helper.make_node("Sigmoid", ["conv2"], ["sigmoid2"]),
        helper.make_node("Flatten", ["sigmoid2"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense1.w", "dense1.b"], ["dense1"]),
        helper.make_node("Relu", ["dense1"], ["relu3"]),
        helper.make_node("Gemm", ["relu3", "dense2.w", "dense2.b"], ["scores"]),
    ]
    value = lambda name, shape: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)  # noqa: E731
    constants = [numpy_helper.from_array(array, name) for name, array in w.items()]
    graph = helper.make_graph(
        nodes, "deeplift_small", [value("input", ["N", 2, 7, 7])], [value("scores", ["N", 3])], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def as_layers(w, mode):
    """The same network, with channels last."""
    mode = MODES[mode]
    conv = lambda name: layers.Conv2D(  # noqa: E731
        kernel=w[f"{name}.w"].transpose(2, 3, 1, 0),
        bias=w[f"{name}.b"],
        strides=(1, 1),
        padding="VALID",
        data_format="channels_last",
        conv_mxts_mode=layers.ConvMxtsMode.Linear,
    )
    dense = lambda kernel, bias: layers.Dense(  # noqa: E731
        kernel=kernel, bias=bias, dense_mxts_mode=layers.DenseMxtsMode.Linear
    )
    channels_first = w["dense1.w"].reshape(5, 3, 3, 6)
    sequence = [
        layers.Input(batch_shape=(None, 7, 7, 2)),
        conv("conv1"),
        layers.ReLU(nonlinear_mxts_mode=mode),
        conv("conv2"),
        layers.Sigmoid(nonlinear_mxts_mode=mode),
        layers.Flatten(),
        dense(channels_first.transpose(1, 2, 0, 3).reshape(45, 6), w["dense1.b"]),
        layers.ReLU(nonlinear_mxts_mode=mode),
        dense(w["dense2.w"], w["dense2.b"]),
    ]
    for before, layer in zip(sequence, sequence[1:]):
        layer.set_inputs(before)
    sequence[-1].build_fwd_pass_vars()
    return models.SequentialModel(sequence)


def main():
    w, inputs = weights()
    FOLDER.mkdir(parents=True, exist_ok=True)
    onnx.save(as_onnx(w), FOLDER / "model.onnx")
    inputs[1] *= 0.5
    np.save(FOLDER / "input_0.npy", inputs[:1])
    np.save(FOLDER / "baseline.npy", inputs[1:])
    cases = []
    last = lambda x: x.transpose(0, 2, 3, 1)  # noqa: E731
    for mode in MODES:
        network = as_layers(w, mode)
        contributions = network.get_target_contribs_func(find_scores_layer_idx=0, target_layer_idx=-1)
        for baseline in ("zeros", "baseline.npy"):
            reference = inputs[1:] if baseline != "zeros" else np.zeros_like(inputs[1:])
            for target in (0, 2):
                found = contributions(
                    task_idx=target,
                    input_data_list=[last(inputs[:1])],
                    input_references_list=[last(reference)],
                    batch_size=1,
                    progress_update=None,
                )
                found = np.asarray(found, np.float32).transpose(0, 3, 1, 2)
                name = f"d{len(cases):03}"
                np.save(FOLDER / f"{name}.npy", found)
                more = {"arguments": {"baseline": baseline}}
                cases.append(golden_cases.case(name, "deeplift", mode, target, found, 1e-5, **more))
    about = "random weights, as layers of the package deeplift and as an ONNX file"
    peers = {"deeplift": f"deeplift 0.6.13 (TensorFlow {tensorflow.__version__})"}
    golden_cases.write(FOLDER, about, peers, cases)


if __name__ == "__main__":
    main()
