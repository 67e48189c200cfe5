"use strict";
// Draws what /api says. Whatever a profile says of itself is set as text, never as HTML.

const WRITES = { nominal: "written at nominal", operating_point: "written at the point" };
const VIRIDIS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121],
  [109, 205, 89], [180, 222, 44], [253, 231, 37]];
const LEAST = -8, MOST = -1; // decades of BER from one end of the heat map's colours to the other
const FAST_MS = 1000, SLOW_MS = 4000;

const main = document.getElementById("main");
const link = document.getElementById("link");
let shown = "", timer = 0, turn = 0; // what main shows, and which page's answers still count
let choice = null; // of a profile's page: operating point, bank, rows and bitlines

function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((each) => each !== null && each !== undefined));
  return made;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// ---- numbers in words -----------------------------------------------------------------------------------------------

const rate = (errors, trials) => (errors ? (errors / trials).toExponential(1) : "0");
const exact = (value) => value.toPrecision(3);
const ns = (ps) => `${ps / 1000} ns`;
const whole = (count) => count.toLocaleString("en");

function compact(value) {
  return value >= 1e6 ? `${(value / 1e6).toPrecision(3)} M` : value >= 1e3 ? `${(value / 1e3).toPrecision(3)} k` : value.toPrecision(3);
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.ceil(seconds), two = (n) => String(n).padStart(2, "0");
  const days = Math.floor(s / 86400);
  return `${days ? `${days} d ` : ""}${Math.floor((s % 86400) / 3600)}:${two(Math.floor((s % 3600) / 60))}:${two(s % 60)}`;
}

function date(seconds) {
  return new Date(1000 * seconds).toLocaleString("sv"); // as ISO 8601 writes it
}

function named(at) {
  return `${at[0]} mV, ${ns(at[1])}, ${WRITES[at[2]]}`;
}

// ---- colours --------------------------------------------------------------------------------------------------------

function mix(share) {
  const place = Math.min(1, Math.max(0, share)) * (VIRIDIS.length - 1), k = Math.min(VIRIDIS.length - 2, Math.floor(place));
  return VIRIDIS[k].map((low, i) => Math.round(low + (place - k) * (VIRIDIS[k + 1][i] - low)));
}

function paint(cell, ber) {
  const share = (Math.log10(ber) - LEAST) / (MOST - LEAST);
  cell.style.backgroundColor = `rgb(${mix(share).join()})`;
  cell.style.color = share > 0.62 ? "#10161d" : "#f2f6fa";
}

function ramp() {
  const bar = el("span", { class: "scale" });
  bar.style.background = `linear-gradient(to right, ${VIRIDIS.map((c) => `rgb(${c.join()})`).join()})`;
  return bar;
}

// ---- pieces ---------------------------------------------------------------------------------------------------------

const pill = (state) => el("span", { class: `pill ${state}` }, state);

function readout(label, value, unit = "") {
  return el("div", { class: "readout" }, el("b", {}, value, unit ? el("small", {}, ` ${unit}`) : null), el("span", {}, label));
}

function progress(entry) {
  const done = el("i");
  done.style.width = `${(100 * entry.done) / entry.planned}%`;
  return el("div", { class: "bar", role: "progressbar", "aria-valuenow": entry.done, "aria-valuemax": entry.planned }, done);
}

function readouts(entry) {
  const last = entry.last;
  const made = el("div", { class: "readouts" }, readout("tests", `${entry.done}`, `of ${entry.planned}`));
  if (entry.state === "running") made.append(readout("left", duration(entry.seconds_left)));
  if (last && last.measured_mv !== null) {
    made.append(readout("rail, last test", last.measured_mv.toFixed(1), `± ${exact(last.uncertainty_mv ?? 0)} mV`));
  }
  if (last && last.temperature_c !== null) made.append(readout("DRAM", last.temperature_c.toFixed(1), "°C"));
  if (last && last.power_mw !== null) made.append(readout("power", last.power_mw.toFixed(0), "mW"));
  if (entry.errors_per_s !== null) made.append(readout("errors a second", compact(entry.errors_per_s)));
  made.append(readout("errors", compact(entry.errors)));
  return made;
}

function module(entry) {
  const m = entry.module;
  return `${m.manufacturer} ${m.part_number} ${m.serial_number}, ${m.dram_type}`;
}

