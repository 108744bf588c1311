#!/usr/bin/env bash
# Checks exported explanations with onnxruntime-web, under Node and on the page in headless Chromium. Installs what is missing.
set -euo pipefail
cd "$(dirname "$0")"

missing=()
{ command -v node && command -v npm; } >/dev/null || missing+=(nodejs npm)
command -v chromium chromium-browser google-chrome >/dev/null || missing+=(chromium)
if [ ${#missing[@]} -gt 0 ]; then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -qq --yes --no-install-recommends "${missing[@]}"
fi

./build.sh
node compare.mjs
node check.mjs
