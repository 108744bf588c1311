"""Draws the pictures that the demo's networks learn from: scenes with animals and things, and roads.

Everything is procedural and seeded: the same random generator gives the same picture. Objects are
drawn three times too large on transparent sheets, lit, laid over each other and reduced, so that edges
are smooth and the mask of each object (what of it can be seen) is exact.

    python draw.py sheet.png      # a contact sheet, to look at
"""

import sys
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = 128  # pixels of a finished picture, each way
FINE = 3  # how many times larger it is drawn
BIG = SIZE * FINE

ANIMALS = ["bird", "cat", "fish", "rabbit", "butterfly"]
THINGS = [*ANIMALS, "tree", "leaves", "house", "sun", "flowers", "pond"]


# ---- Paper and ink ----------------------------------------------------------------------------------


def mix(a, b, t):
    """The colour a share `t` of the way from `a` to `b`."""
    return tuple(int(x + (y - x) * t) for x, y in zip(a, b))


def jitter(rng, colour, amount=18):
    """`colour`, a little different each time: lighter or darker, warmer or cooler."""
    change = rng.normal(0, amount) + rng.normal(0, amount / 3, 3)
    return tuple(int(v) for v in np.clip(np.add(colour, change), 0, 255))


def pick(rng, choices):
    return choices[rng.integers(len(choices))]


@lru_cache(maxsize=None)
def noise_sheet(seed):
    """Fractal noise in 0..1, half as large again as a picture: random grids, each twice as fine."""
    rng = np.random.default_rng(seed)
    side, total, weight = BIG * 3 // 2, 0.0, 1.0
    for cells in (4, 8, 16, 32, 64, 128, 256):
        grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        total = total + weight * np.asarray(grid.resize((side, side), Image.BICUBIC))
        weight *= 0.62
    low, high = np.percentile(total, (1, 99))
    return np.clip((total - low) / (high - low), 0, 1).astype(np.float32)


def noise(rng, width=BIG, height=BIG):
    """A random piece of one of eight noise sheets, height × width."""
    sheet = noise_sheet(int(rng.integers(8)))
    y = rng.integers(sheet.shape[0] - height + 1)
    x = rng.integers(sheet.shape[1] - width + 1)
    return sheet[y : y + height, x : x + width][:: pick(rng, (1, -1)), :: pick(rng, (1, -1))]


def smooth(points, steps=6):
    """A closed Catmull-Rom curve through `points`."""
    p1 = np.asarray(points, float)[:, None]
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return (curve / 2).reshape(-1, 2)


class Sheet:
    """A transparent sheet with a pen that draws in one object's own coordinates.

    The origin lies at pixel (x, y) of the finished picture, a unit is `size` pixels long, y points down.
    """

    def __init__(self, x=0.0, y=0.0, size=1.0, flip=1, tilt=0.0):
        self.image = Image.new("RGBA", (BIG, BIG))
        self.pen = ImageDraw.Draw(self.image)
        self.unit = size * FINE
        self.origin = np.array((x, y)) * FINE
        self.turn = self.unit * np.array(((np.cos(tilt) * flip, np.sin(tilt)), (-np.sin(tilt) * flip, np.cos(tilt))))

    def place(self, points):
        return (np.asarray(points, float) @ self.turn.T + self.origin).ravel().tolist()

    def polygon(self, points, colour):
        self.pen.polygon(self.place(points), fill=colour)

    def blob(self, points, colour):
        self.polygon(smooth(points), colour)

    def ellipse(self, x, y, rx, ry, colour, tilt=0.0):
        t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        c, s = np.cos(tilt), np.sin(tilt)
        u, v = rx * np.cos(t), ry * np.sin(t)
        self.polygon(np.stack((x + c * u - s * v, y + s * u + c * v), 1), colour)

    def line(self, points, width, colour):
        self.pen.line(self.place(points), fill=colour, width=max(1, round(width * self.unit)), joint="curve")

    def eye(self, x, y, r, iris=(30, 22, 18)):
        self.ellipse(x, y, r * 1.35, r * 1.35, (250, 248, 240))
        self.ellipse(x, y, r, r, iris)
        self.ellipse(x, y, r * 0.6, r * 0.8, (8, 8, 10))
        self.ellipse(x + r * 0.35, y - r * 0.35, r * 0.32, r * 0.32, (255, 255, 255))

    def hairs(self, rng, count, length, angle, spread=0.5):
        """Fur or feathers: short strokes, each a lighter or darker shade of the colour that it lies on."""
        if (box := self.image.getbbox()) is None:
            return
        pixels = np.asarray(self.image.crop(box))
        ys, xs = np.nonzero(pixels[..., 3])
        chosen = rng.integers(len(ys), size=count)
        ys, xs = ys[chosen], xs[chosen]
        factors = np.where(rng.random(count) < 0.5, 0.74, 1.24)[:, None]
        colours = np.clip(pixels[ys, xs, :3] * factors, 0, 255).astype(int)
        ends = np.stack((np.cos(a := rng.normal(angle, spread, count)), np.sin(a)), 1) @ self.turn.T * length
        for x, y, (dx, dy), colour in zip(xs + box[0], ys + box[1], ends.tolist(), colours.tolist()):
            self.pen.line((x, y, x + dx, y + dy), fill=(*colour, 255), width=2)

    def light(self, rng, depth=0.5, grain=0.25):
        """Light from the upper left, as on something round, and a little grain."""
        if (box := self.image.getbbox()) is None:
            return self
        part = self.image.crop(box)
        alpha = part.getchannel("A")
        reach = max(3, min(part.size) // 7)
        soft = ImageChops.invert(alpha).filter(ImageFilter.BoxBlur(reach))
        soft = np.asarray(soft, np.float32) / 255
        soft = np.pad(soft, reach, mode="edge")
        relief = soft[: -2 * reach, : -2 * reach] - soft[2 * reach :, 2 * reach :]
        shade = 1 + depth * relief + grain * (noise(rng, *part.size) - 0.5)
        rgb = np.asarray(part.convert("RGB"), np.float32) * shade[..., None]
        lit = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).convert("RGBA")
        lit.putalpha(alpha)
        self.image.paste(lit, box[:2])
        return self


