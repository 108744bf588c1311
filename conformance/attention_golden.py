"""Golden data for relevance in transformers: a tiny one, and the papers' formulas over it in NumPy, in float64.

    python conformance/attention_golden.py     # writes conformance/golden/attention_small/

AttnLRP: Achtibat et al. 2024, equations 8 (linear layers and sums), 13 (softmax), 15 (products), and proposition 3.4
(layer normalization: its deviation is a constant). CP-LRP: Ali et al. 2022; attention weights are constants as well.
Activations pass relevance on. The walk starts from the target's value. Written down layer by layer, by matrices alone, with
nothing of Ouzel in it; needs NumPy and onnx.
"""

import math
import pathlib

import golden_cases
import numpy as np
import onnx
from onnx import helper, numpy_helper

FOLDER = pathlib.Path(__file__).resolve().parent / "golden" / "attention_small"
TOKENS, WIDTH, HEADS, HIDDEN, CLASSES, BLOCKS = 5, 8, 2, 12, 3, 2
DEPTH = WIDTH // HEADS
EPSILON = 1e-6
LAYER_NORM_EPSILON = float(np.float32(1e-5))


def parameters():
    random = np.random.default_rng(11)
    normal = lambda scale, *shape: (scale * random.normal(size=shape)).astype(np.float32)  # noqa: E731
    p = {}
    for block in range(BLOCKS):
        for name, inputs, outputs in [
            ("query", WIDTH, WIDTH),
            ("key", WIDTH, WIDTH),
            ("value", WIDTH, WIDTH),
            ("out", WIDTH, WIDTH),
            ("up", WIDTH, HIDDEN),
            ("down", HIDDEN, WIDTH),
        ]:
            p[f"{block}.{name}.w"] = normal(0.4, inputs, outputs)
            p[f"{block}.{name}.b"] = normal(0.1, outputs)
    for norm in [*(f"{block}.norm{i}" for block in range(BLOCKS) for i in (1, 2)), "norm"]:
        p[f"{norm}.w"] = 1 + normal(0.1, WIDTH)
        p[f"{norm}.b"] = normal(0.1, WIDTH)
    p["head.w"] = normal(0.5, WIDTH, CLASSES)
    p["head.b"] = normal(0.1, CLASSES)
    return p, normal(1.0, 2, TOKENS, WIDTH)


# The network with its relevance: each function returns its value, and how relevance of that becomes relevance of inputs.


def stabilized(z):
    return z + EPSILON * np.where(z >= 0, 1.0, -1.0)


def linear(x, w, b):
    """Equation 8: each contribution by its part of the sum; the bias keeps its own."""
    y = x @ w + b
    return y, lambda r: x * ((r / stabilized(y)) @ w.T)


def add(a, b):
    y = a + b
    return y, lambda r: (a * r / stabilized(y), b * r / stabilized(y))


def layer_norm(x, w, b):
    """Proposition 3.4: centring is linear, the division by the deviation and the scale pass relevance on."""
    centring = np.eye(x.shape[-1]) - 1 / x.shape[-1]
    centred = x @ centring
    scaled = w * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)
    y = scaled + b

    def back(r):
        of_scaled = scaled * r / stabilized(y)
        return x * ((of_scaled / stabilized(centred)) @ centring.T)

    return y, back


def product(a, b, constant_first):
    """Equation 15: half for each factor; or all of it for the second."""
    y = a @ b

    def back(r):
        if constant_first:
            return None, b * (a.T @ (r / stabilized(y)))
        unit = r / (2 * stabilized(y))
        return a * (unit @ b.T), b * (a.T @ unit)

    return y, back


def softmax(x):
    """Equation 13."""
    e = np.exp(x - x.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)
    return y, lambda r: x * (r - y * r.sum(-1, keepdims=True))


def attention(x, p, block, conservative):
    q, of_q = linear(x, p[f"{block}.query.w"], p[f"{block}.query.b"])
    k, of_k = linear(x, p[f"{block}.key.w"], p[f"{block}.key.b"])
    v, of_v = linear(x, p[f"{block}.value.w"], p[f"{block}.value.b"])
    joined, heads = np.zeros_like(v), []
    for head in range(HEADS):
        part = np.s_[:, head * DEPTH : (head + 1) * DEPTH]
        scores, of_scores = product(q[part], k[part].T, False)
        # The scale passes relevance on.
        weights, of_weights = softmax(scores / math.sqrt(DEPTH))
        joined[part], of_joined = product(weights, v[part], conservative)
        heads.append((part, of_scores, of_weights, of_joined))
    y, of_y = linear(joined, p[f"{block}.out.w"], p[f"{block}.out.b"])

    def back(r):
        r = of_y(r)
        rq, rk, rv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
        for part, of_scores, of_weights, of_joined in heads:
            r_weights, rv[part] = of_joined(r[part])
            if r_weights is not None:
                rq[part], transposed = of_scores(of_weights(r_weights))
                rk[part] = transposed.T
        return of_v(rv) + of_q(rq) + of_k(rk)

    return y, back


