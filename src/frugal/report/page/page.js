// The report page. What comes from a record is text: it enters the page by textContent, and Plotly's labels by plain(),
// which leaves no markup. The table and all else but the plots work before (and without) the unpacking of Plotly.
"use strict";
(() => {
  const D = JSON.parse(byId("data").textContent);
  const PAGE = 50; // rows of the table at a time
  const MOST = { curves: 60, bars: 24 }; // drawn at once
  // Okabe and Ito's colors first, told apart by color-blind readers too, in two tones for light and dark ground
  const COLORS = {
    light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#6b5bd2", "#7a7a7a", "#8c4b3f", "#0f8b8d", "#a0a432"],
    dark: ["#4aa8e0", "#f0843e", "#2fc79a", "#e39ac4", "#e6b422", "#8fd0f5", "#a79bf0", "#a8a8a8", "#c48a7c", "#4fd0d3", "#cfd36b"],
  };
  const BUCKETS = ["train_step", "data_wait", "validation", "startup", "measure", "test", "checkpoint", "callbacks", "warmup",
    "compile", "compress", "lost", "other"]; // each keeps its color
  const ALIKE = 0.002; // a ratio this close to 1 is neither better nor worse
  const SMALL = 0.005; // of every row's time: such buckets are drawn as one

  // -------------------------------------------------------------------------------------------------- small helpers
  function byId(id) { return document.getElementById(id); }
  function el(tag, given = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(given)) {
      if (key === "class") node.className = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value === true) node.setAttribute(key, "");
      else if (value !== false && value != null) node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child != null && child !== ""));
    return node;
  }
  function plain(text, most = 60) { // for Plotly, which reads some tags
    const line = String(text);
    const cut = line.length > most ? line.slice(0, most - 1) + "…" : line;
    return cut.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }
  function significant(value, digits = 3) { // as units.significant in Python
    if (value == null || !Number.isFinite(value)) return "–";
    if (value === 0) return "0";
    let exponent = Math.floor(Math.log10(Math.abs(value)));
    if (Math.abs(Number(value.toPrecision(digits))) >= 10 ** (exponent + 1)) exponent += 1;
    if (exponent < -5 || exponent >= 12) return value.toExponential(digits - 1).replace(/e([+-])(\d)$/, "e$10$2");
    const places = Math.max(0, digits - 1 - exponent);
    return Number(value.toPrecision(digits)).toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
  }
  function duration(seconds) { // as units.duration
    if (seconds < 99.95) return significant(seconds) + " s";
    const whole = Math.round(seconds);
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
    const minutes = Math.round(seconds / 60);
    return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  }
  function option(value, text = value, title) { return el("option", { value, title }, text); }
  function unique(values) { return [...new Set(values)]; }
  function withUnit(figure) { return figure.unit ? `${figure.title} ${figure.unit}` : figure.title; }

  // --------------------------------------------------------------------------------------------------- runs and groups
  D.groups.forEach((group, g) => group.runs.forEach((r) => { D.runs[r].group = g; }));
  const bestGroups = new Map(), bestRuns = new Map();
  for (const [name, set] of Object.entries(D.sets)) {
    if (set.best != null) { bestGroups.set(set.best, name); bestRuns.set(set.run, name); }
  }
  const several = Object.keys(D.sets).length > 1;
  const states = unique(D.runs.map((run) => run.state));
  const first = Object.values(D.sets).find((set) => set.metric != null);
  const words = D.runs.map((run) => {
    const group = D.groups[run.group];
    const named = D.options.map((name, i) => (group.options[i] == null ? "" : `${name}=${group.options[i]}`));
    return [run.name, group.label, ...named, run.state, group.kind, group.set && `set=${group.set}`, run.seed != null && `seed=${run.seed}`, run.error]
      .filter(Boolean).join(" ").toLowerCase();
  });

  const state = {
    mode: D.groups.length < D.runs.length ? "groups" : "runs", query: "", status: "", set: "",
    sort: null, page: 0, open: new Set(), detail: new Set(), picked: new Set(),
    columns: new Set(D.figures.flatMap((figure, i) => (figure.shown ? [i] : []))),
  };

  // A row is a group (with those of its runs that pass the filter) or one run.
  function groupRow(g, runs) { return { id: `g${g}`, g, runs, group: D.groups[g], name: D.groups[g].label }; }
  function runRow(r) { return { id: `r${r}`, r, g: D.runs[r].group, runs: [r], run: D.runs[r], group: D.groups[D.runs[r].group], name: D.runs[r].name }; }
  function single(row) { return row.run || (row.runs.length === 1 ? D.runs[row.runs[0]] : null); }
  function isPart(row) { return !row.run && row.runs.length < row.group.runs.length; } // the filter hides others of the group
  function value(row, f) { const run = single(row); return run ? run.figures[f] : isPart(row) ? meanOf(row, f) : row.group.mean[f]; }
  function half(row, f) { return single(row) || isPart(row) ? null : row.group.half[f]; }
  function text(row, f) {
    const run = single(row);
    if (run) return run.text[f];
    if (!isPart(row)) return row.group.text[f];
    const mean = meanOf(row, f), per = D.figures[f].per, shown = unique(completed(row).map((r) => D.runs[r].text[f]).filter((word) => word != null));
    return mean == null ? null : shown.length === 1 ? shown[0] : D.figures[f].unit === "%" ? (mean / per).toFixed(2) : significant(mean / per, 4);
  }
  function completed(row) { return row.runs.filter((r) => D.runs[r].state === "completed"); }
  function meanOf(row, f) { // of the runs shown, repeats of a seed as one (as Group.by_seed in Python)
    const bySeed = new Map();
    for (const r of completed(row)) {
      const { seed, figures } = D.runs[r], key = seed == null ? r : `seed ${seed}`;
      if (figures[f] != null) bySeed.set(key, [...(bySeed.get(key) || []), figures[f]]);
    }
    const mean = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;
    return bySeed.size ? mean([...bySeed.values()].map(mean)) : null;
  }
  function why(row, f) { const run = single(row) || D.runs[row.runs[0]]; return f in run.why ? D.reasons[run.why[f]] : "no run of this group has it"; }
  function label(row) { // what tells it from the others; a run's name where its group and seed do not
    if (!row.run || row.group.runs.length === 1) return row.group.label;
    const alike = row.group.runs.filter((r) => D.runs[r].seed === row.run.seed);
    return alike.length === 1 && row.run.seed != null ? `${row.group.label}, seed ${row.run.seed}` : row.run.name;
  }
  function isBest(row) { return row.run ? bestRuns.has(row.r) : bestGroups.has(row.g); }

  // Words of the filter: `lenet5` is looked for anywhere; `lr=0.1`, `train<10` compare one column.
  const WORD = /(?:\[[^\]]*\]|\S)+/g, COMPARISON = /^(.+?)(<=|>=|<|>|=)(.+)$/;
  function joined(text) { return String(text).toLowerCase().replace(/, /g, ",").replace(/\s/g, "_"); }
  function asNumber(word) { return word == null || String(word).trim() === "" || !Number.isFinite(Number(word)) ? null : Number(word); }
  function column(name) { // of an option, the seed, the status, the set or a figure: what a run has there; null for no such column
    const i = D.options.findIndex((option) => joined(option) === name);
    if (i >= 0) return (r) => D.groups[D.runs[r].group].options[i];
    if (name === "seed") return (r) => D.runs[r].seed;
    if (name === "status") return (r) => D.runs[r].state;
    if (name === "set") return (r) => D.groups[D.runs[r].group].set;
    const f = D.figures.findIndex((figure) => [figure.title, figure.key].some((known) => joined(known) === name));
    return f < 0 ? null : (r) => (D.runs[r].figures[f] == null ? null : Number((D.runs[r].figures[f] / D.figures[f].per).toPrecision(7)));
  }
  function test(word) { // run -> whether it passes
    const [, name, sign, wanted] = COMPARISON.exec(word) || [];
    const of = name && column(name), limit = asNumber(wanted);
    if (!of || (sign !== "=" && limit == null)) return (r) => words[r].includes(word);
    if (sign === "=") return (r) => { const own = asNumber(of(r)); return own != null && limit != null ? own === limit : of(r) != null && joined(of(r)) === joined(wanted); };
    const holds = { "<": (v) => v < limit, ">": (v) => v > limit, "<=": (v) => v <= limit, ">=": (v) => v >= limit }[sign];
    return (r) => { const own = asNumber(of(r)); return own != null && holds(own); };
  }
  function matcher() {
    const tests = (state.query.toLowerCase().match(WORD) || []).map(test);
    return (r) => (!state.status || D.runs[r].state === state.status) && (!state.set || D.groups[D.runs[r].group].set === state.set)
      && tests.every((passes) => passes(r));
  }

  let kept = []; // runs that pass the filter
  let rows = []; // what the table shows, in its order
  function refresh() {
    const passes = matcher();
    kept = D.runs.map((_, r) => r).filter(passes);
    if (state.mode === "runs") rows = kept.map(runRow);
    else {
      const inside = new Map();
      for (const r of kept) { const g = D.runs[r].group; if (!inside.has(g)) inside.set(g, []); inside.get(g).push(r); }
      rows = [...inside.keys()].sort((a, b) => a - b).map((g) => groupRow(g, inside.get(g)));
    }
    order(rows);
  }
  function order(list) {
    const sort = state.sort;
    if (!sort) { // as the report orders: by set, the best first
      if (state.mode !== "runs") return;
      const by = (row) => { const set = D.sets[row.group.set]; return set && set.metric != null ? [value(row, set.metric), D.figures[set.metric].higher] : [null, true]; };
      list.sort((a, b) => compareSets(a, b) || compareValues(...by(a), by(b)[0]));
      return;
    }
    const key = keys[sort.kind];
    list.sort((a, b) => compareValues(key(a, sort.index), sort.down, key(b, sort.index)));
  }
  function compareSets(a, b) { return (a.group.set ? 0 : 1) - (b.group.set ? 0 : 1) || a.group.set.length - b.group.set.length || (a.group.set < b.group.set ? -1 : a.group.set > b.group.set ? 1 : 0); }
  function compareValues(a, down, b) { // what is missing comes last, either way
    if (a == null || b == null) return (a == null ? 1 : 0) - (b == null ? 1 : 0);
    const result = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return down ? -result : result;
  }
  const keys = {
    name: (row) => row.name,
    set: (row) => row.group.set || null,
    option: (row, i) => { const word = row.group.options[i]; return word == null || word === "–" ? null : word !== "" && Number.isFinite(Number(word)) ? Number(word) : word; },
    seeds: (row) => (row.run ? (row.run.seed == null ? null : Number.isFinite(Number(row.run.seed)) ? Number(row.run.seed) : row.run.seed) : row.runs.length),
    state: (row) => (row.run ? row.run.state : stateOf(row)),
    figure: value,
  };
  function stateOf(row) { return unique(row.runs.map((r) => D.runs[r].state)).join(", "); }

  // ------------------------------------------------------------------------------------------------------------ table
  function columns() {
    const differ = D.options.map((_, i) => i).filter((i) => unique(rows.map((row) => row.group.options[i])).length > 1);
    const list = [{ kind: "name", title: state.mode === "groups" ? "Configuration" : "Run", css: "first" }];
    if (several) list.push({ kind: "set", title: "set" });
    for (const i of differ) list.push({ kind: "option", index: i, title: D.options[i], css: "option" });
    list.push({ kind: "seeds", title: state.mode === "groups" ? "seeds" : "seed", css: "num seeds" });
    if (states.length > 1 || states[0] !== "completed") list.push({ kind: "state", title: "status", css: "status" });
    D.figures.forEach((figure, i) => { if (state.columns.has(i)) list.push({ kind: "figure", index: i, title: figure.title, unit: figure.unit, css: "num", key: figure.key }); });
    list.push({ kind: "links", title: "files" });
    return list;
  }
  function drawTable() {
    const list = columns();
    const tops = bestValues(list.flatMap((column) => (column.kind === "figure" ? [column.index] : [])));
    byId("table").tHead.replaceChildren(el("tr", {}, ...list.map(head)));
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const body = [];
    for (const row of rows.slice(state.page * PAGE, (state.page + 1) * PAGE)) {
      body.push(line(row, list, tops));
      if (row.run && state.detail.has(row.r)) body.push(details(row.run, list.length));
      if (!row.run && state.open.has(row.g)) {
        const inner = row.runs.map(runRow);
        for (const child of inner) {
          body.push(line(child, list, new Map(), true));
          if (state.detail.has(child.r)) body.push(details(child.run, list.length));
        }
      }
    }
    if (!rows.length) body.push(el("tr", {}, el("td", { class: "empty", colspan: list.length }, "No run passes the filter.")));
    byId("table").tBodies[0].replaceChildren(...body);
    drawPager(pages);
    const runs = rows.reduce((sum, row) => sum + row.runs.length, 0);
    byId("count").textContent = runs === D.runs.length ? `${runs} run${runs === 1 ? "" : "s"}` : `${runs} of ${D.runs.length} runs`;
    byId("chosen").hidden = !state.picked.size;
    byId("chosen").replaceChildren(`${state.picked.size} ticked`,
      el("button", { type: "button", id: "do-compare", onclick: comparePicked, disabled: state.picked.size < 2 }, "compare"),
      el("button", { type: "button", id: "do-clear", onclick: () => { state.picked.clear(); changed(); } }, "clear"));
  }
  function bestValues(figures) { // `set figure` -> the best value among the rows, inside each set of comparable runs
    const tops = new Map();
    for (const set of unique(rows.map((row) => row.group.set)).filter(Boolean)) {
      for (const f of figures) {
        const values = rows.filter((row) => row.group.set === set).map((row) => value(row, f)).filter((v) => v != null);
        if (unique(values).length > 1) tops.set(`${set} ${f}`, D.figures[f].higher ? Math.max(...values) : Math.min(...values));
      }
    }
    return tops;
  }
  function head(column) {
    if (column.kind === "links") return el("th", { scope: "col" }, el("button", { type: "button", disabled: true }, column.title));
    const sorted = state.sort && state.sort.kind === column.kind && state.sort.index === column.index ? state.sort : null;
    const button = el("button", { type: "button", title: column.key || column.title, onclick: () => sortBy(column) },
      column.title, column.unit ? el("small", {}, " " + column.unit) : null, sorted ? (sorted.down ? " ↓" : " ↑") : "");
    return el("th", { scope: "col", class: column.css, "data-key": column.key || column.title, "aria-sort": sorted ? (sorted.down ? "descending" : "ascending") : null }, button);
  }
  function sortBy(column) { // best first, then the other way, then as the report had it
    const best = column.kind === "figure" && D.figures[column.index].higher;
    const sort = state.sort;
    if (!sort || sort.kind !== column.kind || sort.index !== column.index) state.sort = { kind: column.kind, index: column.index, down: best };
    else state.sort = sort.down === best ? { ...sort, down: !best } : null;
    state.page = 0;
    changed();
  }
  function line(row, list, tops, child = false) {
    const picked = row.runs.every((r) => state.picked.has(r));
    const css = [child ? "child" : "", picked ? "picked" : "", !child && isBest(row) ? "best" : ""].join(" ").trim();
    return el("tr", { class: css, "data-id": row.id }, ...list.map((column) => cell(row, column, tops, child, picked)));
  }
  function cell(row, column, tops, child, picked) {
    if (column.kind === "name") {
      const open = row.run ? state.detail.has(row.r) : state.open.has(row.g);
      const unfold = () => { const set = row.run ? state.detail : state.open, key = row.run ? row.r : row.g; set.has(key) ? set.delete(key) : set.add(key); drawTable(); };
      const tick = el("input", { type: "checkbox", "aria-label": `Tick ${row.name}`, onchange: () => { for (const r of row.runs) picked ? state.picked.delete(r) : state.picked.add(r); changed(); } });
      tick.checked = picked;
      const set = row.run ? bestRuns.get(row.r) : bestGroups.get(row.g);
      return el("td", { class: "first" }, el("span", {},
        tick,
        el("button", { type: "button", class: "fold", "aria-expanded": String(open), "aria-label": row.run ? "Details" : "Runs of this group", onclick: unfold }, "▸"),
        el("button", { type: "button", class: "name", title: row.name, onclick: unfold }, row.name),
        row.group.pareto && !child ? el("span", { class: "star", title: `In the Pareto set; on the front of quality against ${row.group.fronts.join(", ")}` }, "★") : null,
        set != null && !child ? el("span", { class: "badge best", title: `Best ${D.figures[D.sets[set].metric].title}${several ? ` of set ${set}` : ""}` }, row.run && row.group.runs.length > 1 ? "best single run" : "best") : null,
        row.run && row.run.state !== "completed" ? el("span", { class: "badge bad", title: row.run.error }, row.run.state) : null,
        row.group.kind && !child ? el("span", { class: "badge" }, row.group.kind) : null));
    }
    if (column.kind === "set") return el("td", {}, row.group.set || "–");
    if (column.kind === "option") { const word = row.group.options[column.index]; return el("td", { class: "option", title: word }, word == null ? "–" : word); }
    if (column.kind === "seeds") return el("td", { class: "num seeds" }, row.run ? (row.run.seed == null ? "–" : row.run.seed) : isPart(row) ? `${row.runs.length} of ${row.group.runs.length} runs` : row.group.seeds);
    if (column.kind === "state") {
      const word = row.run ? row.run.state : stateOf(row);
      return el("td", { class: "status" }, el("span", { class: `state ${word.split(" ")[0].replace(",", "")}`, title: row.run && row.run.error }, word));
    }
    if (column.kind === "links") {
      if (!single(row)) return el("td", { class: "links none" }, `${row.runs.length} runs`);
      const run = single(row);
      return el("td", { class: "links" }, link(run, "", "folder"), run.files.includes("record.json") ? link(run, "record.json", "record") : null);
    }
    const shown = text(row, column.index);
    if (shown == null) return el("td", { class: "num none", title: why(row, column.index) }, "–");
    const css = tops.get(`${row.group.set} ${column.index}`) === value(row, column.index) ? "num figure top" : "num figure";
    return el("td", { class: css, title: `${D.figures[column.index].key}: ${value(row, column.index)}${!single(row) && isPart(row) ? ", mean of the runs shown" : ""}` }, shown);
  }
  function link(run, file, text) { return el("a", { href: `${run.href}/${file}`, target: "_blank", rel: "noopener noreferrer" }, text); }
  function details(run, width) {
    const group = D.groups[run.group];
    const parts = [["run", run.name], ["settings", group.label], ["status", run.state]];
    if (run.error) parts.push(["error", el("span", { class: "error" }, run.error)]);
    if (run.diagnosis) parts.push(["where to look", run.diagnosis]);
    if (run.command) parts.push(["command", el("code", {}, run.command)]);
    if (run.started) parts.push(["started", run.started]);
    const links = [link(run, "", "folder"), ...run.files.map((file) => link(run, file, file))];
    parts.push(["files", el("span", {}, ...links.flatMap((a, i) => (i ? [" · ", a] : [a])))]);
    const terms = parts.flatMap(([name, what]) => [el("dt", {}, name), el("dd", {}, what)]);
    return el("tr", { class: "details" }, el("td", { class: "detail", colspan: width }, el("div", {}, el("dl", {}, ...terms))));
  }
  function drawPager(pages) {
    const from = state.page * PAGE;
    const turn = (by) => () => { state.page += by; drawTable(); };
    byId("pager").replaceChildren(...(pages < 2 ? [] : [
      `${from + 1}–${Math.min(from + PAGE, rows.length)} of ${rows.length}`,
      el("button", { type: "button", class: "ghost", "aria-label": "Previous page", disabled: state.page === 0, onclick: turn(-1) }, "‹"),
      el("button", { type: "button", class: "ghost", "aria-label": "Next page", disabled: state.page === pages - 1, onclick: turn(1) }, "›")]));
  }
  function show(row) { // from a plot to the row that the point stands for
    let index = rows.findIndex((known) => known.id === row.id);
    if (index < 0 && !row.run) index = rows.findIndex((known) => row.runs.includes(known.r));
    if (index < 0 && row.run) { index = rows.findIndex((known) => known.g === row.g); state.open.add(row.g); }
    if (index < 0) return;
    state.page = Math.floor(index / PAGE);
    drawTable();
    const at = (id) => byId("table").querySelector(`tr[data-id="${id}"]`);
    const found = at(row.id) || at(rows[index].id);
    if (!found) return;
    found.scrollIntoView({ block: "center" });
    found.classList.add("flash");
    setTimeout(() => found.classList.remove("flash"), 2300);
  }

  // ------------------------------------------------------------------------------------------------------------ cards
  function drawCards() {
    const tiles = [];
    const tile = (what, f, row, css, also) => el("button", { type: "button", class: `tile ${css}`, title: row.name, onclick: () => { reset(); show(row); } },
      el("span", { class: "what" }, what),
      el("span", { class: "value" }, text(row, f).split(" ± ")[0], el("small", {}, ` ${D.figures[f].unit}${text(row, f).includes(" ± ") ? ` ± ${text(row, f).split(" ± ")[1]}` : ""}`)),
      el("span", { class: "who" }, row.name), el("span", { class: "also" }, also));
    const judged = Object.entries(D.sets).filter(([, set]) => set.best != null);
    const row = (g) => groupRow(g, D.groups[g].runs);
    for (const [name, set] of judged.slice(0, 4)) {
      const n = D.groups[set.best].runs.length;
      tiles.push(tile(`Best ${D.figures[set.metric].title}${several ? ` · set ${name}` : ""}`, set.metric, row(set.best), "best", n > 1 ? `mean over ${n} runs` : "one run"));
    }
    if (judged.length === 1) {
      const [name, set] = judged[0];
      for (const [key, what] of [["train_s", "Shortest training"], ["file_bytes", "Smallest file"], ["latency_p50_ms", "Lowest latency"]]) {
        const f = D.figures.findIndex((figure) => figure.key === key);
        const among = D.groups.map((_, g) => row(g)).filter((r) => f >= 0 && r.group.set === name && !r.group.kind && value(r, f) != null && value(r, set.metric) != null);
        // among equals the better one
        among.sort((a, b) => value(a, f) - value(b, f) || compareValues(value(a, set.metric), D.figures[set.metric].higher, value(b, set.metric)));
        if (among.length > 1) tiles.push(tile(what, f, among[0], "", `${D.figures[set.metric].title} ${text(among[0], set.metric)} ${D.figures[set.metric].unit}`));
      }
    }
    byId("cards").replaceChildren(...tiles);
  }

  // ------------------------------------------------------------------------------------------------------------ plots
  let ready = null; // a promise of Plotly and the curves
  let trouble = null; // why there is none
  let CURVES = { metrics: [], runs: {}, left_out: null };
  const dirty = new Set(), visible = new Set();
  const draws = { "pareto-plot": drawPareto, "curves-plot": drawCurves, "time-plot": drawTime, "latency-plot": drawLatency };

  async function unpack(id) {
    const bytes = Uint8Array.from(atob(byId(id).textContent.trim()), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }
  function load() {
    ready ||= (async () => {
      if (typeof DecompressionStream === "undefined") throw new Error("this browser cannot unpack them; one of 2023 or later can");
      CURVES = JSON.parse(await unpack("curves"));
      const script = document.createElement("script");
      script.textContent = await unpack("library"); // the policy lets it run for its hash
      document.head.append(script);
      if (typeof Plotly === "undefined") throw new Error("the plotting library did not start");
      fillCurves();
    })().catch((error) => { trouble = `The plots cannot be drawn: ${error.message}. The table and the comparison stand.`; });
    return ready;
  }
  async function redraw(id) {
    dirty.add(id);
    if (!visible.has(id)) return;
    await load();
    if (!dirty.delete(id)) return;
    if (trouble) message(id, trouble);
    else draws[id]();
  }
  function message(id, text) {
    if (typeof Plotly !== "undefined") Plotly.purge(byId(id));
    byId(id).replaceChildren(el("p", { class: "message" }, text));
  }
  function palette() { return COLORS[theme()]; }
  function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
  function layout(given) {
    const family = getComputedStyle(document.body).fontFamily;
    const line = css("--line"), axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, ticks: "", tickfont: { color: css("--soft") } };
    const narrow = window.innerWidth < 640;
    const made = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 54, r: 14, t: narrow ? 10 : 28, b: 46 }, modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") },
      font: { family, size: 12.5, color: css("--ink") }, hovermode: "closest", dragmode: narrow ? false : "zoom",
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { family, color: css("--ink"), size: 12.5 }, align: "left", namelength: 60 },
      legend: narrow || given.below ? { orientation: "h", y: 0, yref: "container", yanchor: "bottom", x: 0, traceorder: "normal" } : { x: 1.01, y: 1 },
      showlegend: true, ...given,
    };
    delete made.below;
    made.xaxis = { ...axis, ...given.xaxis };
    made.yaxis = { ...axis, ...given.yaxis };
    return made;
  }
  const CONFIG = { responsive: true, displaylogo: false, scrollZoom: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], showTips: false };
  const TAP = { row: null }; // on a touch screen the first tap shows, the second goes
  function plot(id, traces, given, rowOf) {
    const node = byId(id);
    if (node.querySelector(".message")) node.replaceChildren();
    Plotly.react(node, traces, layout(given), { ...CONFIG, displayModeBar: window.innerWidth < 640 ? false : "hover" });
    node.removeAllListeners("plotly_click");
    node.on("plotly_click", (event) => {
      const row = rowOf(event.points[0]);
      if (!row) return;
      if (matchMedia("(hover: none)").matches && TAP.row !== row.id) { TAP.row = row.id; return; }
      show(row);
    });
  }
  function scope() { // rows to draw: the ticked ones, else those of the table
    if (!state.picked.size) return rows;
    if (state.mode === "runs") return rows.filter((row) => state.picked.has(row.r));
    return rows.flatMap((row) => (row.runs.every((r) => state.picked.has(r)) ? [row] : row.runs.filter((r) => state.picked.has(r)).map(runRow)));
  }
  function hover(row, figures) {
    const lines = unique(figures).filter((f) => text(row, f) != null).map((f) => `${plain(withUnit(D.figures[f]))}: ${plain(text(row, f))}`);
    return [`<b>${plain(label(row), 80)}</b>`, ...lines].join("<br>");
  }

  function drawPareto() {
    const x = Number(byId("pareto-x").value), y = Number(byId("pareto-y").value);
    const [fx, fy] = [D.figures[x], D.figures[y]];
    const among = scope().filter((row) => value(row, x) != null && value(row, y) != null);
    if (!among.length) return message("pareto-plot", "No run has both figures.");
    const color = byId("pareto-color").value;
    const kind = (row) => (color === "set" ? `set ${row.group.set || "–"}` : color === "" ? "all" : `${D.options[color]} ${row.group.options[color] ?? "–"}`);
    const kinds = unique(among.map(kind)).sort((a, b) => a.endsWith("–") - b.endsWith("–") || a.localeCompare(b, "en", { numeric: true }));
    const colors = palette();
    const traces = [];
    for (const set of unique(among.map((row) => row.group.set))) {
      const front = frontOf(among.filter((row) => row.group.set === set && !row.group.kind), x, y);
      if (front.length > 1) {
        const points = front.map((row) => [value(row, x) / fx.per, value(row, y) / fy.per]);
        traces.push({ x: points.map((p) => p[0]), y: points.map((p) => p[1]), mode: "lines", line: { color: css("--soft"), width: 1.5, shape: fx.higher ? "vh" : "hv", dash: "dot" }, hoverinfo: "skip", showlegend: false });
      }
    }
    const order = [];
    kinds.forEach((name, i) => {
      const points = among.filter((row) => kind(row) === name);
      order[traces.length] = points;
      const dense = among.length > 60;
      traces.push({
        name: plain(name, 28), x: points.map((row) => value(row, x) / fx.per), y: points.map((row) => value(row, y) / fy.per), mode: "markers", type: "scatter",
        error_y: dense ? undefined : { type: "data", array: points.map((row) => (half(row, y) == null ? 0 : half(row, y) / fy.per)), thickness: 1, width: 3, color: colors[i % colors.length] },
        marker: {
          color: colors[i % colors.length], line: { color: css("--card"), width: 1 }, opacity: dense ? 0.75 : 0.95,
          symbol: points.map((row) => (row.group.pareto ? "star" : "circle")), size: points.map((row) => (row.group.pareto ? 15 : among.length > 300 ? 7 : 10)),
        },
        text: points.map((row) => hover(row, [y, x, ...D.figures.flatMap((f, j) => (f.cost ? [j] : []))])), hoverinfo: "text",
      });
    });
    // as high as the points: an interval over two seeds can be wider than all else
    const ys = among.map((row) => value(row, y) / fy.per), low = Math.min(...ys), high = Math.max(...ys), air = 0.08 * (high - low || Math.abs(high) || 1);
    const log = (id, f) => (byId(id).checked && among.every((row) => value(row, f) > 0) ? "log" : "linear");
    plot("pareto-plot", traces, {
      showlegend: kinds.length > 1 && kinds.length <= 24,
      xaxis: { title: { text: plain(withUnit(fx)) }, type: log("pareto-xlog", x) }, yaxis: { title: { text: plain(withUnit(fy)) }, type: log("pareto-ylog", y), range: log("pareto-ylog", y) === "log" ? undefined : [low - air, high + air] },
    }, (point) => order[point.curveNumber]?.[point.pointNumber]);
  }
  function frontOf(among, x, y) { // what nothing beats on both axes, from left to right
    const signX = D.figures[x].higher ? -1 : 1, signY = D.figures[y].higher ? -1 : 1;
    const sorted = [...among].sort((a, b) => signX * (value(a, x) - value(b, x)) || signY * (value(a, y) - value(b, y)));
    const front = [];
    let best = Infinity;
    for (const row of sorted) if (signY * value(row, y) < best) { best = signY * value(row, y); front.push(row); }
    return signX > 0 ? front : front.reverse();
  }

  function fillCurves() {
    const names = CURVES.metrics.map(([name]) => name);
    const first = ["val/accuracy", "val/loss", "train/loss"].find((name) => names.includes(name)) || names[0];
    byId("curves-y").replaceChildren(...names.map((name, i) => option(i, name)));
    if (first) byId("curves-y").value = names.indexOf(first);
  }
  function drawCurves() {
    const metric = byId("curves-y").value, byEpoch = byId("curves-x").value === "epoch";
    const [name, unit, per] = CURVES.metrics[metric] || ["", "", 1];
    const title = unit ? `${name} ${unit}` : name;
    const of = scope().flatMap((row) => row.runs.map(runRow));
    const having = of.filter((row) => CURVES.runs[row.r]?.[1][metric]);
    byId("curves-hint").textContent = [
      having.length > MOST.curves ? `${MOST.curves} of ${having.length} curves are drawn, in the table's order: tick rows or filter for others.` : "",
      CURVES.left_out].filter(Boolean).join(" ");
    if (!having.length) return message("curves-plot", CURVES.metrics.length ? "None of these runs has this metric." : "No metrics.csv beside the records.");
    const drawn = having.slice(0, MOST.curves);
    const groups = unique(drawn.map((row) => row.g));
    const colors = palette();
    const shown = new Set();
    const traces = drawn.map((row) => {
      const [perEpoch, metrics] = CURVES.runs[row.r];
      const [steps, values] = metrics[metric];
      const x = byEpoch ? steps.map((s) => s / perEpoch) : steps;
      const at = groups.indexOf(row.g), color = colors[at % colors.length];
      const legend = !shown.has(row.g);
      shown.add(row.g);
      const name = plain(label(row), 80);
      return {
        x, y: values.map((v) => (v == null ? null : v / per)), mode: steps.length < 40 ? "lines+markers" : "lines", marker: { size: 4 }, type: "scatter",
        line: { color, width: 1.6, dash: ["solid", "dash", "dot", "dashdot"][Math.floor(at / colors.length) % 4] }, opacity: drawn.length > 20 ? 0.7 : 0.95,
        name: plain(row.group.label, 28), legendgroup: String(row.g), showlegend: legend,
        text: values.map((v, i) => `<b>${name}</b><br>${plain(title)} ${significant(v == null ? null : v / per, 4)} at ${byEpoch ? `epoch ${significant(x[i])}` : `step ${steps[i].toLocaleString("en-US")}`}`), hoverinfo: "text",
      };
    });
    const log = byId("curves-log").checked ? "log" : "linear";
    plot("curves-plot", traces, {
      showlegend: groups.length > 1 && groups.length <= 24, xaxis: { title: { text: byEpoch ? "epoch" : "step" } },
      yaxis: { title: { text: plain(title) }, type: log },
    }, (point) => drawn[point.curveNumber]);
  }

  function barRows(has) { return scope().filter((row) => row.runs.some((r) => has(D.runs[r]))).slice(0, MOST.bars); }
  function bars(id, traces, among, given) { // one line a row, the first on top
    const legend = window.innerWidth < 640 ? 19 * traces.length : 22;
    byId(id).style.height = `${104 + legend + Math.max(3, among.length) * (given.thick || 26)}px`;
    delete given.thick;
    plot(id, traces, {
      margin: { l: 10, r: 14, t: window.innerWidth < 640 ? 6 : 24, b: 46 }, bargap: 0.25, below: true, ...given, dragmode: false,
      yaxis: { tickvals: among.map((_, i) => i), ticktext: among.map((row) => plain(label(row), window.innerWidth < 640 ? 18 : 30) + " "), range: [among.length - 0.5, -0.5], showgrid: false, zeroline: false },
    }, (point) => among[point.pointNumber]);
  }
  function drawTime() {
    const among = barRows((run) => Object.keys(run.ledger).length);
    if (!among.length) return message("time-plot", "None of these runs has a ledger.");
    const spent = among.map((row) => {
      const runs = row.runs.map((r) => D.runs[r]).filter((run) => Object.keys(run.ledger).length && (row.run || run.state === "completed" || row.runs.every((r) => D.runs[r].state !== "completed")));
      return D.buckets.map((_, b) => runs.reduce((sum, run) => sum + (run.ledger[b] || 0), 0) / runs.length);
    });
    const totals = spent.map((seconds) => seconds.reduce((a, b) => a + b, 0));
    const share = byId("time-as").value === "share";
    const colors = palette();
    const place = (b) => { const i = BUCKETS.indexOf(D.buckets[b]); return i < 0 ? BUCKETS.length + b : i; };
    const used = D.buckets.map((_, b) => b).filter((b) => spent.some((s) => s[b] > 0)).sort((a, b) => place(a) - place(b));
    const large = used.filter((b) => spent.some((s, j) => s[b] > SMALL * totals[j])), small = used.filter((b) => !large.includes(b));
    const trace = (name, seconds, color, opacity) => ({
      type: "bar", orientation: "h", name: plain(name), y: among.map((_, j) => j), x: seconds.map((s, j) => (share ? (100 * s) / (totals[j] || 1) : s)),
      marker: { color, opacity, line: { width: 0 } }, hoverinfo: "text", textposition: "none",
      text: seconds.map((s, j) => `<b>${plain(label(among[j]), 80)}</b><br>${plain(name)}: ${duration(s)}, ${significant((100 * s) / (totals[j] || 1))} % of ${duration(totals[j])}`),
    });
    const traces = large.map((b) => trace(D.buckets[b], spent.map((s) => s[b]), colors[place(b) % colors.length], place(b) < colors.length ? 1 : 0.5));
    if (small.length) traces.push(trace(small.length === 1 ? D.buckets[small[0]] : `${small.length} others`, spent.map((s) => small.reduce((sum, b) => sum + s[b], 0)), css("--soft"), 0.45));
    bars("time-plot", traces, among, { barmode: "stack", xaxis: { title: { text: share ? "% of wall time" : "seconds" }, range: share ? [0, 100] : undefined } });
  }
  function drawLatency() {
    const batch = Number(byId("latency-batch").value);
    const among = barRows((run) => run.latency.some((row) => row[1] === batch)).slice(0, 12);
    if (!among.length) return message("latency-plot", "None of these runs was timed at this batch size.");
    const at = (row, backend) => {
      const found = row.runs.flatMap((r) => D.runs[r].latency.filter((l) => l[0] === backend && l[1] === batch && l[4] != null));
      const mean = (i) => found.reduce((sum, l) => sum + (l[i] ?? l[4]), 0) / found.length;
      return found.length ? { p50: mean(4), p90: mean(5), p99: mean(6), status: found[0][3], threads: found[0][2] } : null;
    };
    const backends = unique(among.flatMap((row) => row.runs.flatMap((r) => D.runs[r].latency.filter((l) => l[1] === batch).map((l) => l[0]))));
    const colors = palette();
    const traces = backends.map((backend, i) => {
      const times = among.map((row) => at(row, backend));
      return {
        type: "bar", orientation: "h", name: plain(backend), y: among.map((_, j) => j), x: times.map((t) => (t ? t.p50 : null)), marker: { color: colors[i % colors.length] },
        error_x: { type: "data", symmetric: false, array: times.map((t) => (t ? Math.max(0, t.p90 - t.p50) : 0)), arrayminus: times.map(() => 0), thickness: 1.2, width: 2, color: css("--soft") },
        hoverinfo: "text", textposition: "none",
        text: times.map((t, j) => (t ? `<b>${plain(label(among[j]), 80)}</b><br>${plain(backend)}, batch ${batch}: p50 ${significant(t.p50)} ms, p90 ${significant(t.p90)}, p99 ${significant(t.p99)}<br>${plain(t.status)}, ${plain(t.threads)} thread${t.threads === 1 ? "" : "s"}` : "")),
      };
    });
    const log = byId("latency-log").checked;
    bars("latency-plot", traces, among, { barmode: "group", thick: 14 + 13 * backends.length, xaxis: { title: { text: "ms" }, type: log ? "log" : "linear", rangemode: "tozero" } });
  }

  // ---------------------------------------------------------------------------------------------------------- compare
  function fillCompare() {
    const sorted = D.groups.flatMap((group) => group.runs);
    for (const id of ["compare-a", "compare-b"]) {
      byId(id).replaceChildren(...sorted.map((r) => option(r, label(runRow(r)), D.runs[r].name)));
      byId(id).addEventListener("change", drawCompare);
    }
    const a = first ? first.run : sorted[0];
    const other = sorted.find((r) => D.runs[r].group !== D.runs[a].group) ?? sorted.find((r) => r !== a) ?? a;
    byId("compare-a").value = a;
    byId("compare-b").value = other;
    byId("compare").hidden = D.runs.length < 2;
  }
  function comparePicked() {
    const [a, b] = [...state.picked];
    byId("compare-a").value = a;
    byId("compare-b").value = b;
    drawCompare();
    byId("compare").scrollIntoView();
  }
  function drawCompare() {
    const a = D.runs[byId("compare-a").value], b = D.runs[byId("compare-b").value];
    if (!a || !b) return;
    const settings = D.keys.map((key, i) => [key, a.leaves[i], b.leaves[i]]).filter(([, x, y]) => x !== y)
      .map(([key, x, y]) => el("tr", {}, el("td", {}, el("code", {}, key)), el("td", {}, D.values[x]), el("td", {}, D.values[y])));
    const figures = D.figures.map((figure, f) => {
      const [x, y] = [a.figures[f], b.figures[f]];
      if (x == null && y == null) return null;
      const cell = (run) => (run.text[f] == null ? el("td", { class: "num none", title: D.reasons[run.why[f]] }, "–") : el("td", { class: "num" }, run.text[f]));
      const comparable = x != null && y != null && x !== 0;
      const css = !comparable || Math.abs(y / x - 1) < ALIKE ? "num" : (y > x) === figure.higher ? "num better" : "num worse";
      return el("tr", { "data-key": figure.key }, el("td", {}, figure.title, figure.unit ? el("span", { class: "soft" }, ` ${figure.unit}`) : null), cell(a), cell(b),
        el("td", { class: css }, comparable ? `${significant(y / x)} ×` : "–"));
    }).filter(Boolean);
    const heads = (names) => el("thead", {}, el("tr", {}, ...names.map((name, i) => el("th", { class: i && names.length > 3 ? "num" : "" }, name))));
    const table = (title, names, lines, empty) => el("div", {}, el("h3", {}, title),
      el("div", { class: "scroll" }, el("table", {}, heads(names), el("tbody", {}, ...(lines.length ? lines : [el("tr", {}, el("td", { class: "empty", colspan: names.length }, empty))])))));
    byId("compare-tables").replaceChildren(
      table("Settings that differ", ["key", "A", "B"], settings, "No setting differs."),
      table("Figures", ["figure", "A", "B", "B / A"], figures, "Neither run has a figure."));
  }

  // ------------------------------------------------------------------------------------------------------------ theme
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("frugal-theme"); } catch { /* a browser may forbid it for files */ }
  function theme() { return chosen === "dark" || chosen === "light" ? chosen : dark.matches ? "dark" : "light"; }
  function applyTheme() { document.documentElement.dataset.theme = theme(); Object.keys(draws).forEach(redraw); }
  byId("theme").addEventListener("click", () => {
    chosen = theme() === "dark" ? "light" : "dark";
    try { localStorage.setItem("frugal-theme", chosen); } catch { /* then for this once */ }
    applyTheme();
  });
  dark.addEventListener("change", applyTheme);

  // ------------------------------------------------------------------------------------------------------------ start
  function changed() {
    refresh();
    byId("mode-groups").setAttribute("aria-pressed", String(state.mode === "groups"));
    byId("mode-runs").setAttribute("aria-pressed", String(state.mode === "runs"));
    drawTable();
    Object.keys(draws).forEach(redraw);
  }
  function reset() { // so that a row asked for is there
    Object.assign(state, { query: "", status: "", set: "", sort: null, mode: D.groups.length < D.runs.length ? "groups" : "runs" });
    for (const id of ["query", "status", "set"]) byId(id).value = "";
    changed();
  }
  function start() {
    byId("title").textContent = D.title;
    document.title = `${D.title} · Frugal`;
    const verdict = D.notes.filter((note) => note.startsWith("Best "));
    byId("lead").textContent = verdict.length === 1 ? verdict[0] : "";
    byId("lead").hidden = verdict.length !== 1;
    const items = D.notes.filter((note) => verdict.length !== 1 || note !== verdict[0]).concat(D.skipped.map((line) => `Skipped ${line}`));
    byId("notes").hidden = !items.length;
    byId("notes").querySelector("ul").replaceChildren(...items.map((note) => el("li", { class: /not comparable|differ|not finite|changed|Skipped/i.test(note) ? "caution" : "" }, note)));
    byId("footer").textContent = `Written by Frugal ${D.version} from ${D.runs.length} record${D.runs.length === 1 ? "" : "s"}; report.csv beside this page holds the raw figures.`;

    const counts = (name) => D.runs.filter((run) => run.state === name).length;
    byId("status").replaceChildren(option("", "any status"), ...states.map((name) => option(name, `${name} (${counts(name)})`)));
    byId("status").hidden = states.length < 2;
    byId("set").replaceChildren(option("", "all sets"), ...Object.keys(D.sets).map((name) => option(name, `set ${name}`)));
    byId("set").hidden = !several;
    let timer = 0;
    byId("query").addEventListener("input", (event) => { clearTimeout(timer); timer = setTimeout(() => { state.query = event.target.value; state.page = 0; changed(); }, 120); });
    for (const id of ["status", "set"]) byId(id).addEventListener("change", (event) => { state[id] = event.target.value; state.page = 0; changed(); });
    for (const mode of ["groups", "runs"]) byId(`mode-${mode}`).addEventListener("click", () => { state.mode = mode; state.page = 0; changed(); });

    byId("columns").querySelector("div").replaceChildren(...D.figures.map((figure, i) => {
      const box = el("input", { type: "checkbox", onchange: () => { box.checked ? state.columns.add(i) : state.columns.delete(i); drawTable(); } });
      box.checked = state.columns.has(i);
      return el("label", {}, box, withUnit(figure));
    }));
    document.addEventListener("click", (event) => { if (!byId("columns").contains(event.target)) byId("columns").open = false; });

    const having = D.figures.map((_, i) => i).filter((i) => D.runs.some((run) => run.figures[i] != null));
    for (const axis of ["x", "y"]) byId(`pareto-${axis}`).replaceChildren(...having.map((i) => option(i, withUnit(D.figures[i]), D.figures[i].key)));
    const quality = first ? first.metric : having[0];
    const cost = having.find((i) => D.figures[i].key === "train_s") ?? having.find((i) => D.figures[i].cost) ?? having[having.length - 1];
    if (having.length) { byId("pareto-y").value = quality; byId("pareto-x").value = cost; }
    const few = D.options.map((_, i) => i).filter((i) => { const n = unique(D.groups.map((group) => group.options[i])).length; return n > 1 && n <= 24; });
    byId("pareto-color").replaceChildren(option("", "none"), ...(several ? [option("set", "set")] : []), ...few.map((i) => option(i, D.options[i])));
    byId("pareto-color").value = several ? "set" : few.length ? few[0] : "";
    const spread = (f) => { const values = D.runs.map((run) => run.figures[f]).filter((v) => v > 0); return Math.max(...values) / Math.min(...values); };
    byId("pareto-xlog").checked = having.length > 0 && spread(cost) > 4;
    const batches = unique(D.runs.flatMap((run) => run.latency.map((row) => row[1]))).sort((a, b) => a - b);
    byId("latency-batch").replaceChildren(...batches.map((batch) => option(batch)));
    const timed = batches.length > 0;
    byId("latency").hidden = !timed;
    for (const [id, plots] of [["pareto", ["x", "y", "color", "xlog", "ylog"]], ["curves", ["x", "y", "log"]], ["time", ["as"]], ["latency", ["batch", "log"]]]) {
      for (const name of plots) byId(`${id}-${name}`).addEventListener("change", () => redraw(`${id}-plot`));
    }
    byId("swap").addEventListener("click", () => { const [a, b] = [byId("compare-a").value, byId("compare-b").value]; byId("compare-a").value = b; byId("compare-b").value = a; drawCompare(); });

    drawCards();
    fillCompare();
    for (const anchor of byId("nav").children) anchor.hidden = byId(anchor.hash.slice(1)).hidden;
    drawCompare();
    document.documentElement.dataset.theme = theme();
    refresh();
    changed();
    const watch = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        entry.isIntersecting ? visible.add(entry.target.id) : visible.delete(entry.target.id);
        if (entry.isIntersecting && dirty.has(entry.target.id)) redraw(entry.target.id);
      }
    }, { rootMargin: "300px" });
    Object.keys(draws).forEach((id) => watch.observe(byId(id)));
    window.addEventListener("beforeprint", () => Object.keys(draws).forEach((id) => { visible.add(id); redraw(id); }));
    const anew = () => { for (const set of [state.open, state.detail, state.picked]) set.clear(); reset(); };
    window.frugalPage = { significant, duration, anew }; // for the tests
    (window.requestIdleCallback || setTimeout)(load);
  }
  start();
})();