# ---- Animals: each about two units wide, looking right, standing on y = 0.8 ------------------------

BIRDS = [  # back, breast, belly, wing, beak
    ((122, 94, 68), (222, 100, 44), (240, 230, 214), (94, 72, 56), (92, 74, 50)),  # robin
    ((74, 122, 186), (246, 208, 70), (250, 236, 170), (44, 84, 160), (70, 70, 80)),  # blue tit
    ((206, 46, 44), (220, 70, 56), (226, 96, 80), (150, 28, 36), (244, 150, 50)),  # cardinal
    ((236, 192, 44), (244, 206, 74), (250, 232, 150), (46, 44, 48), (226, 120, 60)),  # goldfinch
    ((52, 50, 58), (240, 238, 232), (70, 68, 76), (36, 34, 42), (246, 184, 50)),  # ring ouzel
    ((128, 136, 148), (236, 150, 130), (240, 232, 226), (64, 68, 80), (50, 50, 56)),  # bullfinch
]


def bird(s, rng, flying=False):
    back, breast, belly, wing, beak = (jitter(rng, c, 10) for c in pick(rng, BIRDS))
    if flying:  # the far wing
        s.blob([(-0.1, -0.1), (-0.35, -1.0), (0.1, -1.15), (0.35, -0.5), (0.3, -0.1)], mix(wing, (0, 0, 0), 0.25))
    else:
        for x in (0.02, 0.2):
            s.line([(x, 0.4), (x + 0.04, 0.8), (x + 0.18, 0.8)], 0.06, mix(beak, (60, 40, 30), 0.5))
    s.polygon([(-0.4, 0.02), (-1.3, 0.26), (-1.36, 0.5), (-1.12, 0.46), (-0.35, 0.38)], wing)
    s.line([(-0.5, 0.2), (-1.25, 0.4)], 0.04, mix(wing, (255, 255, 255), 0.35))
    s.blob([(0.42, -0.72), (0.7, -0.56), (0.72, -0.28), (0.66, 0.1), (0.38, 0.46), (-0.1, 0.52), (-0.55, 0.34),
            (-0.68, 0.12), (-0.3, -0.12), (0.05, -0.36), (0.16, -0.6)], back)
    s.blob([(0.64, -0.26), (0.66, 0.08), (0.4, 0.42), (-0.08, 0.5), (-0.4, 0.36), (0.1, 0.2), (0.36, -0.1)], belly)
    s.blob([(0.66, -0.34), (0.68, 0.02), (0.46, 0.3), (0.2, 0.24), (0.28, -0.08), (0.44, -0.28)], breast)
    s.hairs(rng, 130, 0.14, np.pi * 0.8)
    if flying:
        s.blob([(0.3, -0.05), (0.12, -0.6), (-0.35, -1.25), (-0.62, -1.2), (-0.6, -0.6), (-0.4, 0.05)], wing)
        feathers = [((x, 0.0), (x - 0.42, -1.05)) for x in (-0.25, -0.1, 0.05, 0.18)]
    else:
        s.blob([(0.26, -0.1), (0.28, 0.12), (0.0, 0.3), (-0.45, 0.36), (-0.92, 0.4), (-0.6, 0.08), (-0.15, -0.16)],
               wing)
        feathers = [((0.16 - k, 0.02 + k / 3), (-0.62 - k / 3, 0.2 + k / 2)) for k in (0.0, 0.14, 0.28)]
    for stroke in feathers:
        s.line(stroke, 0.045, mix(wing, (255, 255, 255), 0.45))
    s.polygon([(0.66, -0.56), (1.06, -0.4), (0.68, -0.3)], beak)
    s.line([(0.68, -0.42), (1.0, -0.4)], 0.03, mix(beak, (0, 0, 0), 0.5))
    s.eye(0.48, -0.48, 0.09)