def feed_forward(x, p, block):
    up, of_up = linear(x, p[f"{block}.up.w"], p[f"{block}.up.b"])
    active = up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2)))
    y, of_y = linear(active, p[f"{block}.down.w"], p[f"{block}.down.b"])
    return y, lambda r: of_up(of_y(r))


def relevance(x, p, target, conservative):
    backs = []

    def residual(x, norm, inner):
        normed, of_norm = layer_norm(x, p[f"{norm}.w"], p[f"{norm}.b"])
        y, of_inner = inner(normed)
        total, of_sum = add(x, y)

        def back(r):
            straight, through = of_sum(r)
            return straight + of_norm(of_inner(through))

        backs.append(back)
        return total

    for block in range(BLOCKS):
        x = residual(x, f"{block}.norm1", lambda x, block=block: attention(x, p, block, conservative))
        x = residual(x, f"{block}.norm2", lambda x, block=block: feed_forward(x, p, block))
    normed, of_norm = layer_norm(x, p["norm.w"], p["norm.b"])
    scores, of_scores = linear(normed[:1], p["head.w"], p["head.b"])
    r = np.zeros_like(scores)
    r[0, target] = scores[0, target]
    first = np.zeros_like(x)
    first[:1] = of_scores(r)
    r = of_norm(first)
    for back in reversed(backs):
        r = back(r)
    return scores[0], r


def as_onnx(p):
    """The same network in the nodes that PyTorch exports."""
    nodes, constants = [], [numpy_helper.from_array(array, name) for name, array in p.items()]

    def constant(name, array):
        constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(op, inputs, name, **attributes):
        nodes.append(helper.make_node(op, inputs, [name], name=f"/{name}", **attributes))
        return name

    def dense(x, name):
        return node("Add", [node("MatMul", [x, f"{name}.w"], f"{name}.matmul"), f"{name}.b"], name)

    def norm(x, name):
        inputs = [x, f"{name}.w", f"{name}.b"]
        return node("LayerNormalization", inputs, name, axis=-1, epsilon=LAYER_NORM_EPSILON)

    split = constant("split", np.array([0, TOKENS, HEADS, DEPTH]))
    join = constant("join", np.array([0, TOKENS, WIDTH]))
    scale = constant("scale", np.float32(1 / math.sqrt(DEPTH)))
    half, one, root = (constant(f"c{i}", np.float32(c)) for i, c in enumerate([0.5, 1, math.sqrt(2)]))
    x = "input"
    for block in range(BLOCKS):
        y = norm(x, f"{block}.norm1")
        heads = {}
        for name, order in [("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])]:
            parts = node("Reshape", [dense(y, f"{block}.{name}"), split], f"{block}.{name}.heads")
            heads[name] = node("Transpose", [parts], f"{block}.{name}.turned", perm=order)
        scores = node("MatMul", [heads["query"], heads["key"]], f"{block}.products")
        weights = node("Softmax", [node("Mul", [scores, scale], f"{block}.scores")], f"{block}.weights", axis=-1)
        mixed = node("MatMul", [weights, heads["value"]], f"{block}.mixed")
        turned = node("Transpose", [mixed], f"{block}.turned", perm=[0, 2, 1, 3])
        y = dense(node("Reshape", [turned, join], f"{block}.joined"), f"{block}.out")
        x = node("Add", [x, y], f"{block}.attended")
        y = dense(norm(x, f"{block}.norm2"), f"{block}.up")
        y_erf = node("Erf", [node("Div", [y, root], f"{block}.over_root")], f"{block}.erf")
        product = node("Mul", [y, node("Add", [y_erf, one], f"{block}.plus_one")], f"{block}.gated")
        y = dense(node("Mul", [product, half], f"{block}.gelu"), f"{block}.down")
        x = node("Add", [x, y], f"{block}.end")
    first = node("Gather", [norm(x, "norm"), constant("zero", np.array(0))], "first", axis=1)
    node("Gemm", [first, "head.w", "head.b"], "scores")
    value = lambda name, shape: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)  # noqa: E731
    graph = helper.make_graph(
        nodes,
        "attention_small",
        [value("input", ["N", TOKENS, WIDTH])],
        [value("scores", ["N", CLASSES])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def main():
    p, inputs = parameters()
    FOLDER.mkdir(parents=True, exist_ok=True)
    onnx.save(as_onnx(p), FOLDER / "model.onnx")
    exact = {name: array.astype(np.float64) for name, array in p.items()}
    cases = []
    for index, x in enumerate(inputs):
        np.save(FOLDER / f"input_{index}.npy", x[None])
        for method in ("AttnLRP", "CP-LRP"):
            for target in (0, 2):
                scores, r = relevance(x.astype(np.float64), exact, target, method == "CP-LRP")
                name = f"a{len(cases):03}"
                np.save(FOLDER / f"{name}.npy", r[None])
                more = {"input": f"input_{index}.npy", "target_value": float(scores[target])}
                cases.append(golden_cases.case(name, "formulas", method, target, r, 1e-4, **more))
    about = "a transformer of two blocks with random weights; relevance by the formulas of the papers in NumPy"
    peers = {"formulas": f"attention_golden.py, NumPy {np.__version__}, float64"}
    golden_cases.write(FOLDER, about, peers, cases)


if __name__ == "__main__":
    main()
