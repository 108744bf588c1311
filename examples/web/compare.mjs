// Runs exported explanations with onnxruntime-web (WebAssembly) under Node, and compares them with Ouzel's own.
//
//     node examples/web/compare.mjs [NETWORK.onnx …]     after build.sh; OUZEL=… for another binary
//
// Without names it takes the networks of the demo. Inputs are random. Exits with 1 if a number differs.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import * as ort from "onnxruntime-web";
import { npy, relative } from "./numbers.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
const folder = mkdtempSync(join(tmpdir(), "ouzel-"));
const binary = process.env.OUZEL ?? join(root, "target/release/ouzel");
const ouzel = (...words) => execFileSync(binary, words, { encoding: "utf8" });

// What is exported, and the largest relative difference. Noise and paths are a loop in the file.
const METHODS = [
  ["--method", "saliency"],
  ["--method", "grad-cam"],
  ["--method", "smoothgrad", "--samples", "10"],
  ["--method", "integrated-gradients", "--steps", "10"],
];
const TOLERANCE = 1e-4;

/** A .npy file of float32 in 0…1 that look random and are always the same. */
function write(path, shape) {
  let state = 1;
  const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  const values = Float32Array.from({ length: shape.reduce((product, length) => product * length, 1) }, next);
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`.padEnd(117) + "\n";
  const head = Buffer.from([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length & 255, header.length >> 8]);
  writeFileSync(path, Buffer.concat([head, Buffer.from(header), Buffer.from(values.buffer)]));
  return values;
}

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";
const networks = process.argv.length > 2 ? process.argv.slice(2) : ["scene_biased", "scene_fair", "steering"].map((name) => join(root, `assets/${name}.onnx`));
let failed = 0;
try {
  for (const network of networks) {
    const [input] = JSON.parse(ouzel("inspect", network, "--json")).inputs;
    for (const batch of [1, 2]) {
      const known = Number(input.shape[0]);
      if (known && known !== batch) continue;
      const shape = [batch, ...input.shape.slice(1).map(Number)];
      const [x, saved, raw, map] = ["x.npy", "saved.onnx", "raw.npy", "map.npy"].map((name) => join(folder, name));
      const values = write(x, shape);
      for (const method of METHODS) {
        ouzel("export", network, "-o", saved, ...method, "--quiet");
        ouzel("explain", network, x, ...method, "--raw-npy", raw, "--npy", map, "--quiet");
        const session = await ort.InferenceSession.create(readFileSync(saved));
        const start = performance.now();
        const found = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", values, shape) });
        const taken = Math.round(performance.now() - start);
        const errors = [relative(found.attribution.data, npy(raw)), relative(found.heatmap.data, npy(map))];
        await session.release();
        const is_wrong = !errors.every((error) => error < TOLERANCE);
        failed += is_wrong;
        const shown = errors.map((error) => error.toExponential(1)).join(" and ");
        console.log(`${is_wrong ? "FAILED " : ""}${basename(network)}, ${method[1]}, batch ${batch}: ${shown}, ${taken} ms`);
      }
    }
  }
} finally {
  rmSync(folder, { recursive: true });
}
process.exit(failed ? 1 : 0);