def cat(s, rng):
    coat = jitter(rng, pick(rng, [(222, 140, 66), (132, 128, 128), (70, 64, 66), (236, 226, 210), (160, 118, 84)]), 12)
    dark, pale = mix(coat, (30, 20, 16), 0.5), mix(coat, (255, 250, 240), 0.6)
    t = np.linspace(0, 1, 12)
    lift = rng.uniform(0.5, 1.1)
    s.line(np.stack((-0.45 - 0.55 * np.sin(t * 2.6), 0.68 - lift * t), 1), 0.19, coat)
    s.blob([(0.2, -0.3), (0.44, 0.2), (0.46, 0.8), (-0.5, 0.8), (-0.68, 0.5), (-0.45, 0.0), (-0.1, -0.3)], coat)
    for x in (-0.45, -0.28, -0.1):  # tabby stripes
        s.line([(x, 0.02 - x / 3), (x - 0.1, 0.4)], 0.07, dark)
    s.blob([(0.3, 0.0), (0.4, 0.3), (0.26, 0.5), (0.1, 0.3), (0.14, 0.0)], pale)
    for x in (0.12, 0.36):
        s.line([(x, 0.3), (x, 0.72)], 0.17, coat)
        s.ellipse(x + 0.04, 0.74, 0.14, 0.08, pale)
    for x in (0.0, 0.52):  # ears
        out = -0.1 if x == 0 else 0.1
        s.polygon([(x - 0.16, -0.62), (x + out, -1.1), (x + 0.18, -0.62)], coat)
        s.polygon([(x - 0.07, -0.66), (x + out * 0.8, -0.96), (x + 0.09, -0.66)], (232, 150, 144))
    s.ellipse(0.26, -0.45, 0.46, 0.38, coat)
    for x in (0.16, 0.26, 0.36):
        s.line([(x, -0.82), (0.26 + (x - 0.26) * 0.7, -0.62)], 0.05, dark)
    s.ellipse(0.28, -0.28, 0.22, 0.15, pale)
    s.hairs(rng, 170, 0.12, np.pi * 0.55)
    iris = pick(rng, [(120, 190, 70), (226, 180, 50), (90, 170, 210)])
    for x in (0.1, 0.44):
        s.ellipse(x, -0.5, 0.1, 0.1, iris)
        s.ellipse(x, -0.5, 0.035, 0.095, (10, 10, 10))
        s.ellipse(x + 0.03, -0.54, 0.025, 0.025, (255, 255, 255))
    s.polygon([(0.22, -0.36), (0.34, -0.36), (0.28, -0.28)], (216, 110, 110))
    for side in (-1, 1):
        for dy in (-0.05, 0.03):
            s.line([(0.28 + side * 0.14, -0.28), (0.28 + side * 0.58, -0.28 + dy * 2)], 0.02, (250, 250, 250))


def fish(s, rng):
    body = jitter(rng, pick(rng, [(246, 130, 40), (230, 72, 60), (80, 150, 200), (240, 196, 60), (150, 160, 176)]), 12)
    fin, pale = mix(body, (120, 30, 20), 0.35), mix(body, (255, 255, 250), 0.6)
    s.blob([(-0.6, 0.0), (-1.15, -0.5), (-1.0, -0.05), (-1.2, 0.42), (-0.85, 0.28)], fin)
    s.blob([(0.25, -0.36), (-0.1, -0.75), (-0.5, -0.55), (-0.5, -0.15)], fin)
    s.blob([(0.1, 0.3), (-0.15, 0.68), (-0.35, 0.25)], fin)
    s.blob([(0.95, 0.02), (0.6, -0.34), (0.0, -0.46), (-0.5, -0.22), (-0.78, 0.0), (-0.5, 0.24), (0.0, 0.42),
            (0.6, 0.32)], body)
    s.blob([(0.88, 0.12), (0.5, 0.16), (0.0, 0.2), (-0.5, 0.14), (0.0, 0.4), (0.6, 0.31)], pale)
    scales = np.linspace(-1.2, 1.2, 7)
    for row, x in enumerate(np.arange(-0.5, 0.4, 0.16)):  # rows of scales
        for y in np.arange(-0.24, 0.3, 0.16) + 0.08 * (row % 2):
            arc = np.stack((x - 0.09 * np.cos(scales), y + 0.085 * np.sin(scales)), 1)
            s.line(arc, 0.025, mix(body, (40, 20, 20), 0.45))
    arc = np.linspace(-1.1, 1.1, 9)
    s.line(np.stack((0.42 + 0.1 * np.cos(arc), 0.3 * np.sin(arc)), 1), 0.04, fin)
    s.blob([(0.2, 0.06), (-0.12, 0.0), (-0.2, 0.2), (0.05, 0.24)], fin)
    s.hairs(rng, 40, 0.1, 0.0)
    s.eye(0.68, -0.08, 0.1)


