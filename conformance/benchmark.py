"""Measures Ouzel beside PyTorch, Captum and ONNX Runtime on networks of torchvision, and prints ratios.

    python3 conformance/benchmark.py                        # everything, about ten minutes on a quiet machine
    python3 conformance/benchmark.py --batch 16 --sections maps forward
    python3 conformance/benchmark.py --networks resnet18 vgg16 --rounds 3 --json figures.json

Run by hand, on Linux or macOS, with Python 3.11 or newer. The first run installs requirements-benchmark.txt in an
environment of its own (some gigabytes: the usual PyTorch for Linux has GPU libraries, which its process loads at its
start; --python takes an environment with another), exports the networks as torch.onnx.export does by default, and
builds Ouzel. Sections:

    maps       the input gradient of one class: PyTorch (eager autograd, parameters without gradients, contiguous or
               channels_last, whichever is faster), Captum's Saliency, and `ouzel bench`
    forward    the scores alone: ONNX Runtime and `ouzel bench --forward`
    targets    the gradients of the ten highest classes of one picture: PyTorch going back ten times over one forward
               pass (retain_graph), Ouzel on one forward pass (`ouzel bench --targets 10`), and Ouzel one by one
    paths      SmoothGrad and integrated gradients of 50 samples on ResNet-50: Captum as it is called by default (all samples
               in one batch) and with ten at a time, and `ouzel bench`; and Ouzel's peak memory for 50 and 200 samples
    processes  whole processes and their peak memory: the first map of ResNet-50; from a JPEG to a PNG overlay with
               MobileNet-V2, with Ouzel and with PyTorch and Captum; the map of VGG-16 against 1.3 x weights + 150 MB
    peak       the share of the machine's multiply-add peak (measured by the kernels' example `peak`) that convolutions
               reach: their direct multiplications and additions in both directions, over the time of the whole map; the peak
               is that of the best moment, and beside it what is sustained for half a second: the best moment is over in
               less than a millisecond, when cores lower their clock for wide vectors, and a map takes much longer

In each round every contestant has one turn: a run to warm up, and then the median of a few. Of these the median over
all rounds is taken, and ratios are of such medians. Ouzel's turns are processes, which load and compile before; the
others stay in this one. Weights are random as in truth.py; they do not matter for time as long as no numbers are
denormal, which He weights and calibrated batch normalization see to.

What is measured is also compared: an error is the relative L2 distance from PyTorch in float64, for random pictures and
the classes that score highest in the first one. Near ties that fall on the other side cost any float32 program 1e-3 to
a few 1e-2 (see truth.py). `ouzel bench` makes its own pictures; its checksum has to be the same in every round.
"""

import argparse
import copy
import functools
import hashlib
import importlib
import json
import math
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "conformance" / "requirements-benchmark.txt"
PICTURE = ROOT / "assets" / "pictures" / "scene_bird_by_tree.png"
NETWORKS = ["resnet18", "resnet50", "vgg16", "mobilenet_v2", "squeezenet1_1", "densenet121", "efficientnet_b0"]
TORCH = ["PyTorch", "channels_last"]  # PyTorch's contestants, one for each order of memory
CLASSES = 10
ITERATIONS = 5  # of a turn, for one picture
REST = 0.1  # seconds before a turn, so that threads that wait for more work have gone to sleep
QUIET = 0.5  # the load average of a machine that measures well

# Runs a command from a small process: the peak that a system reports of a process may include that of its parent.
PROBE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
ms = (time.perf_counter() - start) * 1000
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([ms, peak / 1e6]))
"""


def output(*command):
    """What a program prints."""
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout


def progress(text):
    """What goes on now, in place of what went on before; "" ends it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def alternate(label, turns, rounds):
    """What each turn gives, once a round."""
    results = {name: [] for name in turns}
    for number in range(rounds):
        progress(f"{label}: round {number + 1} of {rounds}")
        for name, turn in turns.items():
            time.sleep(REST)
            results[name].append(turn())
    progress("")
    return results


