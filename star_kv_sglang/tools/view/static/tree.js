// The rows of the tree: only those in sight are elements.

import {count, framesOf, pathOf, spansOf} from "./state.js";

const ROW = 26, SPARE = 8, MOST_INDENT = 7;

export class TreeView {
  constructor(choose) {
    this.box = document.getElementById("tree");
    this.inner = document.getElementById("rows");
    this.axis = document.getElementById("axis");
    this.choose = choose;
    this.closed = new Set();
    this.shown = [];
    this.chosen = null;
    this.isUsers = false;
    this.pool = [];
    this.runs = null;
    this.box.addEventListener("scroll", () => this.draw());
    this.box.addEventListener("keydown", (event) => this.onKey(event));
    this.inner.addEventListener("click", (event) => this.onClick(event));
    new ResizeObserver(() => this.draw()).observe(this.box);
    document.getElementById("expand").addEventListener("click", () => this.expandAll());
    document.getElementById("collapse").addEventListener("click", () => this.collapseAll());
  }

  update(runs) {
    this.runs = runs;
    if (!runs.all.has(this.chosen)) this.chosen = null;
    const hasScreenshots = this.chosen !== null && framesOf(pathOf(runs.all.get(this.chosen))).length > 0;
    if (runs.roots.length && (this.chosen === null || (!this.isUsers && !hasScreenshots))) {
      this.chosen = firstLeaf(runs.roots).key;
      this.isUsers = false;
    }
    this.layOut();
  }

  layOut() {
    this.shown = [];
    const visit = (siblings, level) => {
      siblings.forEach((run, index) => {
        this.shown.push({run, level, index, size: siblings.length});
        if (run.children.length && !this.closed.has(run.key)) visit(run.children, level + 1);
      });
    };
    visit(this.runs.roots, 0);
    this.inner.style.height = `${this.shown.length * ROW}px`;
    document.getElementById("tree-empty").hidden = this.shown.length > 0;
    this.drawAxis();
    this.draw();
  }

  drawAxis() {
    const {end} = this.runs;
    if (this.axisEnd === end) return;
    this.axisEnd = end;
    this.axis.replaceChildren(
      ...[0, 0.25, 0.5, 1].map((part) => {
        const tick = document.createElement("span");
        tick.style.left = `${100 * part}%`;
        tick.textContent = part === 1 ? `${count(end)} tokens` : count(end * part);
        return tick;
      }),
    );
  }