def rabbit(s, rng):
    coat = jitter(rng, pick(rng, [(168, 132, 98), (206, 200, 194), (120, 104, 94), (232, 214, 186)]), 10)
    dark, pale = mix(coat, (50, 34, 24), 0.35), mix(coat, (255, 252, 246), 0.7)
    s.ellipse(-0.82, 0.42, 0.2, 0.19, pale)
    for x, tilt in ((0.28, -0.35), (0.5, -0.05)):
        s.ellipse(x, -0.86, 0.13, 0.46, dark if x < 0.3 else coat, tilt)
        s.ellipse(x, -0.82, 0.06, 0.34, (230, 164, 156), tilt)
    s.blob([(0.3, -0.1), (0.5, 0.4), (0.4, 0.8), (-0.6, 0.8), (-0.82, 0.45), (-0.5, 0.0), (-0.05, -0.14)], coat)
    s.blob([(-0.1, 0.3), (-0.08, 0.75), (-0.6, 0.78), (-0.66, 0.45), (-0.4, 0.2)], mix(coat, dark, 0.35))
    s.ellipse(-0.22, 0.77, 0.32, 0.08, pale)
    s.ellipse(0.42, 0.76, 0.2, 0.08, pale)
    s.ellipse(0.5, -0.26, 0.37, 0.31, coat)
    s.ellipse(0.7, -0.14, 0.18, 0.14, pale)
    s.hairs(rng, 180, 0.12, np.pi * 0.85)
    s.ellipse(0.86, -0.22, 0.055, 0.05, (200, 110, 112))
    s.eye(0.56, -0.34, 0.085, (70, 40, 24))


def butterfly(s, rng):
    wing = jitter(rng, pick(rng, [(244, 150, 30), (70, 130, 224), (240, 222, 90), (214, 80, 150), (240, 240, 246)]), 12)
    edge, spot = (38, 28, 34), mix(wing, (255, 255, 255), 0.65)
    for side in (-1, 1):
        upper = np.array([(0.06, -0.1), (0.35, -0.72), (0.9, -0.86), (1.02, -0.45), (0.62, 0.0), (0.1, 0.08)])
        lower = np.array([(0.06, 0.02), (0.6, 0.06), (0.78, 0.42), (0.5, 0.78), (0.2, 0.5)])
        for shape in (lower, upper):
            shape = shape * (side, 1)
            middle = shape.mean(0)
            s.blob(shape, edge)
            s.blob(middle + (shape - middle) * 0.8, wing)
            for x, y in middle + (shape[1:4] - middle) * 0.9:
                s.ellipse(x, y, 0.06, 0.06, (252, 250, 240))
            s.ellipse(*(middle + (0.08 * side, 0)), 0.13, 0.13, edge)
            s.ellipse(*(middle + (0.08 * side, 0)), 0.08, 0.08, spot)
        s.line([(0, -0.4), (0.1 * side, -0.7), (0.26 * side, -0.86)], 0.035, edge)
    s.hairs(rng, 60, 0.1, np.pi / 2, 1.5)
    s.ellipse(0, 0.0, 0.075, 0.5, edge)
    s.ellipse(0, -0.45, 0.1, 0.1, edge)


# ---- Things -----------------------------------------------------------------------------------------

FOLIAGE = [((26, 74, 34), (120, 184, 62)), ((30, 84, 52), (110, 176, 96)), ((54, 82, 22), (176, 190, 58)),
           ((130, 62, 20), (236, 164, 52))]


def leaves(s, rng, middles, colours, length=0.062):
    """One two-toned, pointed leaf at each of `middles`."""
    for (x, y), (dark, pale), angle, scale in zip(
        middles, colours, rng.uniform(0, 2 * np.pi, len(middles)), rng.uniform(0.8, 1.25, len(middles)) * length
    ):
        along = np.array((np.cos(angle), np.sin(angle))) * scale
        across = np.array((-along[1], along[0])) * 0.5
        m = np.array((x, y))
        s.polygon([m - along, m - across, m + along, m + across], dark)
        s.polygon([m - along, m - across, m + along], pale)


def trunk(s, rng):
    """A bare tree of height 1 that stands on y = 0; returns the colour of its bark."""
    bark = jitter(rng, (104, 76, 52), 12)
    s.blob([(-0.09, 0.02), (-0.045, -0.2), (-0.035, -0.5), (0.035, -0.5), (0.045, -0.2), (0.1, 0.02)], bark)
    s.hairs(rng, 110, 0.06, np.pi / 2, 0.2)

    def grow(x, y, angle, length, width):
        tip = x + length * np.sin(angle), y - length * np.cos(angle)
        s.line([(x, y), tip], width, bark)
        if length > 0.08:
            for turn in (-0.5, 0.45):
                grow(*tip, angle + turn + rng.normal(0, 0.12), length * rng.uniform(0.6, 0.8), width * 0.62)

    for height, angle in ((-0.36, -0.9), (-0.42, 0.85), (-0.48, -0.3), (-0.48, 0.3)):
        grow(0, height, angle, 0.2, 0.045)
    return bark


