// Small charts of what the server counts, all over the same time.

import {clock, count, element, share} from "./state.js";

const HEIGHT = 84;
const rate = (key, over = null) => (now, before) => {
  const step = now.totals[key] - before.totals[key];
  const by = over ? now.totals[over] - before.totals[over] : now.time - before.time;
  return by > 0 && step >= 0 ? step / by : NaN;
};
const images = (point) => point.images ?? {};

// Each chart: a title, how to write its newest value, and its lines, each a colour and a value of two points.
const CHARTS = [
  {
    title: "Tokens",
    format: count,
    stacked: true,
    lines: [
      {name: "shared", colour: "--shared", value: (now) => now.totals.shared_tokens},
      {name: "private", colour: "--private", value: (now) => now.totals.private_tokens},
    ],
    limit: (now) => now.policy?.token_budget && now.policy.token_budget + now.totals.shared_tokens,
    newest: (now) => `${count(now.totals.live_tokens)} of ${count(now.totals.pool_tokens)}`,
  },
  {
    title: "Pruned tokens",
    format: count,
    lines: [{name: "pruned", colour: "--kept", value: (now) => now.totals.num_pruned_tokens + now.totals.num_shrunk_tokens}],
  },
  {
    title: "Hit rate",
    format: share,
    most: 1,
    holds: true,
    lines: [{name: "hit rate", colour: "--shared", value: rate("num_cached_prompt_tokens", "num_prompt_tokens")}],
    newest: (now) => share(now.totals.num_cached_prompt_tokens / now.totals.num_prompt_tokens),
  },
  {
    title: "Image cache",
    format: (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`,
    lines: [{name: "held", colour: "--private", value: (now) => images(now).cache_bytes ?? NaN}],
    newest: (now) => {
      const {cache_hits: hits, cache_misses: misses, references_hits: known = 0} = images(now);
      return hits === undefined ? "off" : `${share((hits + known) / (hits + known + misses))} known`;
    },
  },
  {
    title: "Turns a second",
    format: (number) => (Number.isFinite(number) ? number.toFixed(1) : "–"),
    lines: [{name: "turns", colour: "--kept", value: rate("num_prompts")}],
  },
];

export class Charts {
  constructor(box) {
    this.charts = CHARTS.map((chart) => {
      const newest = element("b"), canvas = element("canvas", {role: "img"});
      const from = element("span"), to = element("span");
      box.append(
        element("figure", {}, element("div", {class: "head"}, element("span", {}, chart.title), newest), canvas,
          element("div", {class: "scale"}, from, to)),
      );
      return {...chart, canvasElement: canvas, newestElement: newest, from, to};
    });
  }

  /** Draw all points; `moment` marks the one that is shown. */
  draw(points, moment) {
    if (!points.length) return;
    const style = getComputedStyle(document.documentElement);
    const thin = thinned(points, 400);
    for (const chart of this.charts) drawChart(chart, thin, points.at(-1), moment, style);
  }
}

// So many points fit into a chart's width; counters differ by their difference, whatever lies between.
function thinned(points, most) {
  if (points.length <= most) return points;
  const step = points.length / most;
  return Array.from({length: most}, (_, index) => points[Math.min(points.length - 1, Math.floor((index + 1) * step) - 1)]);
}

function seriesOf(chart, line, points) {
  let held = NaN;
  return points.map((now, index) => {
    const before = points[index - 1];
    if (line.value.length > 1 && (!before || before.started !== now.started)) return NaN;
    const value = line.value(now, before);
    if (chart.holds && Number.isNaN(value)) return held;
    held = value;
    return value;
  });
}

function drawChart(chart, points, newest, moment, style) {
  const canvas = chart.canvasElement, width = canvas.clientWidth, ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(HEIGHT * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, HEIGHT);
  const series = chart.lines.map((line) => seriesOf(chart, line, points));
  if (chart.stacked) for (let i = 1; i < series.length; i++) series[i] = series[i].map((v, at) => v + series[i - 1][at]);
  const limit = chart.limit?.(newest);
  const top = chart.most ?? (Math.max(limit || 0, ...series.flat().filter(Number.isFinite), 1e-9) * 1.08);
  const first = points[0].time, span = Math.max(points.at(-1).time - first, 1e-9);
  const x = (index) => ((points[index].time - first) / span) * (width - 2) + 1;
  const y = (value) => HEIGHT - 2 - (value / top) * (HEIGHT - 6);
  for (let i = series.length - 1; i >= 0; i--) {
    const colour = style.getPropertyValue(chart.lines[i].colour);
    drawLine(context, series[i], x, y, colour, chart.stacked ? 0.35 : 0.12);
  }
  if (limit) drawRule(context, [1, y(limit), width - 1, y(limit)], style.getPropertyValue("--warn"));
  if (moment !== null) {
    const at = ((moment - first) / span) * (width - 2) + 1;
    drawRule(context, [at, 2, at, HEIGHT - 2], style.getPropertyValue("--ink"));
  }
  const last = series.at(-1).findLast(Number.isFinite);
  chart.newestElement.textContent = chart.newest ? chart.newest(newest) : chart.format(last ?? NaN);
  chart.from.textContent = clock(first);
  chart.to.textContent = `most ${chart.format(top / (chart.most ? 1 : 1.08))}`;
  canvas.setAttribute("aria-label", `${chart.title}: ${chart.newestElement.textContent}, ${chart.to.textContent}, since ${clock(first)}`);
}

function drawLine(context, values, x, y, colour, fill) {
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = 1.6;
  let run = [];
  const end = () => {
    if (!run.length) return;
    context.beginPath();
    run.forEach(([px, py], index) => (index ? context.lineTo(px, py) : context.moveTo(px, py)));
    if (run.length === 1) context.lineTo(run[0][0] + 2, run[0][1]);
    context.stroke();
    context.lineTo(run.at(-1)[0], HEIGHT - 2);
    context.lineTo(run[0][0], HEIGHT - 2);
    context.globalAlpha = fill;
    context.fill();
    context.globalAlpha = 1;
    run = [];
  };
  values.forEach((value, index) => (Number.isFinite(value) ? run.push([x(index), y(value)]) : end()));
  end();
}

function drawRule(context, [fromX, fromY, toX, toY], colour) {
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.setLineDash([4, 3]);
  context.beginPath();
  context.moveTo(fromX, fromY);
  context.lineTo(toX, toY);
  context.stroke();
  context.setLineDash([]);
}
