"use strict";
// What the page does beyond being read: sort tables, tell what a figure's marks stand for, hide and
// show curves, and compare two orders question by question. Text from the data is only ever set as
// text, never as markup.

/**
 * Make an element; a value of false or null leaves its attribute out.
 * @param {string} tag
 * @param {Object<string, string | boolean | null>} attributes "text" sets the text
 * @param {...Node} children
 * @returns {HTMLElement}
 */
function make(tag, { text = "", ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

// ---- tables

const collator = new Intl.Collator(undefined, { numeric: true });

/** Let each head of a table sort its rows: up, then down; rows without a value stay last. */
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button", text: head.textContent });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [row.cells[column]?.dataset.key ?? "", row]);
      const given = rows.filter(([key]) => key !== "");
      const numbers = given.every(([key]) => !Number.isNaN(Number(key)));
      const compare = numbers ? (a, b) => a - b : collator.compare;
      given.sort(([a], [b]) => (down ? compare(b, a) : compare(a, b)));
      const missing = rows.filter(([key]) => key === "");
      body.append(...[...given, ...missing].map(([, row]) => row));
    });
  });
}

/** Make a box that scrolls a stop of the Tab key only where there is something to scroll. */
function tabStops() {
  for (const box of document.querySelectorAll(".scroll")) {
    if (box.scrollWidth > box.clientWidth) box.setAttribute("tabindex", "0");
    else box.removeAttribute("tabindex");
  }
}

// ---- figures

const REACH = 28; // pixels from a mark within which the pointer means it

/** Tell a figure's marks when pointed at or walked to by arrow keys; its key hides and shows. */
function chart(figure) {
  if (!figure.querySelector("g[data-points]")) return;
  const tip = make("div", { class: "tip", "aria-hidden": "true", hidden: true });
  figure.append(tip);
  const plots = [...figure.querySelectorAll(".wide svg, .narrow svg")];
  const updates = plots.map((svg) => plot(svg, figure, tip));
  for (const item of figure.querySelectorAll(".key li")) {
    const groups = plots.flatMap((svg) => [
      ...svg.querySelectorAll(`g[data-series="${item.dataset.series}"]`),
    ]);
    const button = make("button", { type: "button", "aria-pressed": "true" }, ...item.childNodes);
    item.replaceChildren(button);
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      for (const group of groups) group.classList.toggle("off", !shown);
      for (const update of updates) update();
    });
    const stress = (on) => {
      figure.classList.toggle("stressed", on);
      for (const group of groups) group.classList.toggle("stress", on);
    };
    for (const event of ["pointerenter", "focus"]) {
      button.addEventListener(event, () => stress(button.getAttribute("aria-pressed") === "true"));
    }
    for (const event of ["pointerleave", "blur"]) {
      button.addEventListener(event, () => stress(false));
    }
  }
}