def crown(s, rng):
    """The leaves of such a tree: eight clumps, lit from the upper left; returns their dark and pale colours."""
    dark, pale = pick(rng, FOLIAGE[:3] * 2 + FOLIAGE)
    ring = rng.uniform(0, 2 * np.pi) + np.arange(7) * 2 * np.pi / 7
    clumps = np.vstack((np.stack((0.25 * np.cos(ring), -0.67 + 0.17 * np.sin(ring)), 1), [(0, -0.68)]))
    clumps += rng.normal(0, 0.02, clumps.shape)
    for x, y in clumps:
        s.ellipse(x, y, 0.13, 0.115, mix(dark, (8, 16, 10), 0.3))
    count = 270
    angle, radius = rng.uniform(0, 2 * np.pi, count), 0.165 * np.sqrt(rng.random(count))
    offsets = np.stack((np.cos(angle), np.sin(angle)), 1) * radius[:, None]
    height = -offsets.sum(1) / 0.33 + rng.normal(0, 0.35, count)
    order = np.argsort(height)
    tones = [jitter(rng, mix(dark, pale, t), 8) for t in np.clip(0.42 + 0.4 * height[order], 0, 1)]
    colours = [(mix(tone, (0, 0, 0), 0.25), mix(tone, (255, 255, 200), 0.18)) for tone in tones]
    leaves(s, rng, (clumps[rng.integers(len(clumps), size=count)] + offsets)[order], colours)
    return dark, pale


def house(s, rng):
    wall = jitter(rng, pick(rng, [(238, 224, 200), (214, 160, 130), (200, 206, 212), (240, 206, 140)]), 10)
    roof = jitter(rng, pick(rng, [(170, 70, 52), (96, 84, 90), (128, 88, 60)]), 10)
    s.polygon([(-0.8, 0), (-0.8, -0.7), (0.8, -0.7), (0.8, 0)], wall)
    for y in np.arange(-0.62, 0, 0.12):
        s.line([(-0.8, y), (0.8, y)], 0.015, mix(wall, (60, 40, 30), 0.25))
    s.polygon([(0.4, -0.9), (0.4, -1.35), (0.58, -1.35), (0.58, -0.8)], mix(roof, (0, 0, 0), 0.2))
    s.polygon([(-0.98, -0.66), (-0.6, -1.2), (0.6, -1.2), (0.98, -0.66)], roof)
    for k, y in enumerate(np.arange(-1.14, -0.66, 0.1)):
        for x in np.arange(-0.95, 0.95, 0.16) + 0.08 * (k % 2):
            if abs(x) < 0.9 + (y + 0.66) * 0.6:
                s.line([(x, y), (x, y + 0.08)], 0.02, mix(roof, (0, 0, 0), 0.35))
    for x in (-0.5, 0.5):
        s.polygon([(x - 0.19, -0.53), (x + 0.19, -0.53), (x + 0.19, -0.2), (x - 0.19, -0.2)], (250, 248, 240))
        s.polygon([(x - 0.15, -0.49), (x + 0.15, -0.49), (x + 0.15, -0.24), (x - 0.15, -0.24)], (86, 120, 150))
        s.line([(x, -0.5), (x, -0.22)], 0.03, (250, 248, 240))
    s.polygon([(-0.14, 0), (-0.14, -0.45), (0.14, -0.45), (0.14, 0)], mix(roof, (40, 20, 10), 0.4))
    s.ellipse(0.08, -0.2, 0.025, 0.025, (240, 210, 110))


def flowers(s, rng):
    """A bed of daisies and poppies, one unit wide."""
    for _ in range(16):
        x, y = rng.uniform(-0.6, 0.6), rng.uniform(-0.22, 0.22)
        petal = jitter(rng, pick(rng, [(252, 250, 246), (230, 60, 60), (246, 200, 60), (190, 110, 210)]), 8)
        s.line([(x, y), (x + 0.02, y + 0.2)], 0.025, (64, 120, 44))
        for a in np.arange(5) * 2 * np.pi / 5 + rng.uniform(0, 1):
            s.ellipse(x + 0.058 * np.cos(a), y + 0.058 * np.sin(a), 0.042, 0.042, petal)
        s.ellipse(x, y, 0.04, 0.04, (250, 196, 40))


