// Runs exported explanations in the browser and draws what they say over the picture.

const SIZE = 128;
const LABELS = ["bird", "cat", "fish", "rabbit", "butterfly", "none"];
const NETWORKS = [
  { file: "build/biased.onnx", name: "The first network", about: "saw birds together with leaves, or neither" },
  { file: "build/fair.onnx", name: "The second network", about: "saw birds with leaves and without" },
];
const PICTURES = ["bird_in_tree", "bird_by_tree", "bird", "tree", "cat_fish", "butterfly"];

// The colors of inferno, from none to most.
const COLORS = ["000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4"].map(
  (hex) => [0, 2, 4].map((place) => parseInt(hex.slice(place, place + 2), 16)),
);

function color(value) {
  const place = Math.min(Math.max(value, 0), 1) * (COLORS.length - 1);
  const low = Math.min(Math.floor(place), COLORS.length - 2);
  return COLORS[low].map((from, channel) => from + (COLORS[low + 1][channel] - from) * (place - low));
}

// How much of the map at a place comes from where around it: a binomial filter.
const NEIGHBORS = [-2, -1, 0, 1, 2].flatMap((down) =>
  [-2, -1, 0, 1, 2].map((across) => [down, across, ([6, 4, 1][Math.abs(down)] * [6, 4, 1][Math.abs(across)]) / 256]),
);

const status = document.querySelector("#status");
const alpha = document.querySelector("#alpha");
let picture = null; // ImageData of SIZE × SIZE
let chosen = null; // the class that was clicked; null is the top one of each network

/** The picture as the networks take it: [1, 3, SIZE, SIZE], 0 to 1. */
function asTensor(image) {
  const plane = SIZE * SIZE;
  const values = new Float32Array(3 * plane);
  for (let place = 0; place < plane; place++) {
    for (let channel = 0; channel < 3; channel++) {
      values[channel * plane + place] = image.data[4 * place + channel] / 255;
    }
  }
  return new ort.Tensor("float32", values, [1, 3, SIZE, SIZE]);
}

const best = (values) => values.indexOf(Math.max(...values));

/** Prediction and heatmap for the class that was chosen, or for the top one. */
async function explain(network) {
  const image = asTensor(picture);
  const run = (index) => network.session.run({ image, target: new ort.Tensor("int64", BigInt64Array.of(BigInt(index)), [1]) });
  let index = chosen ?? network.top ?? 0;
  let outputs = await run(index);
  const top = best(Array.from(outputs.animal.data));
  if (chosen === null && top !== index) {
    index = top;
    outputs = await run(index);
  }
  Object.assign(network, { top, index, scores: Array.from(outputs.animal.data), heatmap: outputs.heatmap.data });
}

/** The map as it is shown: each place with its neighbors, and the strongest hundredth at full strength. */
function shown(heatmap) {
  const near = new Float32Array(SIZE * SIZE);
  for (let y = 0; y < SIZE; y++) {
    for (let x = 0; x < SIZE; x++) {
      let sum = 0;
      for (const [down, across, weight] of NEIGHBORS) {
        const [row, column] = [Math.min(Math.max(y + down, 0), SIZE - 1), Math.min(Math.max(x + across, 0), SIZE - 1)];
        sum += weight * heatmap[row * SIZE + column];
      }
      near[y * SIZE + x] = sum;
    }
  }
  const strong = Float32Array.from(near).sort()[Math.floor(0.99 * near.length)];
  return near.map((value) => Math.min(1, value / Math.max(strong, 1e-7)));
}