/** Wire one drawing of a figure; returns what to call when its series were hidden or shown. */
function plot(svg, figure, tip) {
  const points = [...svg.querySelectorAll("g[data-points]")].flatMap((group) => {
    const said = JSON.parse(group.dataset.points);
    return [...group.querySelectorAll("use")].map((use, index) => {
      use.setAttribute("role", "img");
      use.setAttribute("aria-label", `${group.dataset.name}: ${said[index].replaceAll("\n", ", ")}`);
      return { use, group, index, x: +use.getAttribute("x"), y: +use.getAttribute("y"), said };
    });
  });
  const visible = () => points.filter((point) => !point.group.classList.contains("off"));
  const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  ring.setAttribute("r", "8");
  ring.setAttribute("class", "ring");
  svg.setAttribute("role", "group");

  const stop = (chosen) => {
    for (const point of points) point.use.setAttribute("tabindex", point === chosen ? "0" : "-1");
  };
  const hide = () => {
    ring.remove();
    tip.hidden = true;
  };
  const show = (point) => {
    ring.setAttribute("cx", String(point.x));
    ring.setAttribute("cy", String(point.y));
    svg.append(ring);
    const [first, ...rest] = point.said[point.index].split("\n");
    tip.replaceChildren(
      make("b", { text: point.group.dataset.name }),
      make("strong", { text: first }),
      ...rest.map((line) => make("span", { text: line })),
    );
    tip.hidden = false;
    const at = point.use.getBoundingClientRect();
    const frame = figure.getBoundingClientRect();
    const left = at.left + at.width / 2 - frame.left - tip.offsetWidth / 2;
    const room = frame.width - tip.offsetWidth - 6;
    const above = at.top - frame.top - tip.offsetHeight - 10;
    tip.style.left = `${Math.max(6, Math.min(left, room))}px`;
    tip.style.top = `${above > 0 ? above : at.bottom - frame.top + 10}px`;
  };
  const focused = () => points.find((point) => point.use === document.activeElement);

  for (const point of points) {
    point.use.addEventListener("focus", () => {
      stop(point);
      show(point);
    });
    point.use.addEventListener("blur", hide);
  }
  const seek = (event) => {
    let nearest = null;
    let least = REACH;
    for (const point of visible()) {
      const box = point.use.getBoundingClientRect();
      const away = Math.hypot(
        box.left + box.width / 2 - event.clientX,
        box.top + box.height / 2 - event.clientY,
      );
      if (away < least) [nearest, least] = [point, away];
    }
    if (nearest) show(nearest);
    else if (!focused()) hide();
  };
  svg.addEventListener("pointermove", seek);
  svg.addEventListener("pointerdown", seek);
  svg.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch") focused() ? show(focused()) : hide();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!svg.contains(event.target)) hide();
  });
  svg.addEventListener("keydown", (event) => {
    const from = focused();
    if (!from) return;
    if (event.key === "Escape") return hide();
    // Left and right walk along a series, up and down from series to series.
    const along = visible().filter((point) => point.group === from.group);
    const across = visible()
      .filter((point) => point.index === from.index)
      .sort((a, b) => a.y - b.y || a.x - b.x);
    const to = {
      ArrowRight: along[along.indexOf(from) + 1],
      ArrowLeft: along[along.indexOf(from) - 1],
      ArrowDown: across[across.indexOf(from) + 1],
      ArrowUp: across[across.indexOf(from) - 1],
      Home: along[0],
      End: along.at(-1),
    };
    if (!(event.key in to)) return;
    event.preventDefault();
    to[event.key]?.use.focus();
  });
  const update = () => {
    hide();
    stop(visible()[0]);
  };
  update();
  return update;
}

// ---- question by question

const AT_ONCE = 10; // questions on a page of the list
const MOST_DOTS = 10; // runs that are shown one by one

/** Read one run: the score of each of n questions, from bits or from float32 values. */
function scores(packed, n, bits) {
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  if (!bits) return new Float32Array(bytes.buffer);
  return Uint8Array.from({ length: n }, (_, q) => (bytes[q >> 3] >> (7 - (q & 7))) & 1);
}

/** Read an arm's runs when they are first asked for; null is a missing run. */
function runsOf(comparison, arm, n) {
  arm.read ??= arm.runs.map((run) => (run === null ? null : scores(run, n, comparison.bits)));
  return arm.read;
}

/**
 * Compare two arms seed by seed.
 * @returns {{pairs: number, counts: number[], gap: Float64Array}} counts of answers that both, only
 *   the first, only the second, and neither got right; gap is the first's mean score minus the
 *   second's for each question.
 */
function contrast(first, second, n) {
  const counts = [0, 0, 0, 0];
  const gap = new Float64Array(n);
  let pairs = 0;
  for (let seed = 0; seed < Math.max(first.length, second.length); seed++) {
    const a = first[first.length === 1 ? 0 : seed]; // the untuned model has one run for all seeds
    const b = second[second.length === 1 ? 0 : seed];
    if (!a || !b) continue;
    pairs++;
    for (let q = 0; q < n; q++) {
      counts[a[q] ? (b[q] ? 0 : 1) : b[q] ? 2 : 3]++;
      gap[q] += a[q] - b[q];
    }
  }
  return { pairs, counts, gap: gap.map((sum) => sum / (pairs || 1)) };
}

const whole = (n) => n.toLocaleString("en");
const percent = (part, all) => `${((100 * part) / (all || 1)).toFixed(1)}%`;