def pond(s, rng):
    """Rippled water with a bank, two units wide."""
    rim = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    edge = np.stack((np.cos(rim), 0.34 * np.sin(rim)), 1) * rng.uniform(0.9, 1.06, (14, 1))
    water = jitter(rng, (62, 128, 168), 12)
    s.blob(edge * 1.05 + (0, 0.02), (116, 98, 66))
    s.blob(edge, water)
    for _ in range(26):
        x, y = rng.uniform(-0.75, 0.75), rng.uniform(-0.24, 0.24)
        w = rng.uniform(0.06, 0.2) * np.sqrt(max(0.05, 1 - x * x - (y / 0.34) ** 2))
        bright = rng.random() < 0.6
        tone = mix(water, (240, 250, 255), rng.uniform(0.2, 0.7)) if bright else mix(water, (10, 30, 70), 0.35)
        s.line([(x - w, y), (x, y - 0.015), (x + w, y)], 0.022, tone)


# ---- Landscape --------------------------------------------------------------------------------------

SKIES = [((64, 128, 208), (200, 226, 244)), ((92, 148, 214), (238, 236, 220)), ((112, 120, 190), (250, 200, 160)),
         ((140, 168, 198), (226, 230, 228)), ((48, 104, 180), (170, 214, 236))]
GRASS = [(104, 152, 66), (126, 158, 74), (92, 140, 84), (150, 158, 84)]


def sky(rng):
    """Sky and clouds as float pixels, and the colour of the haze at the horizon."""
    top, bottom = (jitter(rng, c, 8) for c in pick(rng, SKIES))
    t = np.linspace(0, 1.6, SIZE, dtype=np.float32).clip(0, 1)[:, None, None]
    clouds = np.clip(noise(rng)[::FINE, ::FINE, None] * 2.6 - 1.25, 0, 0.85) * (1.3 - 2 * t).clip(0, 1)
    blue = np.float32(top) * (1 - t) + np.float32(bottom) * t
    return blue + (np.float32((252, 250, 246)) - blue) * clouds, bottom


def ridge(rng, height, roughness):
    """The y of a line of hills at each column."""
    x = np.linspace(0, 1, SIZE)
    return height + roughness * sum(np.sin(x * f + rng.uniform(0, 7)) / f for f in (3, 7, 13, 29))


def land(rng, pixels, top, colour, grain):
    """Fills everything under the line `top` with grainy ground, darker towards the viewer."""
    below = (np.arange(SIZE)[:, None] - top[None]).astype(np.float32)[..., None]
    shade = 1.08 - 0.35 * below / SIZE + grain * (noise(rng)[::FINE, ::FINE, None] - 0.5)
    return pixels + (np.float32(colour) * shade - pixels) * below.clip(0, 1)


def landscape(rng, horizon):
    """Sky, two ranges of hills and a meadow; returns the large picture and the meadow's green."""
    pixels, haze = sky(rng)
    green = jitter(rng, pick(rng, GRASS), 10)
    for nearer, distance in enumerate((0.72, 0.45)):
        hills = mix(mix(green, (70, 110, 120), 0.5), haze, distance)
        pixels = land(rng, pixels, ridge(rng, horizon - 12 + 8 * nearer, 16), hills, 0.25)
    pixels = land(rng, pixels, ridge(rng, horizon, 5), green, 0.5)
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return picture.resize((BIG, BIG), Image.BICUBIC), green


def grass(rng, picture, green, horizon, count=260):
    """Blades of grass, longer towards the viewer."""
    pen = ImageDraw.Draw(picture)
    depth = rng.random(count) ** 0.8
    ys = (horizon + 6 + depth * (SIZE - horizon)) * FINE
    xs, lean = rng.uniform(0, BIG, count), rng.normal(0, 0.3, count)
    for x, y, d, l in zip(xs, ys, depth, lean):
        length = (1.5 + 5 * d) * FINE
        colour = mix(green, pick(rng, [(200, 216, 120), (30, 70, 30)]), rng.uniform(0.15, 0.5))
        pen.line((x, y, x + l * length, y - length), fill=colour, width=2)


# ---- Scenes -----------------------------------------------------------------------------------------


class Scene:
    """A picture, what is on it, and where: `masks[name]` is the visible part, 0..255."""

    def __init__(self, picture):
        self.big, self.masks = picture.convert("RGBA"), {}

    def add(self, name, sheet):
        self.big.alpha_composite(sheet.image)
        alpha = sheet.image.getchannel("A")
        for other in self.masks:
            self.masks[other] = ImageChops.subtract(self.masks[other], alpha)
        if name:
            known = self.masks.get(name)
            self.masks[name] = ImageChops.lighter(known, alpha) if known else alpha

    def shadow(self, x, y, width):
        sheet = Sheet(x, y, width)
        sheet.ellipse(0, 0, 1, 0.22, (16, 30, 16, 90))
        self.add(None, sheet)

    def finish(self, rng):
        """Reduces picture and masks to their final size and adds the grain of a photograph."""
        pixels = np.asarray(self.big.convert("RGB").reduce(FINE), np.float32)
        self.pixels = np.clip(pixels + rng.normal(0, 2.5, pixels.shape), 0, 255).astype(np.uint8)
        self.masks = {name: np.asarray(mask.reduce(FINE)) for name, mask in self.masks.items()}
        return self


