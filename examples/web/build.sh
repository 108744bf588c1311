#!/usr/bin/env bash
# Makes what the page loads: the runtime from npm, two explanations, and pictures. Then serve this folder and open index.html.
set -euo pipefail
cd "$(dirname "$0")"
ouzel() { cargo run --release --locked --quiet -p ouzel-cli -- "$@"; }
[ -d node_modules/onnxruntime-web ] || npm install --no-audit --no-fund --loglevel=error
mkdir -p build
for network in biased fair; do
    ouzel export "../../assets/scene_$network.onnx" -o "build/$network.onnx" --class input --backprop-modifier guided --quiet
done
cp ../../assets/pictures/scene_*.png build/