class InProcess:
    """A contestant in this process. Calling it is its turn, in milliseconds; `result` computes what it computes."""

    def __init__(self, iterations, result):
        self.iterations, self.result = iterations, result

    def __call__(self):
        self.result()
        times = []
        for _ in range(self.iterations):
            start = time.perf_counter()
            self.result()
            times.append((time.perf_counter() - start) * 1000)
        return statistics.median(times)


class Bench:
    """A contestant that is `ouzel bench`, a process a turn; `maps` of them count as one."""

    def __init__(self, options, model, iterations, *more, result=None, maps=1):
        run = ["--threads", options.threads, "--iterations", iterations, "--json", "-", "--quiet"]
        self.command = [options.ouzel, "bench", model, *more, *run]
        self.result, self.maps, self.checksum = result, maps, None

    def figures(self):
        figures = json.loads(output(*self.command))
        if self.checksum not in (None, figures["checksum"]):
            sys.exit(f"the checksum changed between rounds: {self.command}")
        self.checksum = figures["checksum"]
        return figures

    def __call__(self):
        return self.figures()["median_ms"] * self.maps


def pictures(count):
    import torch

    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def export(name, options):
    """PyTorch's file and the ONNX file of a network of torchvision, or of a part of one, as vgg16.features."""
    import torch
    import truth

    folder = options.cache / f"networks-torch-{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    torch_file, model = folder / f"{name}.pt", folder / f"{name}.onnx"
    if not torch_file.exists():
        progress(f"{name}: exporting")
        whole, _, part = name.partition(".")
        network = truth.torch_network(whole)[0].requires_grad_(False)
        network = getattr(network, part) if part else network
        names = {"input_names": ["input"], "output_names": ["scores"], "dynamic_shapes": ({0: "batch"},)}
        torch.onnx.export(network, (pictures(2),), model, **names, external_data=False, verbose=False)
        torch.save(network, torch_file)
        progress("")
    return torch_file, model


class Subject:
    """A network with pictures; in float64 `wide`, its `scores`, and the highest `classes` of the first picture."""

    def __init__(self, name, options, batch):
        import torch

        torch_file, self.model = export(name, options)
        self.network, self.x = torch.load(torch_file, weights_only=False), pictures(batch)
        self.wide = copy.deepcopy(self.network).double()
        self.scores = self.wide(self.x.double())
        self.classes = self.scores[0].reshape(self.scores.shape[1], -1).mean(1).topk(CLASSES).indices.tolist()

    def torch_contestants(self, iterations, classes):
        import torch

        last = torch.channels_last
        network, x = copy.deepcopy(self.network).to(memory_format=last), self.x.contiguous(memory_format=last)
        works = [lambda: gradients(self.network, self.x, classes), lambda: gradients(network, x, classes)]
        return {label: InProcess(iterations, work) for label, work in zip(TORCH, works)}

    def exact(self, classes):
        return gradients(self.wide, self.x.double(), classes)

    def explained(self, options, filters):
        import truth

        return truth.ouzel(options.ouzel, self.model, "scores", self.x.numpy(), filters)


def gradients(network, x, classes):
    """PyTorch's input gradient of each class, or of the mean of each channel, over one forward pass."""
    import torch

    x = x.detach().requires_grad_()
    totals = network(x).sum(0)
    more = [target != classes[-1] for target in classes]
    return [torch.autograd.grad(totals[c].mean(), x, retain_graph=keep)[0].numpy() for c, keep in zip(classes, more)]


def convolution_flops(network, x):
    """Multiplications and additions of direct convolutions, forward and for the gradient of their inputs."""
    import torch

    flops = []

    def count(module, _, y):
        flops.append(2 * y.numel() * math.prod(module.weight.shape[1:]))

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    network(x)
    return 2 * sum(flops)


def show(title, rows, headings):
    """A table of some of the rows' figures, each written as the last word of its heading says."""
    styles = {"error": ".1e", "MB": ".0f", "GFLOP/s": ".0f", "%": ".1f"}

    def cell(row, heading):
        value = row.get(heading, "")
        return value if isinstance(value, str) else f"{value:{styles.get(heading.split()[-1], '.2f')}}"

    lines = [headings] + [[cell(row, heading) for heading in headings] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    print(f"\n{title}\n")
    for first, *others in lines:
        print("  ".join([first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(others, widths[1:]))]))


