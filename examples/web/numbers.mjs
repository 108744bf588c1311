// Arrays as Ouzel writes them, and how far two are apart.

import { readFileSync } from "node:fs";

/** The numbers of a .npy file of float32 or float64. */
export function npy(path) {
  const bytes = readFileSync(path);
  const start = 10 + bytes.readUInt16LE(8);
  const Numbers = bytes.subarray(10, start).includes("'<f8'") ? Float64Array : Float32Array;
  return new Numbers(bytes.buffer.slice(bytes.byteOffset + start, bytes.byteOffset + bytes.length));
}

/** The relative L2 difference; infinite for arrays of different lengths. */
export function relative(found, expected) {
  if (found.length !== expected.length) return Infinity;
  const sum = (term) => expected.reduce((total, value, index) => total + term(value, found[index]) ** 2, 0);
  return Math.sqrt(sum((a, b) => a - b) / sum((a) => a));
}
