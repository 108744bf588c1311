"""Writes the small models that the tests of the command line run on.

Needs onnx and numpy: python make.py writes NAME.onnx for each function of this file into its folder.
"""

import pathlib

import numpy as np
from onnx import TensorProto, checker, external_data_helper, helper, load, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
random = np.random.default_rng(0)


def weights(name, *shape, values=None):
    array = random.normal(0, 0.5, shape) if values is None else np.array(values).reshape(shape)
    return numpy_helper.from_array(array.astype(np.float32), name)


def value(name, shape, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, inputs, outputs, initializers=(), metadata=None, domains=()):
    graph = helper.make_graph(nodes, "test", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="make.py")
    if metadata:
        helper.set_model_props(made, metadata)
    return made


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs, [output], name=attributes.pop("name", output), **attributes)


def classifier():
    """Pictures of 8 x 8 in three classes, which have labels."""
    nodes = [
        node("Conv", ["x", "w1", "b1"], "conv1", pads=[1, 1, 1, 1]),
        node("Relu", ["conv1"], "relu1"),
        node("GlobalAveragePool", ["relu1"], "pooled"),
        node("Flatten", ["pooled"], "flat"),
        node("Gemm", ["flat", "w2", "b2"], "logits"),
        node("Softmax", ["logits"], "probabilities", axis=1),
    ]
    initializers = [weights("w1", 4, 3, 3, 3), weights("b1", 4), weights("w2", 4, 3), weights("b2", 3)]
    return model(
        nodes,
        [value("x", ["batch", 3, 8, 8])],
        [value("probabilities", ["batch", 3])],
        initializers,
        {"labels.probabilities": "cat,dog,barn owl"},
    )


def quantized():
    """Bytes between a convolution and a dense layer."""
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], "bytes"),
        node("DequantizeLinear", ["bytes", "scale", "zero"], "rounded"),
        node("Conv", ["rounded", "w1"], "conv"),
        node("Relu", ["conv"], "relu"),
        node("QuantizeLinear", ["relu", "scale", "zero"], "more_bytes"),
        node("DequantizeLinear", ["more_bytes", "scale", "zero"], "more_rounded"),
        node("GlobalAveragePool", ["more_rounded"], "pooled"),
        node("Flatten", ["pooled"], "flat"),
        node("Gemm", ["flat", "w2"], "logits"),
    ]
    scale = numpy_helper.from_array(np.array(0.05, np.float32), "scale")
    zero = numpy_helper.from_array(np.array(0, np.int8), "zero")
    initializers = [scale, zero, weights("w1", 4, 3, 3, 3), weights("w2", 4, 3)]
    return model(nodes, [value("x", [1, 3, 8, 8])], [value("logits", [1, 3])], initializers)


def spelled_out():
    """LayerNorm, GELU and SiLU in primitives, as exporters write them for old operator sets."""
    constants = {"two": 2, "epsilon": 1e-5, "root2": 2**0.5, "one": 1, "half": 0.5}
    nodes = [
        node("ReduceMean", ["x"], "mean", axes=[-1]),
        node("Sub", ["x", "mean"], "centered"),
        node("Pow", ["centered", "two"], "squares"),
        node("ReduceMean", ["squares"], "variance", axes=[-1]),
        node("Add", ["variance", "epsilon"], "positive"),
        node("Sqrt", ["positive"], "deviation"),
        node("Div", ["centered", "deviation"], "normalized"),
        node("Mul", ["normalized", "scale"], "scaled"),
        node("Add", ["scaled", "bias"], "norm"),
        node("Div", ["norm", "root2"], "inner"),
        node("Erf", ["inner"], "erf"),
        node("Add", ["erf", "one"], "raised"),
        node("Mul", ["norm", "raised"], "doubled"),
        node("Mul", ["doubled", "half"], "gelu"),
        node("Gemm", ["gelu", "w", "b"], "hidden"),
        node("Sigmoid", ["hidden"], "gate"),
        node("Mul", ["hidden", "gate"], "y"),
    ]
    initializers = [weights("scale", 6), weights("bias", 6), weights("w", 6, 4), weights("b", 4)]
    initializers += [weights(name, values=[number]) for name, number in constants.items()]
    return model(nodes, [value("x", ["batch", 6])], [value("y", ["batch", 4])], initializers)


