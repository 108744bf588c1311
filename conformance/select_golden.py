"""Copies a small part of a large collection of golden data into the repository, so that ordinary tests have it.

    python conformance/select_golden.py SOURCE     # writes conformance/golden/

SOURCE has a folder for each network, with model.onnx, cases.json and arrays (.npy).
The choice, in few bytes: every method and backprop modifier of each network; over all networks every grad modifier with
every backprop modifier, every kind of target, inner tensor and loss; and every gradient of the network that is exact in
float32, because it pins ties. Needs nothing but Python.
"""

import argparse
import json
import pathlib
import shutil

FOLDER = pathlib.Path(__file__).resolve().parent / "golden"
COVERED = {
    "PAIR saliency": [
        "BlurIG.GetMask",
        "GradientSaliency.GetMask",
        "GradientSaliency.GetSmoothedMask",
        "GuidedIG.GetMask",
        "IntegratedGradients.GetMask",
        "Occlusion.GetMask",
        "XRAI.GetMask",
    ],
    "captum": [
        "Deconvolution",
        "DeepLift",
        "FeatureAblation",
        "GuidedBackprop",
        "GuidedGradCam",
        "InputXGradient",
        "IntegratedGradients",
        "LRP",
        "LayerActivation",
        "LayerGradCam",
        "LayerGradientXActivation",
        "LayerIntegratedGradients",
        "NoiseTunnel",
        "Occlusion",
        "Saliency",
    ],
    "keras-vis": ["visualize_activation", "visualize_cam", "visualize_saliency", "visualize_saliency_with_losses"],
    "pytorch-grad-cam": [
        "AblationCAM",
        "EigenCAM",
        "GradCAM",
        "GradCAMPlusPlus",
        "HiResCAM",
        "LayerCAM",
        "ScoreCAM",
        "XGradCAM",
    ],
    "tf-keras-vis": [
        "tf-keras-vis Gradcam",
        "tf-keras-vis GradcamPlusPlus",
        "tf-keras-vis Layercam",
        "tf-keras-vis Saliency",
        "tf-keras-vis Saliency (SmoothGrad)",
        "tf-keras-vis Saliency with GuidedBackpropagation",
        "tf-keras-vis Scorecam",
    ],
    "zennit": [
        "BetaSmooth",
        "DeconvNet",
        "EpsilonAlpha2Beta1",
        "EpsilonAlpha2Beta1Flat",
        "EpsilonGammaBox",
        "EpsilonPlus",
        "EpsilonPlusFlat",
        "ExcitationBackprop",
        "GuidedBackprop",
    ],
}
ARRAYS = [
    "input",
    "result",
    "raw_gradient",
    "raw_gradient_float64",
    "gradient_float64",
    "heatmap_before_zoom",
    "map_before_scaling_layer0",
    "noise",
    "segments",
    "base_attribution",
    "seed_input",
    "input_per_iteration",
    "gradient_per_iteration",
    "gradient_of_first_iteration",
]
# Methods that run a network on many variants: one network shows them.
VARIED = ["GetSmoothedMask", "IG.GetMask", "IntegratedGradients", "NoiseTunnel", "SmoothGrad", "XRAI"]
# What the list of a network says besides its cases; the rest names arrays that are left out.
DESCRIPTION = ["model", "about", "exporter", "input", "outputs", "operators", "layers", "peers"]
EXACT = "keras_ties_exact"


def kind(tensor):
    """The layout of a tensor and the op that makes it, as the exporter names tensors: `conv1/Relu:0`."""
    return tensor["onnx_layout"], tensor["onnx_tensor"].rpartition("/")[2]


def arrays(case):
    """The files of a case."""
    named = [case[key] for key in ARRAYS if key in case]
    return named + [file for file in map(str, case["arguments"].values()) if file.endswith(".npy")]


def traits(network, case):
    """What a case shows; the choice shows everything that any case shows."""
    call = case["arguments"]
    method = (case["peer"], case["method"])
    if any(part in case["method"] for part in VARIED):
        yield method, json.dumps(call)
        return
    backprop = call.get("backprop_modifier")
    modifier = call.get("grad_modifier", call.get("gradient_modifier"))
    yield (network, method) if backprop is None and "target_index" in case else (network, case["peer"], backprop)
    yield method, modifier, backprop, call.get("keepdims")
    yield method, call.get("abs"), call.get("normalize_map")
    # Of class activation maps: whether the layer was looked for, its size kept, several layers averaged.
    yield method, call.get("expand_cam"), call.get("max_N"), len(call.get("layers", [])) > 1
    yield method, call.get("interpolate_mode"), call.get("relu_attributions")
    if "penultimate_layer_was_default" in call:
        yield network, method, call["penultimate_layer_was_default"]
    if inner := case.get("gradient_with_respect_to"):
        yield "with respect to", kind(inner), inner["layer"] == "input"
    if target := case.get("target"):
        filters = target["filter_indices"]
        yield "target", kind(target)
        yield "filters", target["onnx_layout"], "all" if filters is None else min(len(filters), 2)
    for term in case.get("losses", []):
        yield "loss", term["loss"], str(term.get("p")), str(term.get("beta"))
    tolerance = case["tolerance"]
    advice = tolerance.get("advice", "")
    yield "tolerance", modifier, tolerance["atol"] is None, "near-tie" in advice, "ill-conditioned" in advice
    if network == EXACT:
        yield backprop, str(case.get("target")), str(case.get("losses")), str(inner)


def choose(networks):
    """The ids of the chosen cases by network: greedily the most new traits for the fewest new bytes."""
    candidates = [
        (name, case, set(traits(name, case)), [folder / file for file in arrays(case)])
        for name, (folder, listing) in networks.items()
        for case in listing["cases"]
        if case["method"] in COVERED.get(case["peer"], [])
    ]
    missing = set().union(*(shown for _, _, shown, _ in candidates))
    copied, chosen = set(), []

    def worth(candidate):
        _, _, shown, files = candidate
        size = sum(file.stat().st_size for file in set(files) - copied)
        return len(shown & missing) / (500 + size)

    while missing:
        best = max(candidates, key=worth)
        chosen.append(best)
        missing -= best[2]
        copied.update(best[3])
    return {name: {case["id"] for other, case, _, _ in chosen if other == name} for name in networks}, copied


def write(name, folder, listing, ids, copied):
    target = FOLDER / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copyfile(folder / listing["model"], target / listing["model"])
    for file in sorted(copied):
        if file.parent == folder:
            shutil.copyfile(file, target / file.name)
    lines = [f' "{key}": {json.dumps(listing[key])}' for key in DESCRIPTION if key in listing]
    cases = [json.dumps(case) for case in listing["cases"] if case["id"] in ids]
    lines.append(' "cases": [\n  ' + ",\n  ".join(cases) + "\n ]")
    (target / "cases.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return len(cases)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    source = parser.parse_args().source
    networks = {
        path.parent.name: (path.parent, json.loads(path.read_text()))
        for path in sorted(source.glob("*/cases.json"))
    }
    ids, copied = choose(networks)
    for name, (folder, listing) in networks.items():
        count = write(name, folder, listing, ids[name], copied)
        size = sum(file.stat().st_size for file in (FOLDER / name).iterdir())
        print(f"{name:<24}{count:>4} cases {size / 1000:>8.0f} kB")
    total = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    print(f"{'in all':<24}{sum(map(len, ids.values())):>4} cases {total / 1000:>8.0f} kB")


if __name__ == "__main__":
    main()