def contest(title, options, batch, prepare, ratios):
    """Tables of the contestants that `prepare` makes of each network, and of how far they are from its reference.

    A ratio has the contestants above and below the line, of whom the fastest counts, and which end of it is the worst.
    """
    import truth

    rows = []
    for name in options.networks:
        contestants, reference = prepare(Subject(name, options, batch))
        turns = alternate(f"{title.partition(':')[0]}, {name}", contestants, options.rounds)
        medians = {label: statistics.median(times) for label, times in turns.items()}
        row = {"network": name} | {f"{label} ms": ms / batch for label, ms in medians.items()}
        for heading, (above, below, _) in ratios.items():
            row[heading] = min(medians[label] for label in above) / min(medians[label] for label in below)
        for label, contestant in contestants.items():
            if isinstance(contestant, Bench):
                row[f"{label} checksum"] = contestant.checksum
            if contestant.result:
                pairs = zip(contestant.result(), reference, strict=True)
                row[f"{label} error"] = max(truth.relative(ours, theirs) for ours, theirs in pairs)
        rows.append(row | {"turns": turns})
    show(title, rows, ["network", *(f"{label} ms" for label in contestants), *ratios])
    for heading, (*_, worst) in ratios.items():
        row = worst(rows, key=lambda row: row[heading])
        mean = statistics.geometric_mean(row[heading] for row in rows)
        print(f"{heading}: geometric mean {mean:.2f}, worst {row[heading]:.2f} ({row['network']})")
    show("What they computed", rows, ["network", *(key for key in rows[0] if key.endswith(("error", "checksum")))])
    return rows


def maps(options):
    import captum.attr

    def prepare(subject):
        target, network, iterations = subject.classes[0], subject.network, options.iterations

        def captum_map():
            x = subject.x.clone().requires_grad_()
            return [captum.attr.Saliency(network).attribute(x, target=target, abs=False).numpy()]

        result = functools.partial(subject.explained, options, target)
        ouzel = Bench(options, subject.model, iterations, "--batch", options.batch, result=result)
        contestants = {"Captum": InProcess(iterations, captum_map), "Ouzel": ouzel}
        return subject.torch_contestants(iterations, [target]) | contestants, subject.exact([target])

    title = f"Maps: one class, batch {options.batch}, milliseconds for each picture"
    ratios = {"PyTorch/Ouzel": (TORCH, ["Ouzel"], min), "Captum/Ouzel": (["Captum"], ["Ouzel"], min)}
    return contest(title, options, options.batch, prepare, ratios)


def forward(options):
    import numpy
    import onnxruntime

    def prepare(subject):
        x, settings = subject.x.numpy(), onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        session = onnxruntime.InferenceSession(subject.model, settings, providers=["CPUExecutionProvider"])

        def predict():
            with tempfile.TemporaryDirectory() as folder:
                numpy.save(f"{folder}/x.npy", x)
                output(options.ouzel, "predict", subject.model, f"{folder}/x.npy", "--out-dir", folder, "--quiet")
                return [numpy.load(f"{folder}/scores.npy")]

        more = ["--forward", "--batch", options.batch]
        return {
            "ONNX Runtime": InProcess(options.iterations, lambda: session.run(None, {"input": x})),
            "Ouzel": Bench(options, subject.model, options.iterations, *more, result=predict),
        }, [subject.scores.numpy()]

    title = f"Forward: the scores, batch {options.batch}, milliseconds for each picture"
    ratios = {"Ouzel/ONNX Runtime": (["Ouzel"], ["ONNX Runtime"], max)}
    return contest(title, options, options.batch, prepare, ratios)