  draw() {
    if (!this.runs) return;
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - SPARE);
    const last = Math.min(this.shown.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW) + SPARE);
    while (this.pool.length < last - first) this.pool.push(this.makeRow());
    this.pool.forEach((row, index) => {
      if (first + index < last) this.fill(row, first + index);
      else {
        row.element.hidden = true;
        row.element.removeAttribute("id");
      }
    });
    const at = this.indexOfChosen();
    if (at >= first && at < last) this.box.setAttribute("aria-activedescendant", `row-${this.chosen}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  makeRow() {
    const make = (name, className) => Object.assign(document.createElement(name), {className});
    const element = make("div", "row"), label = make("span", "label"), toggle = make("span", "toggle");
    const name = make("span", "name"), track = make("span", "track"), number = make("span", "count");
    element.setAttribute("role", "treeitem");
    toggle.setAttribute("aria-hidden", "true");
    track.setAttribute("aria-hidden", "true");
    label.append(toggle, name);
    element.append(label, track, number);
    this.inner.append(element);
    return {element, label, toggle, name, track, number, pieces: []};
  }

  fill(row, at) {
    const {run, level, index, size} = this.shown[at];
    const {element} = row;
    element.hidden = false;
    element.id = `row-${run.key}`;
    element.dataset.key = run.key;
    element.style.transform = `translateY(${at * ROW}px)`;
    element.setAttribute("aria-level", level + 1);
    element.setAttribute("aria-posinset", index + 1);
    element.setAttribute("aria-setsize", size);
    element.setAttribute("aria-selected", run.key === this.chosen);
    const isOpen = !this.closed.has(run.key);
    if (run.children.length) element.setAttribute("aria-expanded", isOpen);
    else element.removeAttribute("aria-expanded");
    row.label.style.paddingLeft = `${Math.min(level, MOST_INDENT) * 0.9}rem`;
    row.toggle.textContent = run.children.length ? (isOpen ? "▾" : "▸") : "";
    row.name.textContent = nameOf(run);
    row.number.textContent = run.pruned ? `${count(run.live)} of ${count(run.live + run.pruned)}` : count(run.live);
    row.number.title = `${count(run.live)} tokens live, ${count(run.pruned)} pruned`;
    this.fillTrack(row, run);
  }

  fillTrack(row, run) {
    const {end} = this.runs;
    if (row.drawn === run && row.drawnEnd === end) return;
    row.drawn = run;
    row.drawnEnd = end;
    const spans = run.spans ??= spansOf(run);
    while (row.pieces.length < spans.length) {
      row.pieces.push(document.createElement("i"));
      row.track.append(row.pieces.at(-1));
    }
    row.pieces.forEach((piece, index) => {
      const span = spans[index];
      piece.hidden = !span;
      if (!span) return;
      piece.className = span[2];
      piece.style.left = `${(100 * span[0]) / end}%`;
      piece.style.width = `${(100 * (span[1] - span[0])) / end}%`;
    });
  }

  indexOfChosen() {
    return this.shown.findIndex(({run}) => run.key === this.chosen);
  }

  select(key) {
    this.chosen = key;
    this.isUsers = true;
    const at = this.indexOfChosen();
    const top = at * ROW, height = this.box.clientHeight;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    if (top + ROW > this.box.scrollTop + height) this.box.scrollTop = top + ROW - height;
    this.draw();
    this.choose();
  }

  chosenRun() {
    return this.runs?.all.get(this.chosen) ?? null;
  }

  setOpen(run, isOpen) {
    if (isOpen) this.closed.delete(run.key); else this.closed.add(run.key);
    this.layOut();
  }

  expandAll() {
    this.closed.clear();
    this.layOut();
  }

  collapseAll() {
    for (const run of this.runs?.all.values() ?? []) if (run.children.length) this.closed.add(run.key);
    let at = this.chosenRun();
    while (at?.parent) at = at.parent;
    this.layOut();
    if (at) this.select(at.key);
  }

  onClick(event) {
    const row = event.target.closest(".row");
    if (!row) return;
    const run = this.runs.all.get(Number(row.dataset.key));
    if (!run) return;
    if (event.target.closest(".toggle") && run.children.length) this.setOpen(run, this.closed.has(run.key));
    this.select(run.key);
  }

  onKey(event) {
    const run = this.chosenRun();
    if (!run || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = this.indexOfChosen(), page = Math.max(1, Math.floor(this.box.clientHeight / ROW) - 1);
    const go = (index) => this.select(this.shown[Math.max(0, Math.min(this.shown.length - 1, index))].run.key);
    const isOpen = !this.closed.has(run.key);
    const keys = {
      ArrowDown: () => go(at + 1),
      ArrowUp: () => go(at - 1),
      Home: () => go(0),
      End: () => go(this.shown.length - 1),
      PageDown: () => go(at + page),
      PageUp: () => go(at - page),
      ArrowRight: () => {
        if (!run.children.length) return;
        if (isOpen) this.select(run.children[0].key); else this.setOpen(run, true);
      },
      ArrowLeft: () => {
        if (run.children.length && isOpen) this.setOpen(run, false);
        else if (run.parent) this.select(run.parent.key);
      },
      Enter: () => document.getElementById("detail").querySelector("button, input, summary")?.focus(),
    };
    if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  }
}

export function nameOf(run) {
  if (run.children.length) return `${run.parent ? "fork" : "prefix"} of ${count(run.leaves)} branches`;
  return `branch ${run.key}`;
}

// Where the most branches are: what is chosen before anybody chooses.
function firstLeaf(roots) {
  const larger = (best, run) => (run.leaves > best.leaves || (run.leaves === best.leaves && run.live > best.live) ? run : best);
  let at = roots.reduce(larger);
  while (at.children.length) at = at.children.reduce(larger);
  return at;
}