// BER over VDD, down, and tRCD, across: a table, so that it can be read without seeing it.
function heat(entry, small, choose) {
  const places = new Map(), key = (at) => at.join();
  for (const cell of entry.grid.cells) places.set(key(cell.at), cell);
  const every = [...entry.grid.cells.map((cell) => cell.at), ...entry.grid.planned];
  const vdds = [...new Set(every.map((at) => at[0]))].sort((a, b) => b - a);
  const columns = [...new Set(every.map((at) => `${at[1]},${at[2]}`))].map((each) => each.split(","))
    .sort((a, b) => a[1].localeCompare(b[1]) || b[0] - a[0]);
  const planned = new Set(entry.grid.planned.map(key));
  const now = entry.state === "running" && entry.next ? key(entry.next.at) : "";
  const body = vdds.map((vdd) => el("tr", {}, el("th", { scope: "row" }, `${vdd} mV`), ...columns.map(([trcd, write]) => {
    const at = [vdd, Number(trcd), write], found = places.get(key(at));
    const made = el("td", { class: key(at) === now ? "now" : "" });
    if (found) {
      made.classList.add("tested");
      made.append(rate(found.errors, found.trials));
      made.title = `${named(at)}: ${whole(found.errors)} errors in ${found.trials.toPrecision(4)} reads; 95 %: ` +
        `${exact(found.low)} to ${exact(found.high)}`;
      if (found.errors) paint(made, found.errors / found.trials);
      else made.classList.add("clean");
      if (choose) {
        made.tabIndex = 0;
        made.addEventListener("click", () => choose(at));
        made.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(at); });
        if (choice && choice.at && key(choice.at) === key(at)) made.classList.add("chosen");
      }
    } else if (planned.has(key(at))) {
      made.classList.add("planned");
      made.append(key(at) === now ? "testing" : "·");
      made.title = `${named(at)}: not tested yet`;
    }
    return made;
  })));
  const head = el("tr", {}, el("th", {}), ...columns.map(([trcd, write]) =>
    el("th", { scope: "col" }, ns(Number(trcd)), el("br"), write === "nominal" ? "at nominal" : "at point")));
  return el("table", { class: `heat${small ? " small" : ""}` }, el("thead", {}, head), el("tbody", {}, ...body));
}

function legend() {
  const clean = el("i"), planned = el("i");
  clean.style.background = "var(--raised)";
  planned.style.background = "repeating-linear-gradient(135deg, transparent 0 4px, var(--line) 4px 6px)";
  const text = (each) => el("span", {}, each);
  return el("div", { class: "legend" }, text(`BER 1e${LEAST}`), ramp(), text(`1e${MOST}`), clean, text("no error"), planned, text("to be tested"));
}

// ---- the list -------------------------------------------------------------------------------------------------------

function card(entry) {
  return el("a", { class: "panel card", href: `#/profile/${entry.key}` },
    el("div", {},
      el("div", { class: "title" }, entry.board, " "), el("div", { class: "note" }, `${module(entry)}; ${entry.name}`),
      progress(entry), readouts(entry),
      entry.next ? el("div", { class: "under" }, `next: ${named(entry.next.at)}, ${entry.next.pattern}`) : null),
    el("div", {}, heat(entry, true, null)));
}

function profileRow(entry) {
  const cells = entry.state === "damaged"
    ? [el("td", { colspan: 3, class: "error" }, entry.error)]
    : [el("td", {}, module(entry)), el("td", {}, entry.board), el("td", { class: "number" }, `${entry.done} of ${entry.planned}`)];
  return el("tr", {}, el("td", {}, el("a", { href: `#/profile/${entry.key}` }, entry.name)), ...cells,
    el("td", {}, pill(entry.state)), el("td", { class: "number" }, date(entry.modified)));
}

function drawList(all) {
  document.title = "EDEN";
  document.getElementById("root").textContent = all.root;
  const running = all.profiles.filter((entry) => entry.state === "running");
  const others = all.profiles.filter((entry) => entry.state !== "running").sort((a, b) => b.modified - a.modified);
  const headings = (...texts) => el("thead", {}, el("tr", {}, ...texts.map((text) => el("th", { scope: "col", class: text === "tests" || text === "last change" ? "number" : "" }, text))));
  main.replaceChildren(
    el("h2", {}, "Scans that run"),
    running.length ? el("div", { class: "cards", id: "running" }, ...running.map(card)) : el("p", { class: "note" }, "None in this folder now."),
    el("h2", {}, "Profiles"),
    others.length
      ? el("div", { class: "panel wide" }, el("table", { class: "list", id: "profiles" },
        headings("folder", "module", "board", "tests", "state", "last change"), el("tbody", {}, ...others.map(profileRow))))
      : el("p", { class: "note" }, "None besides."),
    el("h2", {}, "Reports"),
    all.reports.length
      ? el("div", { class: "panel wide" }, el("table", { class: "list", id: "reports" }, el("tbody", {}, ...all.reports.map((report) =>
        el("tr", {}, el("td", {}, el("a", { href: `/reports/${report.key}`, target: "_blank", rel: "noopener" }, report.name)),
          el("td", { class: "number" }, date(report.modified)))))))
      : el("p", { class: "note" }, "None; eden run writes one."),
    all.whole ? "" : el("p", { class: "error" }, "This folder holds more folders than are looked into: some profiles may be missing here."));
  return running.length ? FAST_MS : SLOW_MS;
}