def targets(options):
    if "--targets" not in output(options.ouzel, "bench", "--help"):
        print("\nTargets: not measured, for this program's bench has no --targets")
        return None

    def prepare(subject):
        result = functools.partial(subject.explained, options, f"top{CLASSES}")
        return subject.torch_contestants(1, subject.classes) | {
            "shared": Bench(options, subject.model, 1, "--targets", CLASSES, result=result),
            "separate": Bench(options, subject.model, ITERATIONS, maps=CLASSES),
        }, subject.exact(subject.classes)

    title = f"Targets: {CLASSES} classes of one picture, milliseconds for all; Ouzel on one forward pass or separately"
    ratios = {"shared/separate": (["shared"], ["separate"], max), "shared/PyTorch": (["shared"], TORCH, max)}
    return contest(title, options, 1, prepare, ratios)


def paths(options):
    import captum.attr
    import numpy
    import torch
    import truth

    torch_file, model = export("resnet50", options)
    network, x = torch.load(torch_file, weights_only=False), pictures(1)
    target = network(x)[0].argmax().item()
    noise = captum.attr.NoiseTunnel(captum.attr.Saliency(network))
    integrated = captum.attr.IntegratedGradients(network)

    def smooth(batch):
        x_ = x.clone().requires_grad_()
        kind = {"nt_type": "smoothgrad", "nt_samples": 50, "stdevs": 0.5, "nt_samples_batch_size": batch}
        return noise.attribute(x_, target=target, abs=False, **kind).numpy()

    def integrate(batch):
        return integrated.attribute(x, target=target, n_steps=50, internal_batch_size=batch).detach().numpy()

    rows = []
    for method, peer, more in [
        ("smoothgrad", smooth, ["--noise-sigma", 0.5]),
        ("integrated_gradients", integrate, ["--quadrature", "gauss_legendre"]),
    ]:
        more = ["--method", method, *more]
        count = "--samples" if method == "smoothgrad" else "--steps"
        bench = Bench(options, model, 1, "--filters", target, *more, count, 50)
        turns = {
            "Captum": InProcess(1, functools.partial(peer, None)),
            "ten at a time": InProcess(1, functools.partial(peer, 10)),
            "Ouzel": bench,
        }
        turns = alternate(f"Paths, {method}", turns, options.rounds)
        medians = {label: statistics.median(times) for label, times in turns.items()}
        row = {"method": method} | {f"{label} ms": ms for label, ms in medians.items()}
        row["Captum/Ouzel"] = min(medians["Captum"], medians["ten at a time"]) / medians["Ouzel"]
        for samples in [50, 200]:
            figures = Bench(options, model, 1, "--filters", target, *more, count, samples).figures()
            row[f"{samples}: MB"] = figures["peak_memory_bytes"] / 1e6
        row["Ouzel checksum"] = bench.checksum
        if method == "integrated_gradients":
            ours = truth.ouzel(options.ouzel, model, "scores", x.numpy(), target, more=list(map(str, more)))
            row["to Captum error"] = truth.relative(ours[0], peer(10).astype(numpy.float64))
        rows.append(row | {"turns": turns})
    headings = {heading: None for row in rows for heading in row if heading != "turns"}
    show("Paths: ResNet-50, 50 samples of one picture, milliseconds", rows, list(headings))
    return rows


def captum_overlay(torch_file, threads, jpeg, png):
    """What `ouzel explain` does with a picture, with PyTorch and Captum; runs in a process of its own."""
    import captum.attr
    import matplotlib
    import numpy
    import torch
    from PIL import Image
    from torchvision import transforms

    torch.set_num_threads(int(threads))
    network, picture = torch.load(torch_file, weights_only=False), Image.open(jpeg).convert("RGB")
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    x = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), normalize])(picture)[None]
    with torch.no_grad():
        target = network(x).argmax().item()
    saliency = captum.attr.Saliency(network).attribute(x.requires_grad_(), target=target)[0].amax(0).numpy()
    scaled = (saliency - saliency.min()) / (numpy.ptp(saliency) + 1e-7)
    large = numpy.asarray(Image.fromarray(scaled).resize(picture.size))
    alpha, colors = 0.7 * large[..., None], matplotlib.colormaps["inferno"](large)[..., :3]
    blended = numpy.asarray(picture) / 255 * (1 - alpha) + colors * alpha
    Image.fromarray((blended * 255).round().astype(numpy.uint8)).save(png)