def one_sample():
    """The classifier, with its weights, as an export that takes one sample at a time."""
    made = load(pathlib.Path(__file__).parent / "classifier.onnx")
    flatten = next(node for node in made.graph.node if node.op_type == "Flatten")
    flatten.CopyFrom(node("Reshape", ["pooled", "one_row"], "flat"))
    made.graph.initializer.append(numpy_helper.from_array(np.array([1, 4], np.int64), "one_row"))
    for tensor in [*made.graph.input, *made.graph.output]:
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    return made


def any_size():
    """Grey pictures of any size, two outputs without labels."""
    nodes = [
        node("Conv", ["x", "w1"], "conv1"),
        node("LeakyRelu", ["conv1"], "leaky", alpha=0.1),
        node("GlobalAveragePool", ["leaky"], "pooled"),
        node("Flatten", ["pooled"], "scores"),
    ]
    inputs = [value("x", ["batch", 1, "height", "width"])]
    return model(nodes, inputs, [value("scores", ["batch", 2])], [weights("w1", 2, 1, 3, 3)])


def channels_last():
    """Pictures of 6 x 6 with the channels last, as Keras has them."""
    nodes = [
        node("Transpose", ["x"], "first", perm=[0, 3, 1, 2]),
        node("Conv", ["first", "w1"], "conv1"),
        node("GlobalAveragePool", ["conv1"], "pooled"),
        node("Flatten", ["pooled"], "scores"),
    ]
    return model(nodes, [value("x", ["n", 6, 6, 3])], [value("scores", ["n", 2])], [weights("w1", 2, 3, 3, 3)])


def vector():
    """Five features, one output: y = 2·a - 3·b for positive sums."""
    matrix = [[1, 0], [0, 1], [0, 0], [0, 0], [0, 0]]
    nodes = [
        node("MatMul", ["x", "w1"], "hidden"),
        node("Relu", ["hidden"], "relu"),
        node("MatMul", ["relu", "w2"], "y"),
    ]
    initializers = [weights("w1", 5, 2, values=matrix), weights("w2", 2, 1, values=[2, -3])]
    return model(nodes, [value("x", ["n", 5])], [value("y", ["n", 1])], initializers)


def symmetric():
    """Three features, of which the first two can be exchanged."""
    nodes = [
        node("Gemm", ["x", "w1", "b1"], "hidden"),
        node("Relu", ["hidden"], "relu"),
        node("MatMul", ["relu", "w2"], "y"),
    ]
    initializers = [
        weights("w1", 3, 2, values=[[1, 2], [1, 2], [3, -1]]),
        weights("b1", 2, values=[-1, -0.5]),
        weights("w2", 2, 1, values=[1, 2]),
    ]
    return model(nodes, [value("x", ["n", 3])], [value("y", ["n", 1])], initializers)


def several_inputs():
    """A picture, two numbers under a name with '=' in it, and whole numbers; a weight is listed as an input."""
    nodes = [
        node("Flatten", ["x"], "flat"),
        node("Concat", ["flat", "a=b/speed:0"], "joined", axis=1),
        node("Gemm", ["joined", "w"], "scores"),
        node("Gather", ["table", "words"], "looked_up"),
        node("Add", ["scores", "looked_up"], "sum"),
    ]
    inputs = [
        value("x", ["n", 1, 2, 2]),
        value("a=b/speed:0", ["n", 2]),
        value("words", ["n"], INT64),
        value("w", [6, 2]),
    ]
    initializers = [weights("w", 6, 2, values=range(12)), weights("table", 4, 2, values=range(8))]
    return model(nodes, inputs, [value("sum", ["n", 2])], initializers)


