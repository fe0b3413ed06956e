// The chosen branch: its sizes, its screenshots with what each layer keeps, its prompt, its nodes.

import {
  CUTS, FLAGS, FRAMES, ID, LENGTH, LIVE, LOCKED, PENDING, PINNED, SHARED, START, USED, USERS,
  clock, count, element, framesOf, pathOf, share, sizesOf,
} from "./state.js";
import {nameOf} from "./tree.js";

const MOST_FRAMES = 6;
const LEAST_WIDTH = 480, MOST_WIDTH = 960;
const FAINTEST = 0.3, DIM = 0.8;

export class Detail {
  constructor(box) {
    this.box = box;
    this.run = null;
    this.layer = 0;
    this.numLayers = 0;
    this.showsHeat = false;
    this.showsAll = false;
    this.heats = new Map();
    this.pictures = new Map();
    this.frames = new Map();
    this.build();
  }

  build() {
    this.title = element("h2");
    this.facts = element("dl", {class: "facts"});
    this.heatButton = element("button", {type: "button", "aria-pressed": "false"}, "Show heat maps");
    this.slider = element("input", {type: "range", min: 0, max: 0, value: 0, "aria-label": "Layer of the heat maps"});
    this.layerName = element("output", {}, "all layers");
    this.controls = element("div", {class: "controls"}, this.heatButton, this.slider, this.layerName);
    this.hint = element("p", {class: "faint"});
    this.frameBox = element("div", {class: "frames"});
    this.moreButton = element("button", {type: "button"});
    this.prompt = element("pre", {class: "prompt", tabindex: 0});
    this.promptBox = element("details", {}, element("summary", {}, "Prompt"), this.prompt);
    this.nodeRows = element("tbody");
    this.nodeBox = element("details", {}, element("summary", {}, "Nodes from the root"), element("table", {},
      element("thead", {}, element("tr", {}, ...["node", "from", "tokens", "live", "users", "cuts", "used"].map((name) =>
        element("th", {}, name)), element("th", {class: "word"}, "is"))), this.nodeRows));
    this.box.append(this.title, this.facts, this.controls, this.hint, this.frameBox, this.moreButton, this.promptBox, this.nodeBox);
    this.heatButton.addEventListener("click", () => this.setHeat(!this.showsHeat));
    this.slider.addEventListener("input", () => this.setLayer(Number(this.slider.value)));
    this.moreButton.addEventListener("click", () => {
      this.showsAll = true;
      this.drawFrames();
    });
    this.promptBox.addEventListener("toggle", () => this.loadPrompt());
    this.nodeBox.addEventListener("toggle", () => this.drawNodes());
  }

  setHeat(isOn) {
    this.showsHeat = isOn;
    this.heatButton.setAttribute("aria-pressed", isOn);
    this.heatButton.textContent = isOn ? "Hide heat maps" : "Show heat maps";
    this.drawFrames();
  }

  setLayer(layer) {
    this.layer = layer;
    this.layerName.textContent = layer ? `layer ${layer} of ${this.numLayers}` : "all layers";
    for (const frame of this.frames.values()) this.paint(frame);
  }

  /** Another branch, or the same one a moment later; `newest` is the newest record, `isLive` says that more may come. */
  update(run, record, newest, isLive) {
    this.moment = record?.time ?? 0;
    this.isLive = isLive;
    this.isPast = isLive && record !== newest;
    this.isOtherRun = isLive && record?.started !== newest?.started;
    // A server numbers its nodes anew with every start.
    const isRestarted = record?.started !== this.started;
    this.started = record?.started;
    this.box.hidden = !run;
    if (!run) return;
    if (isRestarted || run.key !== this.run?.key) {
      this.showsAll = false;
      this.box.scrollTop = 0;
      this.prompt.textContent = "";
      this.promptOf = null;
    }
    this.run = run;
    this.path = pathOf(run);
    const sizes = sizesOf(this.path), last = run.last;
    this.title.textContent = run.children.length ? `${nameOf(run)}, up to node ${last[ID]}` : nameOf(run);
    setFacts(this.facts, {
      "tokens of the prompt": count(last[START] + last[LENGTH]),
      live: count(sizes.live),
      shared: count(sizes.shared),
      private: count(sizes.private),
      pruned: `${count(sizes.pruned)} (${share(sizes.pruned / (sizes.live + sizes.pruned))})`,
      "cut without a query": `${count(this.path.reduce((sum, row) => sum + row[CUTS], 0))} times`,
    });
    this.drawFrames();
    this.drawNodes();
    this.loadPrompt();
  }