def processes(options):
    import numpy
    from PIL import Image

    resnet, mobilenet, vgg = (export(name, options) for name in ["resnet50", "mobilenet_v2", "vgg16"])
    with tempfile.TemporaryDirectory() as path:
        folder = pathlib.Path(path)
        Image.open(PICTURE).convert("RGB").resize((640, 480)).save(folder / "x.jpg", quality=90)
        numpy.save(folder / "x.npy", pictures(1).numpy())
        explain = [options.ouzel, "explain", "--quiet", "--force", "--threads", options.threads]
        overlay = [mobilenet[1], folder / "x.jpg", "--preprocess", "imagenet"]
        call = "import sys; sys.path.append('conformance'); import benchmark; benchmark.captum_overlay(*sys.argv[1:])"
        captum = [sys.executable, "-c", call, mobilenet[0], options.threads, folder / "x.jpg"]
        # The last word of each names the file that it writes.
        commands = {
            "MobileNet-V2, JPEG to PNG: Ouzel": [*explain, *overlay, "--out", folder / "ouzel.png"],
            "MobileNet-V2, JPEG to PNG: PyTorch and Captum": [*captum, folder / "captum.png"],
            "VGG-16, array to array: Ouzel": [*explain, vgg[1], folder / "x.npy", "--raw-npy", folder / "raw.npy"],
        }
        probe = [sys.executable, "-S", "-c", PROBE]
        bench = Bench(options, resnet[1], 1, "--filters", 0)
        turns = {name: functools.partial(output, *probe, *command) for name, command in commands.items()}
        turns = alternate("Processes", {"ResNet-50": bench.figures} | turns, options.rounds)
        digests = {name: hashlib.sha256(words[-1].read_bytes()).hexdigest()[:16] for name, words in commands.items()}

    first, rows = turns["ResNet-50"], []
    steps = {"load": ["load_ms"], "compile": ["compile_ms"], "first map": ["first_ms"]}
    for step, keys in (steps | {"the three together": sum(steps.values(), [])}).items():
        ms = statistics.median(sum(figures[key] for key in keys) for figures in first)
        rows.append({"process": f"ResNet-50, inside `ouzel bench`: {step}", "ms": ms})
    rows[-1] |= {"peak MB": first[0]["peak_memory_bytes"] / 1e6, "result": bench.checksum, "turns": first}
    for name, digest in digests.items():
        runs = list(map(json.loads, turns[name]))
        ms, megabytes = map(statistics.median, zip(*runs))
        rows.append({"process": name, "ms": ms, "peak MB": megabytes, "result": digest, "turns": runs})
    show("Processes: from start to end, if not said otherwise", rows, ["process", "ms", "peak MB", "result"])
    ouzel, peer, large = rows[-3:]
    time_ratio, memory_ratio = (peer[heading] / ouzel[heading] for heading in ("ms", "peak MB"))
    print(f"PyTorch and Captum/Ouzel: time {time_ratio:.1f}, memory {memory_ratio:.1f}")
    weights = vgg[1].stat().st_size / 1e6
    limit = 1.3 * weights + 150
    verdict = "within" if large["peak MB"] <= limit else "OVER"
    print(f"VGG-16: {large['peak MB']:.0f} MB, {verdict} 1.3 x {weights:.0f} + 150 = {limit:.0f} MB")
    return rows