def dead():
    """Its only Relu never fires, so nothing changes the output."""
    nodes = [
        node("Conv", ["x", "w1", "b1"], "conv1"),
        node("Relu", ["conv1"], "relu1"),
        node("GlobalAveragePool", ["relu1"], "pooled"),
        node("Flatten", ["pooled"], "scores"),
    ]
    initializers = [weights("w1", 2, 1, 1, 1, values=[-1, -1]), weights("b1", 2, values=[-1, -1])]
    return model(nodes, [value("x", ["n", 1, 4, 4])], [value("scores", ["n", 2])], initializers)


def nan_weight():
    """One of its weights is not a number."""
    weight = weights("broken", 5, 2, values=[1, 2, 3, np.nan, 5, 6, 7, 8, 9, 10])
    return model([node("MatMul", ["x", "broken"], "y")], [value("x", ["n", 5])], [value("y", ["n", 2])], [weight])


def no_input():
    """A constant."""
    nodes = [node("Neg", ["w"], "y")]
    return model(nodes, [], [value("y", [2])], [weights("w", 2)])


def unsupported():
    """One output depends on ops that nobody knows, the other does not."""
    nodes = [
        node("Relu", ["x"], "known"),
        node("Sparkle", ["x"], "sparkled", domain="fancy", name="first_fancy"),
        node("Glitter", ["sparkled"], "glittered", domain="fancy", name="second_fancy"),
        node("Relu", ["glittered"], "after"),
    ]
    outputs = [value("after", ["n", 2]), value("known", ["n", 2])]
    return model(nodes, [value("x", ["n", 2])], outputs, domains=["fancy"])


def young():
    """An op that operator sets before 17 do not have."""
    nodes = [
        node("LayerNormalization", ["x", "scale", "shift"], "normal", axis=-1),
        node("MatMul", ["normal", "w1"], "y"),
    ]
    initializers = [weights("scale", 5), weights("shift", 5), weights("w1", 5, 3)]
    return model(nodes, [value("x", ["n", 5])], [value("y", ["n", 3])], initializers)


def outside():
    """The classifier with the weights of its convolution in a file of their own, outside.bin."""
    made = load(pathlib.Path(__file__).parent / "classifier.onnx")
    weight = next(tensor for tensor in made.graph.initializer if tensor.name == "w1")
    (pathlib.Path(__file__).parent / "outside.bin").write_bytes(weight.raw_data)
    external_data_helper.set_external_data(weight, "outside.bin")
    weight.ClearField("raw_data")
    return made


def multiple_of_four():
    """Grey pictures of any size, padded below to a multiple of four rows: by how many is a remainder of their height."""
    numbers = {"two": [2], "four": [4], "zero": [0], "before": [0] * 6}
    nodes = [
        node("Shape", ["x"], "shape"),
        node("Gather", ["shape", "two"], "rows"),
        node("Neg", ["rows"], "negative"),
        node("Mod", ["negative", "four"], "missing"),
        node("Concat", ["before", "missing", "zero"], "pads", axis=0),
        node("Pad", ["x", "pads"], "padded"),
        node("Conv", ["padded", "w1"], "conv1", strides=[4, 4]),
        node("Relu", ["conv1"], "relu1"),
        node("GlobalAveragePool", ["relu1"], "pooled"),
        node("Flatten", ["pooled"], "scores"),
    ]
    inputs = [value("x", ["batch", 1, "height", "width"])]
    constants = [numpy_helper.from_array(np.array(values), name) for name, values in numbers.items()]
    return model(nodes, inputs, [value("scores", ["batch", 2])], [*constants, weights("w1", 2, 1, 4, 4)])


if __name__ == "__main__":
    folder = pathlib.Path(__file__).parent
    for make in [
        classifier, any_size, channels_last, vector, symmetric, several_inputs, dead, nan_weight, no_input, unsupported,
        one_sample, spelled_out, young, outside, multiple_of_four, quantized,
    ]:
        made = make()
        if make not in (unsupported, outside):
            checker.check_model(made)
        (folder / f"{make.__name__}.onnx").write_bytes(made.SerializeToString())