/** The picture, faded where the map is weak, and the map's colors over it where it is strong. */
function draw(network) {
  const drawn = new ImageData(new Uint8ClampedArray(picture.data), SIZE, SIZE);
  const map = shown(network.heatmap);
  for (let place = 0; place < SIZE * SIZE; place++) {
    const levels = picture.data.subarray(4 * place, 4 * place + 3);
    const grey = 0.299 * levels[0] + 0.587 * levels[1] + 0.114 * levels[2];
    const opacity = alpha.value * (1 - (1 - map[place]) ** 2);
    color(map[place]).forEach((level, channel) => {
      const base = (levels[channel] + (grey - levels[channel]) * 0.6 * alpha.value) * (1 - 0.35 * alpha.value);
      drawn.data[4 * place + channel] = base + opacity * (level - base);
    });
  }
  const small = new OffscreenCanvas(SIZE, SIZE);
  small.getContext("2d").putImageData(drawn, 0, 0);
  const context = network.canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, network.canvas.width, network.canvas.height);
  network.bars.forEach((bar, index) => {
    bar.style.setProperty("--p", network.scores[index]);
    bar.lastElementChild.textContent = `${(100 * network.scores[index]).toFixed(1)} %`;
    bar.setAttribute("aria-pressed", index === network.index);
  });
  network.title.textContent = `${network.name}: ${LABELS[network.top]}`;
  network.canvas.heatmap = network.heatmap;
}

let running = Promise.resolve();

/** Explains the picture with every network, one request after the other. */
function update() {
  running = running.then(async () => {
    const start = performance.now();
    for (const network of NETWORKS) {
      await explain(network);
      draw(network);
    }
    status.textContent = `explained in ${Math.round(performance.now() - start)} ms`;
    document.body.dataset.explained = Number(document.body.dataset.explained ?? 0) + 1;
  });
  running.catch((error) => (status.textContent = String(error)));
  return running;
}

/** Takes a picture: its middle square, in the size of the networks. */
async function take(source) {
  const bitmap = await createImageBitmap(source);
  const side = Math.min(bitmap.width, bitmap.height);
  const canvas = new OffscreenCanvas(SIZE, SIZE);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, SIZE, SIZE);
  picture = context.getImageData(0, 0, SIZE, SIZE);
  chosen = null;
  await update();
}

function press(button) {
  document.querySelectorAll("#shelf button").forEach((other) => other.setAttribute("aria-pressed", other === button));
}

async function takeFile(file) {
  if (!file) return;
  press(null);
  await take(file).catch(() => (status.textContent = `${file.name} is not a picture that this browser can read`));
}

function card(network) {
  const article = document.createElement("article");
  article.innerHTML = `<canvas width="512" height="512" role="img" aria-label="The picture and the map over it"></canvas>
    <div class="text"><h2></h2><p></p></div>`;
  network.canvas = article.querySelector("canvas");
  network.title = article.querySelector("h2");
  network.title.textContent = network.name;
  article.querySelector("p").textContent = network.about;
  network.bars = LABELS.map((label, index) => {
    const bar = document.createElement("button");
    bar.className = "bar";
    bar.append(Object.assign(document.createElement("span"), { textContent: label }), document.createElement("span"));
    bar.onclick = () => {
      chosen = index;
      update();
    };
    return bar;
  });
  article.querySelector(".text").append(...network.bars);
  document.querySelector("#networks").append(article);
}

function shelf() {
  for (const name of PICTURES) {
    const button = document.createElement("button");
    const image = Object.assign(new Image(), { src: `build/scene_${name}.png`, alt: name.replaceAll("_", " ") });
    button.append(image);
    button.onclick = async () => {
      press(button);
      await take(await (await fetch(image.src)).blob());
    };
    document.querySelector("#shelf").insertBefore(button, document.querySelector("#drop"));
  }
}

NETWORKS.forEach(card);
shelf();
alpha.oninput = () => picture && NETWORKS.forEach(draw);
document.querySelector("#drop input").onchange = (event) => takeFile(event.target.files[0]);
for (const name of ["dragenter", "dragover"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
}
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  takeFile(event.dataTransfer.files[0]);
});

ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
for (const network of NETWORKS) {
  network.session = await ort.InferenceSession.create(network.file);
}
document.querySelector("#shelf button").click();
