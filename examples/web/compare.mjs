// Runs exported explanations with onnxruntime-web (WebAssembly) under Node, and compares them with Ouzel's own in float64.
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
const ouzel = (...words) => execFileSync(binary, words, { encoding: "utf8", stdio: "pipe" });

// What is exported, and how far the second-nearest of five samples may be, or four times as far as Ouzel's own float32 is: a Relu
// that nearly ties falls on the other side in any two programs that round differently, and moves a gradient by about 1e-3. Among
// many variants, some do.
const METHODS = [
  [1e-5, "--method", "saliency"],
  [1e-5, "--method", "grad-cam"],
  [1e-3, "--method", "smoothgrad", "--samples", "10"],
  [1e-3, "--method", "integrated-gradients", "--steps", "10"],
];
const BATCHES = [1, 2, 2];
const FARTHEST = 5e-2;

/** A .npy file of float32 in 0…1 that look random and are always the same. */
function write(path, shape, seed) {
  let state = seed;
  const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  const values = Float32Array.from({ length: shape.reduce((product, length) => product * length, 1) }, next);
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(", ")},), }`.padEnd(117) + "\n";
  const head = Buffer.from([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length & 255, header.length >> 8]);
  writeFileSync(path, Buffer.concat([head, Buffer.from(header), Buffer.from(values.buffer)]));
  return values;
}

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";
const demo = ["scene_biased", "scene_fair", "steering"].map((name) => join(root, `assets/${name}.onnx`));
const networks = process.argv.length > 2 ? process.argv.slice(2) : demo;
let failed = 0;
try {
  for (const network of networks) {
    const [input] = JSON.parse(ouzel("inspect", network, "--json")).inputs;
    const known = Number(input.shape[0]);
    const [x, saved, raw, map] = ["x.npy", "saved.onnx", "raw.npy", "map.npy"].map((name) => join(folder, name));
    for (const [tolerance, ...method] of METHODS) {
      ouzel("export", network, "-o", saved, ...method, "--quiet");
      const session = await ort.InferenceSession.create(readFileSync(saved));
      const errors = { attribution: [], heatmap: [] };
      const own = { attribution: [], heatmap: [] };
      let taken = Infinity;
      for (const [seed, batch] of (known ? BATCHES.map(() => known) : BATCHES).entries()) {
        const shape = [batch, ...input.shape.slice(1).map(Number)];
        const values = write(x, shape, seed);
        const [single, exact] = ["f32", "f64"].map((precision) => {
          ouzel("explain", network, x, ...method, "--precision", precision, "--raw-npy", raw, "--npy", map, "--quiet");
          return { attribution: npy(raw), heatmap: npy(map) };
        });
        const start = performance.now();
        const found = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", values, shape) });
        taken = Math.min(taken, (performance.now() - start) / batch);
        for (const [name, expected] of Object.entries(exact)) {
          const size = expected.length / batch;
          for (let sample = 0; sample < batch; sample++) {
            const part = (array) => array.subarray(sample * size, (sample + 1) * size);
            errors[name].push(relative(part(found[name].data), part(expected)));
            own[name].push(relative(part(single[name]), part(expected)));
          }
        }
      }
      await session.release();
      const sorted = (lists) => Object.values(lists).map((list) => list.toSorted((a, b) => a - b));
      const limits = sorted(own).map((list) => Math.max(tolerance, 4 * list[1]));
      const is_wrong = sorted(errors).some((list, n) => !(list[1] <= limits[n] && list.at(-1) <= FARTHEST));
      failed += is_wrong;
      const texts = sorted(errors).map((list, n) => {
        const numbers = list.map((error) => error.toExponential(1)).join(" ");
        return `${numbers} (limit ${limits[n].toExponential(1)})`;
      });
      const shown = texts.join(" and ");
      console.log(`${is_wrong ? "FAILED " : ""}${basename(network)}, ${method[1]}: ${shown}; ${Math.round(taken)} ms a sample`);
    }
  }
} finally {
  rmSync(folder, { recursive: true });
}
process.exit(failed ? 1 : 0);