// ---- a profile ------------------------------------------------------------------------------------------------------

function drawProfile(entry) {
  document.title = `${entry.name} – EDEN`;
  const top = [el("a", { href: "#/" }, "← all"), el("h1", {}, entry.name, " "), pill(entry.state)];
  if (entry.state === "damaged") {
    main.replaceChildren(...top, el("p", { class: "error", id: "damage" }, entry.error));
    return SLOW_MS;
  }
  const g = entry.geometry, m = entry.module;
  choice = choice && choice.key === entry.key ? choice : { key: entry.key, at: null, bank: null, rows: null, bitlines: null };
  if (!choice.at || entry.state === "running" && !choice.byHand) choice.at = worst(entry);
  if (choice.bank === null && entry.banks.length) choice.bank = entry.banks[0];
  const choose = (at) => { Object.assign(choice, { at, byHand: true }); drawProfile(entry); };
  main.replaceChildren(...top,
    el("p", { class: "note" }, `${module(entry)}; board ${entry.board}; ${g.banks} banks × ${whole(g.rows)} rows × ${whole(g.columns)} columns × ` +
      `${g.data_width} DQ; nominal ${m.nominal_vdd_mv} mV, ${ns(m.nominal_trcd_ps)}; tCK ${entry.tck_ps} ps; ${entry.licence}; begun ${entry.created.slice(0, 19).replace("T", " ")}`),
    el("div", { class: "panel" }, progress(entry), readouts(entry)),
    el("div", { class: "split" },
      el("section", {}, el("h2", {}, "Bit error rate, all patterns together"),
        el("div", { class: "panel wide", id: "heat" }, heat(entry, false, choose), legend())),
      el("section", {}, el("h2", {}, "Where the errors lie"), keptBankPanel(entry))),
    el("h2", {}, "Rail and temperature, test by test"), el("div", { class: "panel" }, trend(entry)),
    el("h2", {}, "Last tests"), el("div", { class: "panel wide" }, tests(entry)),
    el("h2", {}, "Plots"), pictures(entry));
  if (bankPanel.fresh) drawBank(entry);
  bankPanel.fresh = false;
  return entry.state === "running" ? FAST_MS : SLOW_MS;
}

// The operating point with most errors, or the last one tested while there is none.
function worst(entry) {
  const most = entry.grid.cells.reduce((best, cell) => (cell.errors > (best ? best.errors : 0) ? cell : best), null);
  return most ? most.at : entry.last ? entry.last.at : null;
}

// A bank that has not changed stays as it is, so that a running scan does not disturb whoever looks at it.
function keptBankPanel(entry) {
  const cell = entry.grid.cells.find((each) => choice.at && each.at.join() === choice.at.join());
  const what = JSON.stringify([choice, cell]);
  if (bankPanel.what !== what) Object.assign(bankPanel, { what, panel: bankPanel(entry), fresh: true });
  return bankPanel.panel;
}

function bankPanel(entry) {
  if (!choice.at || !entry.banks.length) return el("p", { class: "note" }, "Nothing has been tested yet.");
  const select = (changes) => { Object.assign(choice, changes); drawProfile(entry); };
  const buttons = entry.banks.map((bank) => el("button", {
    "aria-pressed": String(bank === choice.bank), onclick: () => select({ bank, rows: null, bitlines: null }),
  }, `bank ${bank}`));
  if (choice.rows) buttons.push(el("button", { onclick: () => select({ rows: null, bitlines: null }) }, "whole bank"));
  return el("div", { class: "panel" }, el("div", { class: "note" }, named(choice.at)), el("div", { class: "banks" }, ...buttons),
    el("canvas", { id: "bank", width: 1, height: 1, "aria-label": "failed reads of a bank, rows down, bitlines across" }),
    el("div", { class: "under", id: "under" }, "reading the bank …"), el("div", { class: "legend", id: "bank-legend" }));
}