DRAW = {"bird": bird, "cat": cat, "fish": fish, "rabbit": rabbit, "butterfly": butterfly}


class Tree:
    """A tree that has been planted in a scene, where animals may sit."""

    def __init__(self, view, rng, x, horizon, leafy):
        y, size = horizon + rng.uniform(14, 30), rng.uniform(78, 104)
        view.shadow(x + 4, y, size * (0.32 if leafy else 0.2))
        wood = Sheet(x, y, size)
        self.bark, self.foliage = trunk(wood, rng), None
        view.add("tree", wood.light(rng, 0.35, 0.3))
        if leafy:
            green = Sheet(x, y, size)
            self.foliage = crown(green, rng)
            view.add("leaves", green.light(rng, 0.35, 0.3))
        self.middle, self.reach = (x, y - 0.66 * size), 0.36 * size

    def branch(self, view, rng, size):
        """Adds a branch somewhere in the crown; returns the place of an animal of that size on it."""
        side = pick(rng, (-1, 1))
        place = self.middle + self.reach * np.array((side * rng.uniform(0.2, 0.9), rng.uniform(-0.35, 0.6)))
        x, y = np.clip(place, 20, SIZE - 20)
        wood = Sheet(x, y + 0.78 * size, size, side)
        wood.line([(-1.5, 0.25), (-0.4, 0.06), (1.1, 0.05), (1.5, -0.1)], 0.14, self.bark)
        view.add("tree", wood)
        if self.foliage:
            twigs = Sheet(x, y + 0.78 * size, size, side)
            spots = np.stack((rng.uniform(-1.5, 1.6, 9), rng.normal(0.1, 0.16, 9)), 1)
            leaves(twigs, rng, spots, [self.foliage] * 9, 5.5 / size)
            view.add("leaves", twigs)
        return x, y


def scene(rng, animals=(), tree=None, things=None, perch=None):
    """A scene with the given animals and a tree that is "leafy", "bare" or not there.

    `things` (house, sun, flowers, pond) are also to be seen; `perch` says whether birds, butterflies and
    cats sit in the tree rather than beside it. Both are left to chance by default.
    """
    if things is None:
        things = {t for t, p in (("house", 0.3), ("sun", 0.35), ("flowers", 0.35), ("pond", 0.25)) if rng.random() < p}
    animals = sorted(animals, key=lambda name: name == "fish")  # its pond takes the last animal's place
    things = set(things) | ({"pond"} if "fish" in animals else set())
    horizon = rng.uniform(58, 76)
    picture, green = landscape(rng, horizon)
    grass(rng, picture, green, horizon)
    view = Scene(picture)
    columns = list(rng.permutation([24, 64, 104]) + rng.uniform(-8, 8, 3))  # where things stand

    if "sun" in things:
        spot = rng.uniform(12, 116), rng.uniform(12, 30), rng.uniform(7, 10)
        for radius, opacity in ((2.6, 26), (2.0, 40), (1.5, 70)):
            halo = Sheet(*spot)
            halo.ellipse(0, 0, radius, radius, (255, 240, 190, opacity))
            view.add(None, halo)
        disc = Sheet(*spot)
        disc.ellipse(0, 0, 1, 1, (255, 244, 206))
        view.add("sun", disc)
    if "house" in things:
        sheet = Sheet(columns[2], horizon + rng.uniform(8, 16), rng.uniform(17, 25))
        house(sheet, rng)
        view.add("house", sheet.light(rng, 0.2, 0.3))
    plant = Tree(view, rng, columns[0], horizon, tree == "leafy") if tree else None
    if "pond" in things:
        water = (columns[min(2, max(1, len(animals)))], rng.uniform(100, 116), rng.uniform(26, 38))
        sheet = Sheet(*water)
        pond(sheet, rng)
        view.add("pond", sheet.light(rng, 0.15, 0.3))
    if "flowers" in things:
        sheet = Sheet(rng.uniform(20, 108), rng.uniform(100, 118), rng.uniform(32, 50))
        flowers(sheet, rng)
        view.add("flowers", sheet)

    for k, name in enumerate(animals):
        size, flip, tilt = rng.uniform(15, 24), pick(rng, (-1, 1)), rng.normal(0, 0.08)
        x, y = columns[1 + k] + rng.uniform(-6, 6), rng.uniform(horizon + 14, 112)
        flying = name == "butterfly" or (name == "bird" and rng.random() < 0.35)
        climbs = plant and name in ("bird", "butterfly", "cat")
        if climbs and (rng.random() < 0.6 if perch is None else perch):
            flying = False
            x, y = plant.branch(view, rng, size)
        elif name == "fish":
            x, y, tilt = water[0], water[1] - rng.uniform(2, 14), rng.normal(-0.25, 0.3)
        elif flying:
            y = rng.uniform(22, 90)
        else:
            view.shadow(x, y + 0.78 * size, size * 0.8)
        sheet = Sheet(x, y, size, flip, tilt * flip)
        bird(sheet, rng, flying) if name == "bird" else DRAW[name](sheet, rng)
        view.add(name, sheet.light(rng))
    return view.finish(rng)