def peak(options):
    import truth

    means = []

    def measure():
        example = "cargo run --release --locked --quiet -p ouzel-kernels --example peak --".split()
        best, mean = re.findall(r"([\d.]+) GFLOP/s", output(*example, options.threads, "none"))
        means.append(float(mean))
        return float(best)

    rows = []
    for name in ["resnet50", "vgg16.features"]:
        subject = Subject(name, options, options.batch)
        bench = Bench(options, subject.model, options.iterations, "--batch", options.batch)
        means.clear()
        turns = alternate(f"Peak, {name}", {"peak": measure, "Ouzel": bench}, options.rounds)
        most, ms = map(statistics.median, turns.values())
        flops, target = convolution_flops(subject.network, subject.x) / 1e9, subject.classes[0]
        row = {"network": name, "Ouzel ms": ms, "GFLOP": flops, "Ouzel GFLOP/s": 1000 * flops / ms}
        row |= {"peak GFLOP/s": most, "share %": 100 * row["Ouzel GFLOP/s"] / most}
        row |= {"sustained": statistics.median(means)}
        row |= {"share of it %": 100 * row["Ouzel GFLOP/s"] / row["sustained"]}
        row["Ouzel error"] = truth.relative(*subject.explained(options, target), *subject.exact([target]))
        rows.append(row | {"Ouzel checksum": bench.checksum, "turns": turns})
    title = f"Peak: one map, batch {options.batch}, against the multiply-adds of {options.threads} threads"
    show(title, rows, [heading for heading in rows[0] if heading != "turns"])
    return rows


SECTIONS = {
    "maps": maps,
    "forward": forward,
    "targets": targets,
    "paths": paths,
    "processes": processes,
    "peak": peak,
}


def environment(folder):
    """The Python of an environment with the pinned packages, which is made if it is not there."""
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    if not installed.exists() or installed.read_text() != REQUIREMENTS.read_text():
        print(f"installing {REQUIREMENTS.name} into {folder}, once", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
        installed.write_text(REQUIREMENTS.read_text())
    return python


def build():
    """The program, as users build it."""
    progress("building Ouzel")
    output(*"cargo build --release --locked --quiet -p ouzel-cli".split())
    progress("")
    return ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "ouzel"


def circumstances(options):
    """What the figures have to be read with."""
    cpu = platform.processor() or platform.machine()
    if (info := pathlib.Path("/proc/cpuinfo")).exists():
        cpu = re.search(r"model name\s*: (.*)|$", info.read_text())[1] or cpu
    commit = output(*"git describe --always --dirty --abbrev=12 --exclude *".split()).strip()
    packages = [importlib.import_module(name) for name in ["torch", "torchvision", "captum", "onnxruntime"]]
    versions = [f"{package.__name__} {package.__version__}" for package in packages]
    words = ["conformance/benchmark.py", *(word for word in sys.argv[1:] if word != "--inside")]
    return {
        "command": " ".join(words),
        "machine": f"{cpu}, {os.cpu_count()} cores, {options.threads} threads used",
        "versions": ", ".join([f"repository {commit}", *versions, f"Python {platform.python_version()}"]),
    }


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME", help="names in torchvision.models")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS, metavar="NAME")
    parser.add_argument("--batch", type=int, default=1, help="of maps, forward and peak (default: 1)")
    parser.add_argument("--threads", type=int, default=2, help="of every contestant (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="write all figures, those of each turn too")
    parser.add_argument("--ouzel", type=pathlib.Path, help="the program (default: built from this repository)")
    parser.add_argument("--python", type=pathlib.Path, help="the Python of an environment that has the packages")
    parser.add_argument("--cache", type=pathlib.Path, default=ROOT / "target" / "benchmark-python")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # the environment is entered
    return parser.parse_args()


def main():
    options = parse()
    if not options.inside:
        if (load_average := os.getloadavg()[0]) > QUIET:
            print(f"warning: the load average is {load_average:.2f}; figures need a quiet machine", file=sys.stderr)
        python = options.python or environment(options.cache / "environment")
        os.execv(python, [python, __file__, *sys.argv[1:], "--inside"])

    import torch

    torch.set_num_threads(options.threads)
    options.cache = options.cache.resolve()
    options.iterations = max(1, ITERATIONS // options.batch)
    options.ouzel = options.ouzel.resolve() if options.ouzel else build()
    report = circumstances(options)
    print(*report.values(), sep="\n", flush=True)
    for name in options.sections:
        report[name] = SECTIONS[name](options)
        sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