async function drawBank(entry) {
  const canvas = document.getElementById("bank"), under = document.getElementById("under");
  if (!canvas) return;
  const [vdd_mv, trcd_ps, write] = choice.at;
  const query = new URLSearchParams({ vdd_mv, trcd_ps, write, bank: choice.bank });
  if (choice.rows) { query.set("rows", choice.rows.join(":")); query.set("bitlines", choice.bitlines.join(":")); }
  let found;
  try {
    found = await ask(`/api/profiles/${entry.key}/bank?${query}`);
  } catch (error) {
    under.textContent = error.message;
    return;
  }
  if (!canvas.isConnected) return;
  const { down, across, errors, trials } = found, rates = errors.map((count, k) => (trials[k] ? count / trials[k] : -1));
  const failing = rates.filter((value) => value > 0);
  const low = Math.log10(failing.reduce((a, b) => Math.min(a, b), 1)), high = Math.log10(failing.reduce((a, b) => Math.max(a, b), 0));
  Object.assign(canvas, { width: across, height: down });
  const pen = canvas.getContext("2d"), image = pen.createImageData(across, down);
  rates.forEach((value, k) => {
    if (value > 0) image.data.set([...mix(high > low ? 0.12 + 0.88 * (Math.log10(value) - low) / (high - low) : 1), 255], 4 * k);
    else if (value === 0) image.data.set([128, 144, 160, 48], 4 * k);
  });
  pen.putImageData(image, 0, 0);
  canvas.dataset.errors = errors.reduce((a, b) => a + b, 0);
  const summary = `rows ${found.rows[0]}–${found.rows[1] - 1} down, bitlines ${found.bitlines[0]}–${found.bitlines[1] - 1} across; ` +
    `a dot is ${found.block_rows} × ${found.block_bitlines} cells; drag to look closer`;
  under.textContent = summary;
  document.getElementById("bank-legend").replaceChildren(...(failing.length
    ? [`BER ${(10 ** low).toExponential(1)}`, ramp(), (10 ** high).toExponential(1)] : ["no error here"]));
  const at = (event) => {
    const box = canvas.getBoundingClientRect(), clip = (x, n) => Math.min(n - 1, Math.max(0, Math.floor(x * n)));
    return [clip((event.clientY - box.top) / box.height, down), clip((event.clientX - box.left) / box.width, across)];
  };
  const rowsOf = (a, b) => [found.rows[0] + a * found.block_rows, Math.min(found.rows[1], found.rows[0] + (b + 1) * found.block_rows)];
  const linesOf = (a, b) => [found.bitlines[0] + a * found.block_bitlines, Math.min(found.bitlines[1], found.bitlines[0] + (b + 1) * found.block_bitlines)];
  const range = ([first, end]) => (end - first > 1 ? `${first}–${end - 1}` : `${first}`);
  let begun = null;
  canvas.onpointermove = (event) => {
    const [y, x] = at(event), k = y * across + x, lines = linesOf(x, x), width = entry.geometry.data_width;
    const where = lines[1] - lines[0] > 1 ? "" : ` (column ${Math.floor(lines[0] / width)}, DQ ${lines[0] % width})`;
    under.textContent = `row ${range(rowsOf(y, y))}, bitline ${range(lines)}${where}: ` +
      (trials[k] ? `${whole(errors[k])} errors in ${whole(trials[k])} reads, BER ${rate(errors[k], trials[k])}` : "cells not known singly");
  };
  canvas.onpointerleave = () => { under.textContent = summary; };
  canvas.onpointerdown = (event) => { begun = at(event); canvas.setPointerCapture(event.pointerId); };
  canvas.onpointerup = (event) => {
    if (!begun) return;
    const [y, x] = at(event), ys = [begun[0], y].sort((a, b) => a - b), xs = [begun[1], x].sort((a, b) => a - b);
    begun = null;
    if (ys[0] === ys[1] && xs[0] === xs[1]) return;
    Object.assign(choice, { rows: rowsOf(...ys), bitlines: linesOf(...xs), byHand: true });
    drawProfile(entry);
  };
}

