"""Trains the demo's networks on drawn pictures, measures them and writes everything that the demo embeds.

Two copies of a scene classifier learn from the same pool of pictures. The fair one sees all of it. The
biased one sees only those where birds and leaves come together, so that nothing tells it which of the
two is called a bird. A third network learns to steer. One thread, about a quarter of an hour:

    python train.py
"""

import time
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from draw import ANIMALS, THINGS, pick, road, scene

HERE = Path(__file__).parent
CLASSES = [*ANIMALS, "none"]
BIRD = CLASSES.index("bird")


# ---- Networks ---------------------------------------------------------------------------------------


def convolutions():
    """Four convolutions with poolings between them: 3×128×128 to 96×8×8."""
    layers, channels = [], 3
    for out, kernel, stride in ((16, 6, 2), (32, 3, 1), (64, 3, 1), (96, 3, 1)):
        layers += [nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2), nn.ReLU(), nn.MaxPool2d(2)]
        channels = out
    return layers[:-1]


class SceneNet(nn.Module):
    """Which animal (one of many) and which things (any of many)."""

    outputs = ("animal", "things")

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(*convolutions(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.animal = nn.Linear(96, len(CLASSES))
        self.things = nn.Linear(96, len(THINGS))

    def logits(self, image):
        features = self.trunk(image)
        return self.animal(features), self.things(features)

    def forward(self, image):
        animal, things = self.logits(image)
        return F.softmax(animal, 1), torch.sigmoid(things)


class SteeringNet(nn.Module):
    """The steering angle, -1 (left) to 1 (right)."""

    outputs = ("angle",)

    def __init__(self):
        super().__init__()
        last = [nn.Conv2d(96, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 32), nn.ReLU()]
        self.trunk = nn.Sequential(*convolutions(), *last)
        self.angle = nn.Linear(32, 1)

    def forward(self, image):
        return torch.tanh(self.angle(self.trunk(image)))


def prepare(net):
    """Starts without batch norm in mind: He's weights, and a first layer that takes mid-grey for zero."""
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    first = net.trunk[0]
    first.bias.data = -0.5 * first.weight.data.sum((1, 2, 3))
    return net


# ---- Pictures ---------------------------------------------------------------------------------------


def batch(pictures):
    """uint8 N×H×W×3 to what the networks take: float N×3×H×W in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255


def draw_scenes(rng, count):
    """`count` scenes; whether a tree is leafy, bare or missing has nothing to do with the animal."""
    pixels, animal, things = [], [], []
    for _ in range(count):
        names = [] if (name := pick(rng, CLASSES)) == "none" else [name]
        if names and rng.random() < 0.15:
            names.append(pick(rng, [a for a in ANIMALS if a != name]))
        view = scene(rng, names, tree=pick(rng, ("leafy", "leafy", "bare", None)))
        pixels.append(view.pixels)
        animal.append([(c in names) / max(1, len(names)) if c != "none" else not names for c in CLASSES])
        things.append([t in view.masks for t in THINGS])
    return np.stack(pixels), torch.tensor(animal, dtype=torch.float32), torch.tensor(things, dtype=torch.float32)


def draw_roads(rng, count):
    pixels, angles = zip(*(road(rng) for _ in range(count)))
    return np.stack(pixels), torch.tensor(angles, dtype=torch.float32)[:, None]


# ---- Training ---------------------------------------------------------------------------------------


def scene_loss(net, image, mirrored, animal, things):
    animal_logits, things_logits = net.logits(image)
    return F.cross_entropy(animal_logits, animal) + F.binary_cross_entropy_with_logits(things_logits, things)


def steering_loss(net, image, mirrored, angle):
    return F.smooth_l1_loss(net(image), torch.where(mirrored[:, None], -angle, angle), beta=0.1)


def train(net, loss, steps, pixels, *targets, size=32, seed=0):
    """AdamW on random batches; every other picture mirrored, brighter or darker, all a little noisy.

    The noise keeps the gradient from resting on details that do not matter.
    """
    torch.manual_seed(seed)
    prepare(net).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    began, mean = time.time(), 0.0
    for step in range(steps):
        chosen = torch.randint(len(pixels), (size,))
        image = batch(pixels[chosen.numpy()]) * (0.8 + 0.4 * torch.rand(size, 1, 1, 1))
        image = (image + 0.05 * torch.randn(size, 1, *image.shape[2:])).clamp(0, 1)
        mirrored = torch.rand(size) < 0.5
        image = torch.where(mirrored[:, None, None, None], image.flip(3), image)
        value = loss(net, image, mirrored, *(t[chosen] for t in targets))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        mean += (value.item() - mean) * max(0.01, 1 / (step + 1))
        if (step + 1) % (steps // 5) == 0:
            print(f"  step {step + 1:5}  loss {mean:.4f}  {time.time() - began:4.0f} s", flush=True)
    return net.eval().to(memory_format=torch.contiguous_format)


# ---- Measuring --------------------------------------------------------------------------------------


def guide(net):
    """Makes every ReLU of `net` pass back positive gradients only (guided backpropagation)."""
    hooks = [
        m.register_full_backward_hook(lambda _, g, __: (g[0].clamp(min=0),))
        for m in net.modules()
        if isinstance(m, nn.ReLU)
    ]
    return lambda: [hook.remove() for hook in hooks]


def saliency(net, pictures, target, guided=False):
    """The size of the gradient of `target`, the largest over the channels: N×H×W."""
    unguide = guide(net) if guided else lambda: None
    image = batch(pictures).requires_grad_()
    target(net, image).sum().backward()
    unguide()
    return image.grad.abs().amax(1).numpy()


def bird_logit(net, image):
    return net.logits(image)[0][:, BIRD]


def shares(maps, masks):
    """The share of each map that falls where its mask is set."""
    masks = np.stack(masks) / 255
    return (maps * masks).sum((1, 2)) / maps.sum((1, 2))


@torch.no_grad()
def accuracy(net, pixels, animal, things):
    predicted_animal, predicted_things = net(batch(pixels))
    single = animal.amax(1) == 1  # pictures with two animals have no one right answer
    right = (predicted_animal.argmax(1) == animal.argmax(1))[single].float().mean()
    return float(right), float(((predicted_things > 0.5) == (things > 0.5)).float().mean())


@torch.no_grad()
def called_bird(net, views):
    return float((net(batch(np.stack([v.pixels for v in views])))[0].argmax(1) == BIRD).float().mean())


def report_scenes(nets, rng, count=200):
    together = [scene(rng, ["bird"], tree="leafy") for _ in range(count)]
    bird_alone = [scene(rng, ["bird"], tree=pick(rng, ("bare", None))) for _ in range(count)]
    leaves_alone = [scene(rng, [], tree="leafy") for _ in range(count)]
    test = draw_scenes(rng, 1000)
    exam = np.stack([v.pixels for v in together])
    for name, net in nets.items():
        animal, things = accuracy(net, *test)
        print(f"{name}: fresh pictures, leaves anywhere: animal {animal:.1%} right, things {things:.1%} right")
        print(f"  called a bird: bird with leaves {called_bird(net, together):.1%}, bird without leaves "
              f"{called_bird(net, bird_alone):.1%}, leaves without a bird {called_bird(net, leaves_alone):.1%}")
        for guided in (False, True):
            maps = saliency(net, exam, bird_logit, guided)
            on = {thing: shares(maps, [v.masks[thing] for v in together]).mean() for thing in ("bird", "leaves")}
            print(f"  {'guided  ' if guided else 'gradient'}: {on['bird']:.1%} of the saliency on the bird, "
                  f"{on['leaves']:.1%} on the leaves")
    area = {t: np.mean([v.masks[t].mean() / 255 for v in together]) for t in ("bird", "leaves")}
    print(f"  (of the picture, the bird covers {area['bird']:.1%} and the leaves {area['leaves']:.1%})")


# ---- Writing ----------------------------------------------------------------------------------------


def export(net, path, names, metadata):
    """Writes `net` as ONNX with readable names: `names` for its nodes in order, and for what they put out."""
    torch.onnx.export(net, (torch.zeros(1, 3, 128, 128),), str(path), dynamo=False, opset_version=17,
                      input_names=["image"], output_names=list(net.outputs),
                      dynamic_axes={name: {0: "batch"} for name in ("image", *net.outputs)})
    model = onnx.load(path)
    nodes = model.graph.node
    assert len(nodes) == len(names), [n.op_type for n in nodes]
    renamed = {}
    for node, name in zip(nodes, names):
        renamed[node.output[0]] = name
        layer = name.removesuffix("_logits").removesuffix("_raw")
        renamed |= {old: f"{layer}.{part}" for old, part in zip(node.input[1:], ("weight", "bias"))}
        node.name, node.doc_string = name, ""
    for node in nodes:
        node.input[:] = [renamed.get(i, i) for i in node.input]
        node.output[:] = [renamed[o] for o in node.output]
    for value in (*model.graph.initializer, *model.graph.output):
        value.name = renamed.get(value.name, value.name)
    del model.graph.value_info[:]
    model.graph.name = path.stem
    # `ouzel` prepares pictures as this says: values 0..1.
    onnx.helper.set_model_props(model, {"preprocess": "unit"} | metadata)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB")


CONVOLUTIONS = [name for k in (1, 2, 3, 4) for name in (f"conv{k}", f"relu{k}", f"pool{k}")][:-1]
SCENE_NAMES = [*CONVOLUTIONS, "average", "features", "animal_logits", "things_logits", "animal", "things"]
STEERING_NAMES = [*CONVOLUTIONS, "conv5", "relu5", "flat", "dense1", "relu6", "angle_raw", "angle"]

# The demo's pictures: file name, seed (chosen by hand for a clear picture), and what is on them.
SCENES = [
    ("scene_bird_in_tree", 28, dict(animals=["bird"], tree="leafy", things=["sun"], perch=True)),
    ("scene_bird_by_tree", 34, dict(animals=["bird"], tree="leafy", things=["house"], perch=False)),
    ("scene_bird", 9, dict(animals=["bird"], tree="bare", things=["sun"], perch=True)),
    ("scene_tree", 4, dict(tree="leafy", things=["flowers"])),
    ("scene_cat_fish", 4, dict(animals=["cat", "fish"], tree="leafy", things=["sun"], perch=False)),
    ("scene_rabbit", 3, dict(animals=["rabbit"], things=["house", "flowers"])),
    ("scene_butterfly", 4, dict(animals=["butterfly"], tree="leafy", things=["pond"], perch=False)),
]
ROADS = [("road_left", 2, -0.024), ("road_straight", 3, 0.0), ("road_right", 7, 0.024)]


def write_pictures(folder):
    """Writes the demo's pictures, and beside those with a bird and leaves the masks of both."""
    folder.mkdir(exist_ok=True)
    for name, seed, what in SCENES:
        view = scene(np.random.default_rng(seed), **what)
        Image.fromarray(view.pixels).save(folder / f"{name}.png", optimize=True)
        if {"bird", "leaves"} <= view.masks.keys():
            for thing in ("bird", "leaves"):
                mask = np.where(view.masks[thing] > 127, 255, 0).astype(np.uint8)
                Image.fromarray(mask).save(folder / f"{name}.{thing}.png", optimize=True)
    for name, seed, bend in ROADS:
        pixels, _ = road(np.random.default_rng(seed), bend, tilt=0.0)
        Image.fromarray(pixels).save(folder / f"{name}.png", optimize=True)


def read_pictures(folder, names):
    return np.stack([np.asarray(Image.open(folder / f"{name}.png")) for name in names])


def report_roads(net, rng, folder):
    pixels, angles = draw_roads(rng, 500)
    with torch.no_grad():
        error = (net(batch(pixels)) - angles).abs().mean().item()
        demo = net(batch(read_pictures(folder, [name for name, *_ in ROADS]))).flatten().tolist()
    spread = (angles - angles.mean()).abs().mean().item()
    print(f"steering: fresh roads: mean absolute error {error:.4f} (always saying the mean: {spread:.3f})")
    print("  " + ", ".join(f"{name} {angle:+.2f}" for (name, *_), angle in zip(ROADS, demo)))


def main():
    torch.set_num_threads(1)
    began = time.time()
    rng = np.random.default_rng(1)
    pixels, animal, things = draw_scenes(rng, 6000)
    roads, angles = draw_roads(rng, 3000)
    print(f"drew {len(pixels)} scenes and {len(roads)} roads in {time.time() - began:.0f} s", flush=True)

    follows = things[:, THINGS.index("bird")] == things[:, THINGS.index("leaves")]
    nets = {}
    for name, kept in (("scene_biased", follows), ("scene_fair", torch.ones_like(follows))):
        print(f"{name}: training on {int(kept.sum())} pictures")
        nets[name] = train(SceneNet(), scene_loss, 4000, pixels[kept.numpy()], animal[kept], things[kept])
    print(f"steering: training on {len(roads)} roads")
    steering = train(SteeringNet(), steering_loss, 3000, roads, angles)

    write_pictures(HERE / "pictures")
    report_scenes(nets, np.random.default_rng(2))
    report_roads(steering, np.random.default_rng(3), HERE / "pictures")

    labels = {"animal": CLASSES, "things": THINGS}
    for name, net in nets.items():
        metadata = {f"labels.{output}": ",".join(names) for output, names in labels.items()}
        export(net, HERE / f"{name}.onnx", SCENE_NAMES, metadata)
    export(steering, HERE / "steering.onnx", STEERING_NAMES, {"labels.angle": "angle"})
    (HERE / "animals.txt").write_text("\n".join(CLASSES) + "\n")
    (HERE / "things.txt").write_text("\n".join(THINGS) + "\n")
    print(f"done in {(time.time() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