  drawFrames() {
    if (!this.run) return;
    const found = framesOf(this.path).map((frame, index) => ({...frame, index})).reverse();
    const wanted = this.showsAll ? found : found.slice(0, MOST_FRAMES);
    this.controls.hidden = !found.length;
    this.slider.hidden = this.layerName.hidden = !this.showsHeat;
    this.hint.textContent = !found.length ? "No screenshot lies on this path."
      : this.showsHeat && this.isPast ? "The server tells heat maps of now only: of the past, those that were looked at then are shown."
      : this.showsHeat ? "Clear and framed: kept; the more layers keep a token, the clearer. Dark: dropped by all."
      : this.isLive ? "A heat map is read from the device when you ask for it." : "";
    this.moreButton.hidden = wanted.length === found.length;
    this.moreButton.textContent = `Show all ${found.length} screenshots`;
    const starts = new Set(wanted.map((frame) => `${frame.start}/${frame.image}`));
    for (const [key, frame] of this.frames) {
      if (!starts.has(key)) {
        frame.element.remove();
        this.frames.delete(key);
      }
    }
    let before = null;
    for (const frame of wanted) {
      const key = `${frame.start}/${frame.image}`;
      const shown = this.frames.get(key) ?? this.makeFrame(key);
      Object.assign(shown, frame);
      shown.title.replaceChildren(
        element("span", {}, `Screenshot ${frame.index + 1}${frame.shared ? ", shared" : ""}`),
        element("span", {class: "faint"}, `${count(frame.live)} of ${count(frame.size)} tokens`),
      );
      const place = before ? before.element.nextSibling : this.frameBox.firstChild;
      if (place !== shown.element) this.frameBox.insertBefore(shown.element, place);
      before = shown;
      shown.kept.hidden = shown.keptMissing.hidden = !this.showsHeat;
      this.loadPicture(shown);
      if (this.showsHeat) this.loadHeat(shown);
    }
  }

  makeFrame(key) {
    const title = element("h3"), original = element("canvas", {role: "img"}), kept = element("canvas", {role: "img"});
    const missing = element("p", {class: "missing"}), keptMissing = element("p", {class: "missing"});
    const left = element("div", {}, original, missing), right = element("div", {}, kept, keptMissing);
    const frame = {element: element("article", {class: "frame"}, title, element("div", {class: "pair"}, left, right)),
      title, original, kept, missing, keptMissing};
    original.hidden = true;
    missing.textContent = "loading";
    this.frames.set(key, frame);
    return frame;
  }

  async loadPicture(frame) {
    if (frame.pictureOf === frame.image) return;
    frame.pictureOf = frame.image;
    let loaded = this.pictures.get(frame.image);
    if (!loaded) {
      loaded = fetchPicture(frame.image);
      this.pictures.set(frame.image, loaded);
      if (this.pictures.size > 64) this.pictures.delete(this.pictures.keys().next().value);
    }
    const {bitmap, problem} = await loaded;
    frame.bitmap = bitmap;
    frame.original.hidden = !bitmap;
    frame.missing.hidden = Boolean(bitmap);
    frame.missing.textContent = problem ?? "";
    if (!bitmap) this.pictures.delete(frame.image);
    this.paint(frame);
  }

  async loadHeat(frame) {
    const wanted = `${this.started}/${frame.node}/${frame.start}/${frame.live}`;
    if (frame.heatOf === wanted) return this.paint(frame);
    let heat = this.heats.get(wanted);
    if (!heat && this.isPast) {
      frame.heatOf = frame.heat = null;
      frame.keptMissing.textContent = "nobody looked at this heat map then";
      return this.paint(frame);
    }
    frame.heatOf = wanted;
    if (!heat) {
      const time = this.isLive ? "" : `&time=${this.moment}`;
      heat = await fetchJson(`/detail/frame?node=${frame.node}&start=${frame.start}${time}`);
      if (!heat.problem) this.heats.set(wanted, unpacked(heat));
      if (this.heats.size > 128) this.heats.delete(this.heats.keys().next().value);
    }
    if (frame.heatOf !== wanted) return;
    frame.heat = heat.problem ? null : this.heats.get(wanted);
    frame.keptMissing.textContent = heat.problem ?? "";
    if (frame.heat && frame.heat.layers !== this.numLayers) {
      this.numLayers = frame.heat.layers;
      this.slider.max = this.numLayers;
    }
    this.paint(frame);
  }

  paint(frame) {
    if (frame.bitmap) {
      fit(frame.original, frame.bitmap.width, frame.bitmap.height);
      drawBitmap(frame.original, frame.bitmap);
      frame.original.setAttribute("aria-label", `Screenshot ${frame.index + 1} as it was sent`);
    }
    frame.kept.hidden = !this.showsHeat || !frame.heat;
    frame.keptMissing.hidden = !this.showsHeat || Boolean(frame.heat) || !frame.keptMissing.textContent;
    if (this.showsHeat && frame.heat) paintHeat(frame, this.layer);
  }