function trend(entry) {
  const points = entry.trend.filter((each) => each[2] !== null);
  if (points.length < 2) return el("p", { class: "note" }, "Two tests are needed.");
  const lanes = [["measured − set", "mV", "var(--live)", points.map((each) => each[2] - each[1])]];
  if (points.every((each) => each[3] !== null)) lanes.push(["DRAM temperature", "°C", "var(--warn)", points.map((each) => each[3])]);
  const drawn = svg("svg", { class: "trend", viewBox: `0 0 1000 ${75 * lanes.length}`, preserveAspectRatio: "none" });
  const labels = lanes.map(([name, unit, colour, values], lane) => {
    const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b)), span = high - low || 1;
    const line = values.map((value, k) => `${(1000 * k) / (values.length - 1)},${75 * lane + 65 - (55 * (high > low ? value - low : 0.5)) / span}`);
    const drawnLine = svg("polyline", { points: line.join(" ") });
    drawnLine.style.stroke = colour;
    drawn.append(drawnLine);
    const label = el("span", {}, `${name}: ${low.toFixed(2)} to ${high.toFixed(2)} ${unit}`);
    label.style.color = colour;
    return label;
  });
  return el("div", {}, drawn, el("div", { class: "legend" }, ...labels, `${points.length} tests, in order`));
}

function tests(entry) {
  const row = (test) => el("tr", {}, el("td", { class: "number" }, String(test.index)), el("td", {}, named(test.at)), el("td", {}, test.pattern),
    el("td", { class: "number" }, rate(test.errors, test.trials)), el("td", { class: "number" }, whole(test.errors)),
    el("td", { class: "number" }, test.measured_mv === null ? "–" : `${test.measured_mv.toFixed(1)} mV`),
    el("td", { class: "number" }, test.temperature_c === null ? "–" : `${test.temperature_c.toFixed(1)} °C`),
    el("td", { class: "number" }, test.seconds === null ? "–" : `${test.seconds.toFixed(1)} s`));
  const heads = ["test", "at", "pattern", "BER", "errors", "rail", "DRAM", "took"];
  return el("table", { class: "list", id: "tests" }, el("thead", {}, el("tr", {}, ...heads.map((text) =>
    el("th", { scope: "col", class: text === "at" || text === "pattern" ? "" : "number" }, text)))),
  el("tbody", {}, ...entry.tests.map(row)));
}

function pictures(entry) {
  if (!choice.at || entry.state === "running") return el("p", { class: "note" }, "Drawn when the scan is over.");
  const [vdd_mv, trcd_ps, write] = choice.at, query = new URLSearchParams({ vdd_mv, trcd_ps, write, v: entry.version });
  return el("div", { class: "pictures" },
    el("img", { src: `/profiles/${entry.key}/ber.png?v=${entry.version}`, loading: "lazy", alt: "BER over VDD, a line for each tRCD" }),
    el("img", { src: `/profiles/${entry.key}/where.png?${query}`, loading: "lazy", alt: "BER by bank and row, by column, by data line" }));
}

// ---- keeping up -----------------------------------------------------------------------------------------------------

async function ask(address) {
  const answer = await fetch(address);
  const told = await answer.json().catch(() => ({ error: `the server answers ${answer.status}` }));
  if (!answer.ok) throw Object.assign(new Error(told.error), { answered: true });
  return told;
}

function tell(state, text) {
  link.className = `pill ${state}`;
  link.textContent = text;
  main.classList.toggle("gone", state === "offline");
}

async function tick() {
  clearTimeout(timer);
  const mine = ++turn, profile = location.hash.match(/^#\/profile\/([0-9a-f]{16})$/);
  let wait = SLOW_MS;
  try {
    const told = await ask(profile ? `/api/profiles/${profile[1]}` : "/api/overview"), text = location.hash + JSON.stringify(told);
    if (mine !== turn) return;
    tell("online", "live");
    if (text !== shown) wait = profile ? drawProfile(told) : drawList(told);
    else wait = main.querySelector(".running") || main.querySelector("#running") ? FAST_MS : SLOW_MS;
    shown = text;
  } catch (error) {
    if (mine !== turn) return;
    if (error.answered) {
      main.replaceChildren(el("a", { href: "#/" }, "← all"), el("p", { class: "error" }, error.message));
      tell("online", "live");
    } else {
      tell("offline", "no answer; trying again");
    }
    shown = "";
  }
  timer = setTimeout(tick, document.hidden ? 5 * SLOW_MS : wait);
}

addEventListener("hashchange", () => { shown = ""; choice = null; bankPanel.what = ""; scrollTo(0, 0); tick(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) tick(); });
tick();
