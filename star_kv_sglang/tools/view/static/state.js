// Records become states of the tree: rows of nodes, and what hangs on them.

export const SHARED = 1, PINNED = 2, LOCKED = 4, PENDING = 8;
const KEYFRAME_EVERY = 50;
const MOST_RECORDS = 3600;

// A node's fields, in the order of the protocol.
export const ID = 0, PARENT = 1, START = 2, LENGTH = 3, LIVE = 4, FLAGS = 5, CUTS = 6, USERS = 7, USED = 8, FRAMES = 9;
// A screenshot's fields in a node.
export const F_IMAGE = 0, F_START = 1, F_ROWS = 2, F_COLS = 3, F_FIRST = 4, F_END = 5, F_LIVE = 6;

/** The newest trees since the page was opened, or of a recording; any of them can be shown again. */
export class History {
  constructor() {
    this.records = [];
    this.points = [];
    this.cuts = [];
    this.lastCut = {started: null, number: 0};
    this.nodes = new Map();
    this.sinceKeyframe = 0;
  }

  addPast(points) {
    this.points = [...points];
  }

  /** Takes the next record; returns how many of the oldest were forgotten for it. */
  add(record) {
    if (record.full) this.nodes = new Map();
    for (const row of record.nodes) this.nodes.set(row[ID], row);
    for (const ident of record.gone) this.nodes.delete(ident);
    const isKeyframe = record.full || ++this.sinceKeyframe >= KEYFRAME_EVERY;
    if (isKeyframe) this.sinceKeyframe = 0;
    const kept = {...record, keyframe: isKeyframe ? new Map(this.nodes) : null};
    if (isKeyframe) kept.nodes = [];
    this.records.push(kept);
    const last = this.points.at(-1);
    const {time, started, totals, images, policy} = record;
    if (!last || last.time < time) this.points.push({time, started, totals, images, policy});
    this.addCuts(record);
    if (this.points.length > 2 * MOST_RECORDS) this.points.splice(0, MOST_RECORDS);
    return this.records.length > MOST_RECORDS ? this.forgetOldest() : 0;
  }

  /** A page that fell behind gets cuts again that it has; a server numbers them anew with every start. */
  addCuts({started, cuts}) {
    if (this.lastCut.started !== started) this.lastCut = {started, number: 0};
    for (const cut of cuts) {
      if (cut[0] <= this.lastCut.number) continue;
      this.lastCut.number = cut[0];
      this.cuts.push(cut);
    }
    if (this.cuts.length > 4000) this.cuts.splice(0, 2000);
  }

  forgetOldest() {
    const next = this.records.findIndex((record, index) => index > 0 && record.keyframe);
    if (next < 0) return 0;
    this.records.splice(0, next);
    return next;
  }

  /** The nodes as they were at one record. */
  nodesAt(index) {
    if (index === this.records.length - 1) return this.nodes;
    let first = index;
    while (!this.records[first].keyframe) first--;
    const nodes = new Map(this.records[first].keyframe);
    for (let i = first + 1; i <= index; i++) {
      for (const row of this.records[i].nodes) nodes.set(row[ID], row);
      for (const ident of this.records[i].gone) nodes.delete(ident);
    }
    return nodes;
  }
}

/** Nodes between two forks make one run; runs are the rows of the tree. */
export function buildRuns(nodes) {
  const children = new Map();
  for (const row of nodes.values()) {
    const parent = nodes.has(row[PARENT]) ? row[PARENT] : 0;
    const list = children.get(parent);
    if (list) list.push(row); else children.set(parent, [row]);
  }
  for (const list of children.values()) if (list.length > 1) list.sort((a, b) => a[ID] - b[ID]);
  const roots = [], all = new Map();
  const todo = (children.get(0) ?? []).map((row) => [row, null]);
  const order = [];
  while (todo.length) {
    const [first, parent] = todo.pop();
    const run = {key: first[ID], nodes: [first], parent, children: [], leaves: 0, depth: parent ? parent.depth + 1 : 0};
    let below = children.get(first[ID]) ?? [];
    while (below.length === 1) {
      run.nodes.push(below[0]);
      below = children.get(below[0][ID]) ?? [];
    }
    run.last = run.nodes.at(-1);
    (parent ? parent.children : roots).push(run);
    all.set(run.key, run);
    order.push(run);
    for (const row of below) todo.push([row, run]);
  }
  const byKey = (a, b) => a.key - b.key;
  roots.sort(byKey);
  let end = 1;
  for (let i = order.length - 1; i >= 0; i--) {
    const run = order[i];
    run.children.sort(byKey);
    if (!run.children.length) run.leaves = 1;
    if (run.parent) run.parent.leaves += run.leaves;
    end = Math.max(end, run.last[START] + run.last[LENGTH]);
    run.live = 0;
    run.pruned = 0;
    for (const row of run.nodes) {
      run.live += row[LIVE];
      run.pruned += row[LENGTH] - row[LIVE];
    }
  }
  return {roots, all, end, numBranches: roots.reduce((sum, run) => sum + run.leaves, 0)};
}

/** Pieces of a bar: [from, to, kind], neighbours of one kind joined. */
export function spansOf(run) {
  const spans = [];
  const add = (from, to, kind) => {
    if (to <= from) return;
    const last = spans.at(-1);
    if (last && last[2] === kind && last[1] === from) last[1] = to; else spans.push([from, to, kind]);
  };
  for (const row of run.nodes) {
    const kind = row[FLAGS] & SHARED ? "shared" : "private";
    let at = row[START];
    for (const frame of row[FRAMES]) {
      add(at, frame[F_FIRST] + frame[F_LIVE], kind);
      add(frame[F_FIRST] + frame[F_LIVE], frame[F_END], "pruned");
      at = frame[F_END];
    }
    add(at, row[START] + row[LENGTH], kind);
  }
  return spans;
}

/** Nodes from the root to the end of a run. */
export function pathOf(run) {
  const parts = [];
  for (let at = run; at; at = at.parent) parts.unshift(...at.nodes);
  return parts;
}

/** Screenshots on a path, in order: where they lie, how much of them is live, and the last node that holds a part. */
export function framesOf(path) {
  const frames = new Map();
  for (const row of path) {
    for (const frame of row[FRAMES]) {
      const known = frames.get(frame[F_START]) ?? {
        image: frame[F_IMAGE], start: frame[F_START], rows: frame[F_ROWS], cols: frame[F_COLS], live: 0, size: 0,
      };
      known.live += frame[F_LIVE];
      known.size += frame[F_END] - frame[F_FIRST];
      known.node = row[ID];
      known.shared = Boolean(row[FLAGS] & SHARED);
      frames.set(frame[F_START], known);
    }
  }
  return [...frames.values()];
}

export function sizesOf(nodes) {
  const sizes = {live: 0, shared: 0, private: 0, pruned: 0};
  for (const row of nodes) {
    sizes.live += row[LIVE];
    sizes.pruned += row[LENGTH] - row[LIVE];
    sizes[row[FLAGS] & SHARED ? "shared" : "private"] += row[LIVE];
  }
  return sizes;
}

const whole = new Intl.NumberFormat("en");
export const count = (number) => whole.format(Math.round(number));
export const share = (number) => (Number.isFinite(number) ? `${(100 * number).toFixed(number > 0 && number < 0.1 ? 1 : 0)} %` : "–");
export const clock = (time) => new Date(1000 * time).toTimeString().slice(0, 8);

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}