/** Return a gap in words with its sign: points for an accuracy. */
function gapWords(gap, accuracy) {
  const text = accuracy ? (100 * Math.abs(gap)).toFixed(1) : Math.abs(gap).toPrecision(3);
  const unit = accuracy ? (text === "1.0" ? " point" : " points") : "";
  return (Number(text) === 0 ? "" : gap > 0 ? "+" : "−") + text + unit;
}

function drill(data) {
  const part = (name) => document.getElementById(`drill-${name}`);
  const fill = (select, names, chosen) => {
    select.replaceChildren(...names.map((text, i) => make("option", { value: String(i), text })));
    select.value = String(chosen);
  };
  let comparison, set, n, first, second, found, rows, from, hay;

  function chooseComparison() {
    comparison = data.comparisons[part("place").value];
    set = data.sets[comparison.set];
    n = set.ids.length;
    hay = null;
    const names = comparison.arms.map((arm) => arm.name);
    fill(part("first"), names, comparison.first);
    fill(part("second"), names, comparison.second);
    chooseArms();
  }

  function chooseArms() {
    first = comparison.arms[part("first").value];
    second = comparison.arms[part("second").value];
    found = contrast(runsOf(comparison, first, n), runsOf(comparison, second, n), n);
    const better = found.gap.reduce((sum, gap) => sum + (gap > 0), 0);
    const worse = found.gap.reduce((sum, gap) => sum + (gap < 0), 0);
    const [more, same] = comparison.accuracy ? ["right more often", "as often"] : ["higher", "equal"];
    const shown = part("show").value || 0;
    const sorted = part("sort").value || 0;
    fill(part("show"), [
      `all questions (${whole(n)})`,
      `${first.name} ${more} (${whole(better)})`,
      `${second.name} ${more} (${whole(worse)})`,
      `${same} (${whole(n - better - worse)})`,
    ], shown);
    fill(part("sort"), [
      `${first.name} ahead first`,
      `${second.name} ahead first`,
      "hardest first",
      "order of the file",
    ], sorted);
    part("tally").replaceChildren(...tally());
    list();
  }

  function tally() {
    const all = found.pairs * n;
    const mean = found.gap.reduce((sum, gap) => sum + gap, 0) / n;
    const seeds = found.pairs === 1 ? "1 seed" : `${found.pairs} seeds`;
    const said = found.pairs
      ? `${first.name} minus ${second.name}: ${gapWords(mean, comparison.accuracy)}, over ` +
        `${whole(n)} questions under ${seeds}.`
      : "These two share no seed.";
    const summary = make("p", { id: "drill-summary", text: said });
    if (!comparison.bits || !found.pairs) return [summary];
    const names = ["both right", `only ${first.name}`, `only ${second.name}`, "neither"];
    const bar = make("div", { class: "bar", "aria-hidden": "true" });
    const legend = make("dl", { class: "tally" });
    found.counts.forEach((count, i) => {
      const piece = make("span", { class: `t${i}` });
      piece.style.flexGrow = String(count);
      if (count) bar.append(piece);
      legend.append(
        make("div", { class: `t${i}` },
          make("dt", { text: names[i] }),
          make("dd", { text: percent(count, all) }, make("small", { text: whole(count) }))),
      );
    });
    return [bar, legend, summary];
  }

  function list() {
    const sign = [null, 1, -1, 0][part("show").value];
    rows = [...found.gap.keys()].filter((q) => sign === null || Math.sign(found.gap[q]) === sign);
    const words = part("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length) {
      hay ??= set.ids.map((id, q) =>
        [id, set.questions?.[q], ...(set.options?.[q] ?? []), set.categories?.[q]]
          .filter(Boolean).join("\n").toLowerCase());
      rows = rows.filter((q) => words.every((word) => hay[q].includes(word)));
    }
    const keys = [
      () => found.gap.map((gap) => -gap),
      () => found.gap,
      successes,
      () => new Float64Array(n),
    ][part("sort").value]();
    rows.sort((a, b) => keys[a] - keys[b] || a - b);
    turn(0);
  }

  /** Return the sum of each question's scores over all runs of the tuned model. */
  function successes() {
    const tuned = comparison.arms.filter((arm) => arm.name !== data.untuned);
    const runs = tuned.flatMap((arm) => runsOf(comparison, arm, n)).filter(Boolean);
    return Float64Array.from({ length: n }, (_, q) => runs.reduce((sum, run) => sum + run[q], 0));
  }

  function turn(to) {
    from = to;
    const end = Math.min(from + AT_ONCE, rows.length);
    part("list").replaceChildren(...rows.slice(from, end).map(item));
    part("list").start = from + 1;
    part("status").textContent = rows.length
      ? `Questions ${whole(from + 1)} to ${whole(end)} of ${whole(rows.length)}`
      : "No question fits.";
    part("back").disabled = from === 0;
    part("next").disabled = end >= rows.length;
  }

  function item(q) {
    const gap = found.gap[q];
    const side = gap > 0 ? "ahead" : gap < 0 ? "behind" : "level";
    const head = make("p", { class: "meta" },
      make("span", { text: [set.categories?.[q], set.ids[q]].filter(Boolean).join(" · ") }),
      make("span", { class: `gap ${side}`, text: lead(gap) }));
    const entry = make("li", {}, head);
    if (set.questions) entry.append(make("p", { class: "text", text: set.questions[q] }));
    if (set.options) {
      const options = set.options[q].map((text, i) =>
        i === set.answers?.[q]
          ? make("li", { class: "right", text }, make("span", { class: "sr", text: " (right answer)" }))
          : make("li", { text }));
      entry.append(make("ol", { class: "options" }, ...options));
    }
    const others = comparison.arms.filter((arm) => arm !== first && arm !== second);
    const pair = first === second ? [first] : [first, second];
    entry.append(make("dl", { class: "shares" }, ...[...pair, ...others].map((arm) =>
      make("div", { class: arm === first ? "one" : arm === second ? "two" : "" },
        make("dt", { text: arm.name }), share(arm, q)))));
    return entry;
  }

  /** Return by how many seeds the first is ahead at a question, or by how much. */
  function lead(gap) {
    if (!comparison.bits) return gapWords(gap, comparison.accuracy);
    const seeds = Math.round(gap * found.pairs);
    return `${seeds > 0 ? "+" : seeds < 0 ? "−" : ""}${Math.abs(seeds)} of ${found.pairs} seeds`;
  }

  function share(arm, q) {
    const runs = runsOf(comparison, arm, n);
    const there = runs.filter(Boolean);
    const sum = there.reduce((s, run) => s + run[q], 0);
    if (!comparison.bits) {
      const mean = sum / there.length;
      return make("dd", { text: comparison.accuracy ? percent(mean, 1) : mean.toPrecision(4) });
    }
    const said = make("dd", { text: `${sum} of ${there.length}` });
    if (runs.length <= MOST_DOTS) {
      const dots = runs.map((run) => (run ? (run[q] ? "●" : "○") : "·")).join("");
      said.append(make("span", { class: "dots", "aria-hidden": "true", text: dots }));
    }
    return said;
  }

  fill(part("place"), data.comparisons.map((c) => c.place || "all"), 0);
  part("place").parentElement.hidden = data.comparisons.length < 2;
  part("place").addEventListener("change", chooseComparison);
  part("first").addEventListener("change", chooseArms);
  part("second").addEventListener("change", chooseArms);
  part("show").addEventListener("change", list);
  part("sort").addEventListener("change", list);
  part("search").addEventListener("input", list);
  for (const [name, step] of [["back", -AT_ONCE], ["next", AT_ONCE]]) {
    part(name).addEventListener("click", () => {
      turn(from + step);
      part("status").scrollIntoView({ block: "nearest" });
    });
  }
  part("without").hidden = true;
  document.getElementById("drill").hidden = false;
  chooseComparison();
}

// ---- all of it

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("figure").forEach(chart);
tabStops();
addEventListener("resize", tabStops);

const drillData = document.getElementById("drill-data");
if (drillData) drill(JSON.parse(drillData.textContent));

// On paper everything that can be opened is open.
const opened = new Set();
matchMedia("print").addEventListener("change", ({ matches }) => {
  for (const box of document.querySelectorAll("details")) {
    if (matches && !box.open) opened.add(box);
    if (matches) box.open = true;
    else if (opened.has(box)) box.open = false;
  }
  if (!matches) opened.clear();
});