  async loadPrompt() {
    if (!this.promptBox.open || !this.run) return;
    const node = this.run.last[ID];
    const wanted = `${this.started}/${node}`;
    if (this.promptOf === wanted) return;
    this.promptOf = wanted;
    const told = this.isOtherRun ? {problem: "the server was restarted since, and has forgotten this prompt"}
      : await fetchJson(`/detail/text?node=${node}${this.isLive ? "" : `&time=${this.moment}`}`);
    if (this.promptOf !== wanted) return;
    if (told.problem) {
      this.prompt.replaceChildren(told.problem);
      return;
    }
    let number = told.is_cut ? null : 0;
    this.prompt.replaceChildren(
      ...(told.is_cut ? ["… (its beginning is left out)\n"] : []),
      ...told.runs.map((text) => text ?? element("span", {}, ` [screenshot${number === null ? "" : ` ${++number}`}] `)),
    );
  }

  drawNodes() {
    if (!this.nodeBox.open || !this.run) return;
    this.nodeRows.replaceChildren(...this.path.slice(-200).map((row) => {
      const words = [row[FLAGS] & SHARED ? "shared" : "private"];
      if (row[FLAGS] & PINNED) words.push("pinned");
      if (row[FLAGS] & LOCKED) words.push("in use");
      if (row[FLAGS] & PENDING) words.push("may go on");
      if (row[FRAMES].length) words.push("screenshot");
      const cells = [row[ID], count(row[START]), count(row[LENGTH]), count(row[LIVE]), row[USERS], row[CUTS], clock(row[USED])];
      return element("tr", {}, ...cells.map((cell) => element("td", {}, cell)), element("td", {class: "word"}, words.join(", ")));
    }));
  }
}

function setFacts(list, facts) {
  list.replaceChildren(...Object.entries(facts).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

async function fetchJson(address) {
  try {
    const answer = await fetch(address);
    return answer.ok ? await answer.json() : {problem: `the viewer answers ${answer.status}`};
  } catch {
    return {problem: "the viewer does not answer"};
  }
}

async function fetchPicture(image) {
  try {
    const answer = await fetch(`/detail/screenshot?image=${encodeURIComponent(image)}`);
    if (!answer.headers.get("content-type")?.startsWith("image/")) return await answer.json();
    return {bitmap: await createImageBitmap(await answer.blob())};
  } catch {
    return {problem: "this screenshot cannot be drawn"};
  }
}

// Bits of each unit become, for each layer and for all of them, the share of units that keep each token.
function unpacked({rows, cols, units, units_per_layer: perLayer, kept}) {
  const bytes = Uint8Array.from(atob(kept), (letter) => letter.charCodeAt(0));
  const size = rows * cols, stride = Math.ceil(size / 8), layers = units / perLayer;
  const shares = Array.from({length: layers + 1}, () => new Float32Array(size));
  for (let unit = 0; unit < units; unit++) {
    const layer = 1 + Math.floor(unit / perLayer);
    for (let token = 0; token < size; token++) {
      if (bytes[unit * stride + (token >> 3)] & (128 >> (token & 7))) {
        shares[layer][token] += 1 / perLayer;
        shares[0][token] += 1 / units;
      }
    }
  }
  return {rows, cols, layers, shares};
}

// Small screenshots are enlarged, so that frames around their tokens are sharp.
function fit(canvas, width, height) {
  const scale = width < LEAST_WIDTH ? Math.ceil(LEAST_WIDTH / width) : Math.min(1, MOST_WIDTH / width);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
}

function drawBitmap(canvas, bitmap) {
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = canvas.width < bitmap.width;
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
}

function paintHeat(frame, layer) {
  const {heat, kept: canvas, bitmap} = frame, {rows, cols} = heat;
  if (bitmap) fit(canvas, bitmap.width, bitmap.height);
  else fit(canvas, cols * 24, rows * 24);
  const context = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const colour = style.getPropertyValue("--kept"), values = heat.shares[Math.min(layer, heat.layers)];
  if (bitmap) drawBitmap(canvas, bitmap);
  let numKept = 0;
  for (let token = 0; token < values.length; token++) {
    const row = Math.floor(token / cols), col = token % cols;
    const left = Math.floor((col * canvas.width) / cols), top = Math.floor((row * canvas.height) / rows);
    const width = Math.floor(((col + 1) * canvas.width) / cols) - left;
    const height = Math.floor(((row + 1) * canvas.height) / rows) - top;
    const value = values[token], shown = value > 0 ? FAINTEST + (1 - FAINTEST) * Math.min(1, value) : 0;
    numKept += value > 0;
    if (bitmap) {
      context.fillStyle = `rgba(24, 28, 38, ${DIM * (1 - shown)})`;
      context.fillRect(left, top, width, height);
    } else {
      context.fillStyle = colour;
      context.globalAlpha = shown * 0.85;
      context.fillRect(left, top, width, height);
    }
    if (shown) {
      context.globalAlpha = shown;
      context.strokeStyle = colour;
      context.lineWidth = 1.5;
      context.strokeRect(left + 0.75, top + 0.75, width - 1.5, height - 1.5);
    }
    context.globalAlpha = 1;
  }
  canvas.setAttribute("aria-label",
    `Screenshot ${frame.index + 1}: ${numKept} of ${values.length} tokens are kept by ${layer ? `layer ${layer}` : "a layer at least"}`);
}
