"""Writes the list of cases of a folder of golden data, as folder.rs reads it."""

import json

import numpy as np


def case(name, peer, method, target, found, tolerance, arguments=None, input="input_0.npy", **more):
    """A case whose result lies in an array of its name; within `tolerance` of its largest number."""
    return {
        "id": name,
        "peer": peer,
        "method": method,
        "arguments": arguments or {},
        "input": input,
        "target_output": "scores",
        "target_index": target,
        **more,
        "result": f"{name}.npy",
        "tolerance": {"atol": float(f"{tolerance * float(np.abs(found).max()):.1e}"), "rtol": 1e-3},
    }


def write(folder, about, peers, cases):
    lines = [
        ' "model": "model.onnx"',
        f' "about": {json.dumps(about)}',
        f' "peers": {json.dumps(peers)}',
        ' "cases": [\n  ' + ",\n  ".join(map(json.dumps, cases)) + "\n ]",
    ]
    (folder / "cases.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