# ---- Roads ------------------------------------------------------------------------------------------

LOOK_AHEAD = 14.0  # metres: the driver steers for the middle of the road there
FULL_LOCK = 0.34  # radians: the angle that counts as 1


def road(rng, bend=None, tilt=None):
    """A road seen from the driver's seat: pixels, and the steering angle in -1..1 (right is positive).

    The road's middle lies at x(z) = offset + heading·z + bend·z²/2 metres, z metres ahead.
    """
    bend = rng.uniform(-0.035, 0.035) if bend is None else bend
    heading = rng.normal(0, 0.05) if tilt is None else tilt
    offset = rng.normal(0, 0.4) if tilt is None else 0.0
    half, eye, focus = 3.0, 2.1, 1.05 * SIZE
    horizon = rng.uniform(50, 58)
    angle = np.clip(np.arctan2(offset + heading * LOOK_AHEAD + bend * LOOK_AHEAD**2 / 2, LOOK_AHEAD) / FULL_LOCK, -1, 1)

    picture, green = landscape(rng, horizon)
    first = int(np.ceil((horizon + 1.2) * FINE))
    rows = (np.arange(first, BIG) + 0.5) / FINE - horizon
    z = (eye * focus / rows)[:, None]
    x = ((np.arange(BIG) + 0.5) / FINE - SIZE / 2)[None] * z / focus
    d = x - (offset + heading * z + bend * np.minimum(z, 60) ** 2 / 2)  # metres right of the road's middle
    far = np.clip(z / 110, 0, 0.6)[..., None]
    pixels = np.asarray(picture, np.float32).copy()
    ground = pixels[first:]
    grain = noise(rng, BIG, len(ground))[..., None] - 0.5
    asphalt = np.array(jitter(rng, (104, 104, 108), 12)) * (1 + 0.35 * grain)
    asphalt = asphalt * (1 - 0.1 * np.cos(d * np.pi / half * 2))[..., None]  # worn tracks
    paint = np.array(pick(rng, [(244, 242, 234), (244, 242, 234), (246, 206, 80)]))
    verge = np.array((176, 156, 118)) * (1 + 0.6 * grain)
    dashes = (z + rng.uniform(0, 9)) % 9 < 4.5
    for where, colour in (
        (abs(d) < half + 0.7, verge),
        (abs(d) < half, asphalt),
        (abs(abs(d) - half + 0.35) < 0.14, np.array((244, 242, 234)) * (1 + 0.2 * grain)),
        ((abs(d) < 0.12) & dashes, paint * (1 + 0.2 * grain)),
    ):
        np.copyto(ground, colour * (1 - far) + 190 * far, where=where[..., None])
    view = Scene(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))

    # Trees and posts beside the road, far ones first.
    for distance in sorted(rng.uniform(9, 60, rng.integers(3, 8)), reverse=True):
        side, kind = pick(rng, (-1, 1)), rng.random()
        out = half + (rng.uniform(3, 14) if kind < 0.6 else 0.9)
        middle = offset + heading * distance + bend * distance**2 / 2 + side * out
        px, py = SIZE / 2 + middle * focus / distance, horizon + eye * focus / distance
        if not -20 < px < SIZE + 20:
            continue
        sheet = Sheet(px, py, (6.5 if kind < 0.6 else 1.0) * focus / distance)
        if kind < 0.6:
            trunk(sheet, rng)
            crown(sheet, rng)
        else:
            sheet.polygon([(-0.07, 0), (-0.07, -1), (0.07, -1), (0.07, 0)], (246, 246, 242))
            sheet.polygon([(-0.07, -0.6), (-0.07, -0.85), (0.07, -0.85), (0.07, -0.6)], (206, 50, 40))
        view.add(None, sheet.light(rng, 0.3))
    return view.finish(rng).pixels, float(angle)


def contact_sheet(path, seed=1):
    """Each animal without a tree, with a bare one and with a leafy one; then roads."""
    rng = np.random.default_rng(seed)
    tiles = [scene(rng, [a] if a else [], t).pixels for a in (*ANIMALS, None) for t in (None, "bare", "leafy")]
    tiles += [road(rng)[0] for _ in range(6)]
    rows = [np.hstack(tiles[i : i + 6]) for i in range(0, 24, 6)]
    Image.fromarray(np.vstack(rows)).resize((SIZE * 12, SIZE * 8), Image.LANCZOS).save(path)


if __name__ == "__main__":
    contact_sheet(sys.argv[1])
