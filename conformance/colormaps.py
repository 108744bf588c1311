"""Writes or checks the color tables borrowed from matplotlib, so that a borrowed name is the borrowed table.

    python conformance/colormaps.py            # writes crates/ouzel/src/image/colormaps/*.hex
    python conformance/colormaps.py --check    # exits with 1 if a file differs from the installed matplotlib

Needs matplotlib; the tables were written with 3.11.
Each file holds 256 colors in hexadecimal, eight in a row, rounded to 8 bits as matplotlib.colors.to_hex does.
"""

import argparse
import pathlib
import sys

import matplotlib
from matplotlib.colors import to_hex

NAMES = ["viridis", "magma", "inferno", "turbo", "jet", "coolwarm", "seismic", "RdBu"]
FOLDER = pathlib.Path(__file__).resolve().parent.parent / "crates" / "ouzel" / "src" / "image" / "colormaps"


def table(name):
    colormap = matplotlib.colormaps[name].resampled(256)
    colors = [to_hex(colormap(index))[1:] for index in range(256)]
    return "".join(",".join(colors[start : start + 8]) + ",\n" for start in range(0, 256, 8))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name in NAMES:
        path = FOLDER / f"{name.lower()}.hex"
        if not check:
            path.write_text(table(name))
        elif not path.exists() or path.read_text() != table(name):
            stale.append(path.name)
    if stale:
        sys.exit(f"these differ from matplotlib {matplotlib.__version__}: {', '.join(stale)}")


if __name__ == "__main__":
    main()
