// Opens the page in headless Chromium, gives it pictures, and compares what it draws with Ouzel's own maps.
//
//     node examples/web/check.mjs          after ./build.sh; needs the package chromium
//
// Leaves a picture of the page in build/page.png.

import { execFileSync } from "node:child_process";
import { createReadStream, existsSync, readFileSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import puppeteer from "puppeteer-core";
import { npy, relative } from "./numbers.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, "../..");
const kinds = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".png": "image/png" };

const server = createServer((request, response) => {
  const path = join(here, normalize(decodeURIComponent(new URL(request.url, "http://x").pathname)));
  const file = existsSync(path) && statSync(path).isDirectory() ? join(path, "index.html") : path;
  if (!file.startsWith(here) || !existsSync(file)) return response.writeHead(404).end();
  response.writeHead(200, { "content-type": kinds[extname(file)] ?? "application/octet-stream" });
  createReadStream(file).pipe(response);
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const address = `http://127.0.0.1:${server.address().port}/`;

function assert(condition, text) {
  if (!condition) throw new Error(text);
}

/** Ouzel's own map of a class. */
function own(network, picture, index) {
  const out = join(here, "build/own.npy");
  const options = ["--class", String(index), "--backprop-modifier", "guided", "--preprocess", "unit", "--npy", out, "--quiet"];
  const model = join(root, `assets/scene_${network}.onnx`);
  execFileSync(join(root, "target/release/ouzel"), ["explain", model, picture, ...options]);
  return npy(out);
}

const chromium = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
assert(chromium, "Chromium is not installed: apt-get install chromium");
const browser = await puppeteer.launch({ executablePath: chromium, args: ["--no-sandbox", "--disable-gpu"] });
try {
  const page = await browser.newPage();
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("requestfailed", (request) => problems.push(`${request.url()} failed`));
  page.on("response", (response) => response.status() >= 400 && problems.push(`${response.url()}: ${response.status()}`));
  await page.setViewport({ width: 1040, height: 1120 });
  await page.goto(address);
  let explained = 0;
  const next = async () => {
    explained += 1;
    const done = (count) => Number(document.body.dataset.explained ?? 0) >= count;
    await page.waitForFunction(done, { timeout: 120_000 }, explained);
  };
  const heatmap = (place) => page.evaluate((place) => Array.from(document.querySelectorAll("canvas")[place].heatmap), place);
  const titles = () => page.evaluate(() => [...document.querySelectorAll("h2")].map((title) => title.textContent));
  const pixels = () => page.evaluate(() => document.querySelector("canvas").toDataURL());
  const compare = async (picture, index) => {
    for (const [place, network] of ["biased", "fair"].entries()) {
      const error = relative(await heatmap(place), own(network, join(root, "assets/pictures", picture), index));
      assert(error < 1e-3, `${network}, ${picture}, class ${index}: the map differs by ${error}`);
      console.log(`${network}, ${picture}, class ${index}: relative difference ${error.toExponential(1)}`);
    }
  };

  await next();
  assert((await titles()).every((title) => title.endsWith("bird")), `both see a bird in the tree: ${await titles()}`);
  await compare("scene_bird_in_tree.png", 0);
  const first = await pixels();
  assert(first.length > 10_000, "nothing is drawn");
  await page.screenshot({ path: join(here, "build/page.png"), fullPage: true });

  // A class is clicked.
  await page.evaluate(() => document.querySelectorAll("article")[1].querySelectorAll(".bar")[1].click());
  await next();
  await compare("scene_bird_in_tree.png", 1);

  // A picture is chosen as a file.
  const input = await page.$("#drop input");
  await input.uploadFile(join(root, "assets/pictures/scene_tree.png"));
  await next();
  assert((await titles())[0].endsWith("bird") && (await titles())[1].endsWith("none"), `leaves alone: ${await titles()}`);

  // A picture is dropped on the page.
  const bytes = readFileSync(join(root, "assets/pictures/scene_rabbit.png")).toString("base64");
  await page.evaluate((bytes) => {
    const data = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([data], "rabbit.png", { type: "image/png" }));
    dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
  }, bytes);
  await next();
  assert((await titles())[1].endsWith("rabbit"), `a rabbit: ${await titles()}`);
  assert((await pixels()) !== first, "the drawing has not changed");
  assert(problems.length === 0, problems.join("\n"));
  console.log("the page works");
} finally {
  await browser.close();
  server.close();
}
