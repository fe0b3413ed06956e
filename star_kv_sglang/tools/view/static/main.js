// Reads records line by line and shows the newest state, or any older one.

import {Charts} from "./charts.js";
import {Detail} from "./detail.js";
import {History, buildRuns, clock, count, element, share, sizesOf} from "./state.js";
import {TreeView} from "./tree.js";

const RETRY_MS = 1000;
const MOST_CUTS = 200;
const WHY = {
  prompt: "policy, behind its prompt",
  token_budget: "token budget of all branches",
  short_pool: "the pool ran short",
};
const $ = (id) => document.getElementById(id);

let history = new History(), header = null, isFollowing = true, player = null, isDrawing = false;
const charts = new Charts($("charts"));
const detail = new Detail($("detail"));
const tree = new TreeView(() => drawDetail());
// What a test or a curious reader may look at.
window.starKv = {get history() { return history; }, tree};

function setStatus(state, text) {
  $("status").dataset.state = state;
  $("status").textContent = text;
}

function take(record) {
  if (record.type === "header") {
    header = record;
    history = new History();
    $("source").textContent = record.source;
    document.title = `${record.source} – star-kv`;
    if (!record.live) {
      isFollowing = false;
      setStatus("recorded", "a recording");
      detail.setHeat(true);
    }
  } else if (record.type === "past") {
    history.addPast(record.points);
  } else if (record.type === "tree") {
    const numForgotten = history.add(record);
    // The moment that somebody looks at stays, until it is forgotten itself.
    if (!isFollowing && numForgotten) $("time").value -= numForgotten;
  } else if (record.type === "status" && header.live) setStatus(record.state, record.text);
  else if (record.type === "end" && record.text) setStatus("lost", record.text);
}

/** Draws before the next frame, however many records come until then. */
function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    drawNow();
  });
}

function drawNow() {
  if (!history.records.length) return;
  const started = performance.now();
  const slider = $("time"), last = history.records.length - 1;
  slider.max = last;
  if (isFollowing) slider.value = last;
  const index = Math.min(Number(slider.value), last), record = history.records[index];
  const nodes = history.nodesAt(index), runs = buildRuns(nodes);
  $("timeline").hidden = last < 1;
  $("moment").textContent = `${clock(record.time)}  (${index + 1} of ${last + 1})`;
  slider.setAttribute("aria-valuetext", clock(record.time));
  $("newest").setAttribute("aria-pressed", isFollowing);
  $("newest").textContent = header.live ? "Live" : "End";
  drawNumbers(record, nodes, runs);
  drawNotice(record);
  tree.update(runs);
  drawDetail();
  charts.draw(history.points, index === last ? null : record.time);
  drawCuts(record);
  performance.measure("update", {start: started, end: performance.now()});
  if (performance.getEntriesByName("update").length > 500) performance.clearMeasures("update");
}

function drawDetail() {
  const newest = history.records.at(-1), record = history.records[Number($("time").value)] ?? newest;
  detail.update(tree.chosenRun(), record, newest, header.live);
}

function drawNumbers(record, nodes, runs) {
  const sizes = sizesOf(nodes.values()), {totals, policy} = record;
  const budget = policy.token_budget ? `${count(policy.token_budget)} tokens` : `${share(policy.budget)} `;
  const numbers = [
    [policy.name, `keeps ${budget}`],
    [count(runs.numBranches), "branches"],
    [count(record.num_nodes), "nodes"],
    [count(sizes.shared), "shared tokens"],
    [count(sizes.private), "private tokens"],
    [count(sizes.pruned), "pruned tokens"],
    [share(totals.used_pool_tokens / totals.pool_tokens), `of ${count(totals.pool_tokens)} slots`],
    [share(totals.num_cached_prompt_tokens / totals.num_prompt_tokens), "hit rate"],
    [count(totals.num_prompts), "turns"],
  ];
  $("numbers").replaceChildren(...numbers.map(([value, name]) =>
    element("div", {}, element("b", {}, value), element("span", {}, name))));
}

function drawNotice(record) {
  const lines = [];
  if (record.left_out) {
    lines.push(`The tree has ${count(record.num_nodes)} nodes: ${count(record.left_out)} of them, those farthest from the root, are not shown.`);
  }
  $("notice").hidden = !lines.length;
  $("notice").textContent = lines.join(" ");
}

function drawCuts(record) {
  const cuts = history.cuts.filter((cut) => cut[1] <= record.time).slice(-MOST_CUTS).reverse();
  const newest = cuts.length ? `${cuts[0][0]}/${cuts[0][1]}/${cuts.length}` : "";
  if ($("cut-rows").dataset.newest === newest) return;
  $("cut-rows").dataset.newest = newest;
  $("cuts-empty").hidden = cuts.length > 0;
  $("cut-rows").replaceChildren(...cuts.map(([, time, reason, node, image, start, freed, left]) => {
    const what = image === null ? `a whole leaf, node ${node}` : `the screenshot at position ${count(start)}, in node ${node}`;
    return element("tr", {}, element("td", {}, clock(time)), element("td", {class: "word"}, WHY[reason] ?? reason),
      element("td", {class: "word"}, what), element("td", {}, count(freed)), element("td", {}, count(left)));
  }));
}

function show(index) {
  isFollowing = false;
  $("time").value = index;
  draw();
}

function setPlaying(isOn) {
  clearInterval(player);
  player = null;
  $("play").textContent = isOn ? "Pause" : "Play";
  if (!isOn) return;
  const last = history.records.length - 1, step = Math.max(1, Math.round(last / 150));
  if (Number($("time").value) >= last) show(0);
  player = setInterval(() => {
    const next = Number($("time").value) + step;
    show(next);
    if (next >= history.records.length - 1) setPlaying(false);
  }, 200);
}

$("time").addEventListener("input", () => {
  setPlaying(false);
  show(Number($("time").value));
});
$("play").addEventListener("click", () => setPlaying(!player));
$("newest").addEventListener("click", () => {
  setPlaying(false);
  isFollowing = header.live;
  if (!isFollowing) $("time").value = history.records.length - 1;
  draw();
});
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

/** Reads all lines of an answer. */
async function read(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read().catch(() => ({done: true}));
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) take(JSON.parse(line));
    if (!header.live && !isFollowing) $("time").value = $("time").max = Math.max(0, history.records.length - 1);
    draw();
  }
}

async function follow() {
  for (;;) {
    const answer = await fetch("/records").catch(() => null);
    if (answer?.ok) await read(answer);
    if (header && !header.live) return;
    setStatus("lost", "The viewer (star-kv view) does not answer. Start it again; this page goes on by itself.");
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

follow();
