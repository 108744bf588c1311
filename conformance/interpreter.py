"""Quantized networks in PyTorch: the few ops that they are of, with the gradient straight through rounding."""


def network(model):
    """A module that computes the first output of an ONNX model from its only input."""
    import onnx
    import torch
    from onnx import numpy_helper
    from torch.nn import functional

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for index, tensor in enumerate(model.graph.initializer):
                self.register_buffer(f"tensor{index}", torch.from_numpy(numpy_helper.to_array(tensor).copy()))

        def forward(self, x):
            values = {model.graph.input[0].name: x}
            for index, tensor in enumerate(model.graph.initializer):
                values[tensor.name] = getattr(self, f"tensor{index}")
            for node in model.graph.node:
                attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
                inputs = [values.get(name) for name in node.input]
                values[node.output[0]] = OPS[node.op_type](inputs, attributes)
            return values[model.graph.output[0].name]

    def symmetric(pads):
        half = len(pads) // 2
        assert pads[:half] == pads[half:], f"pads that PyTorch does not have: {pads}"
        return pads[:half]

    def convolution(x, attributes):
        window = [attributes["strides"], symmetric(attributes["pads"]), attributes["dilations"]]
        return functional.conv2d(x[0], x[1], x[2] if len(x) > 2 else None, *window, attributes.get("group", 1))

    def max_pool(x, attributes):
        window = [attributes["kernel_shape"], attributes["strides"], symmetric(attributes["pads"])]
        return functional.max_pool2d(x[0], *window, ceil_mode=bool(attributes.get("ceil_mode", 0)))

    def dense(x, attributes):
        assert attributes.get("transB") and attributes.get("alpha", 1) == attributes.get("beta", 1) == 1
        return functional.linear(*x)

    def spread(parameter, x, attributes):
        """A scale or zero point in a shape that broadcasts to that of x."""
        if parameter.numel() == 1:
            return parameter.reshape(())
        shape = [1] * x.dim()
        shape[attributes.get("axis", 1)] = -1
        return parameter.reshape(shape)

    def quantize(x, attributes):
        scaled = x[0] / spread(x[1], x[0], attributes)
        # In this order the sum is the whole number itself, so that the largest one is not beyond the bounds.
        rounded = scaled.detach().round() + (scaled - scaled.detach())
        bounds = torch.iinfo(x[2].dtype)
        shifted = rounded + spread(x[2], x[0], attributes)
        # Numbers at a bound are not beyond it; the gradient of clamp differs between versions of PyTorch.
        inside = (shifted >= bounds.min) & (shifted <= bounds.max)
        return torch.where(inside, shifted, shifted.detach().clamp(bounds.min, bounds.max))

    def dequantize(x, attributes):
        value = x[0].to(x[1].dtype)
        shifted = value - spread(x[2], value, attributes) if len(x) > 2 else value
        return shifted * spread(x[1], value, attributes)

    OPS = {
        "Add": lambda x, _: x[0] + x[1],
        "Clip": lambda x, _: functional.hardtanh(x[0], x[1].item(), x[2].item()),
        "Concat": lambda x, attributes: torch.cat(x, attributes["axis"]),
        "Conv": convolution,
        "DequantizeLinear": dequantize,
        "Flatten": lambda x, _: x[0].flatten(1),
        "Gemm": dense,
        "GlobalAveragePool": lambda x, _: x[0].mean((2, 3), keepdim=True),
        "MaxPool": max_pool,
        "QuantizeLinear": quantize,
        "Relu": lambda x, _: x[0].relu(),
    }
    return Network().eval()
