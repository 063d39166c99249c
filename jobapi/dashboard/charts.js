// Charts in SVG, each with its numbers as a table.

import { h, number, rows, cell, s } from "./dom.js";

const HEIGHT = 200;
const LEFT = 52;
const BOTTOM = 22;
const TOP = 10;
const RIGHT = 10;

// The top of an axis that fits `most`, and the step between its grid lines.
export function ceiling(most) {
  if (!(most > 0)) return { top: 1, step: 1 };
  const size = 10 ** Math.floor(Math.log10(most / 4));
  const step = [1, 2, 5, 10].map((n) => n * size).find((step) => most / step <= 5);
  return { top: Math.ceil(most / step - 1e-9) * step, step };
}

// `points` are the times at which the intervals of `span` seconds begin; `series` is a
// list of {name, label, values} with a value for each. `kind` is "area" or "bars",
// both stacked, or "line". `unit` formats a value; `whole` allows only integers as grid lines.
export function chart({ title, kind, points, span, series, unit = number, whole = true }) {
  const WIDTH = Math.max(280, Math.min(560, document.getElementById("main").clientWidth - 64));
  const n = points.length;
  const stacked = kind !== "line";
  const sum = (i) => series.reduce((total, each) => total + (each.values[i] || 0), 0);
  const most = Math.max(0, ...points.map((_, i) => (stacked ? sum(i) : Math.max(0, ...series.map((each) => each.values[i] || 0)))));
  let { top, step } = ceiling(most);
  if (whole && step < 1) [top, step] = [Math.max(1, Math.ceil(top)), 1];
  const x = (i) => LEFT + ((WIDTH - LEFT - RIGHT) * i) / n;
  const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - TOP) * value) / top;
  const svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. The numbers are in the table below.` });

  for (let value = 0; value <= top + step / 2; value += step) {
    svg.append(s("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
    svg.append(s("text", { class: "tick-y", x: LEFT - 6, y: y(value) + 4 }, unit(value)));
  }
  const labels = WIDTH > 500 ? 6 : 3;
  for (let k = 0; k < labels; k++) {
    const i = Math.round((k * n) / labels);
    svg.append(s("text", { class: k ? "tick-x" : "tick-x begin", x: x(i), y: HEIGHT - 5 }, when(points[i], span, n)));
  }

  const below = points.map(() => 0);
  for (const each of series) {
    if (kind === "line") svg.append(...lines(each, x, y));
    else if (kind === "bars") {
      const gap = n > 100 ? 0.1 : 0.2;
      const width = x(1) - x(0);
      each.values.forEach((value, i) => {
        if (!value) return;
        svg.append(s("rect", { class: each.name, x: x(i) + (width * gap) / 2, width: width * (1 - gap), y: y(below[i] + value), height: Math.max(0.5, y(below[i]) - y(below[i] + value)) }));
        below[i] += value;
      });
    } else {
      // A value is the state at the end of an interval, drawn over the whole interval.
      const up = [];
      const down = [];
      each.values.forEach((value, i) => {
        down.unshift(`${x(i)},${y(below[i])}`);
        down.unshift(`${x(i + 1)},${y(below[i])}`);
        below[i] += value;
        up.push(`${x(i)},${y(below[i])}`, `${x(i + 1)},${y(below[i])}`);
      });
      svg.append(s("polygon", { class: each.name, points: [...up, ...down].join(" ") }));
    }
  }

  // The values under the pointer.
  const read = s("text", { class: "read", x: WIDTH - RIGHT, y: TOP + 2 });
  const mark = s("line", { class: "mark", y1: TOP, y2: HEIGHT - BOTTOM, x1: -9, x2: -9 });
  svg.append(mark, read);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const i = Math.floor((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (x(1) - x(0)));
    if (i < 0 || i >= n) return;
    const middle = (x(i) + x(i + 1)) / 2;
    mark.setAttribute("x1", middle);
    mark.setAttribute("x2", middle);
    const left = i > n / 2;
    read.setAttribute("x", left ? LEFT + 4 : WIDTH - RIGHT);
    read.setAttribute("class", left ? "read begin" : "read");
    read.textContent = `${when(points[i], span, n)}: ${series.map((each) => `${each.values[i] === null ? "–" : unit(each.values[i])} ${each.label}`).join(", ")}`;
  });
  svg.addEventListener("pointerleave", () => {
    read.textContent = "";
    mark.setAttribute("x1", -9);
    mark.setAttribute("x2", -9);
  });

  const busy = points.map((_, i) => i).filter((i) => series.some((each) => each.values[i]));
  const table = () =>
    rows(
      ["From", ...series.map((each) => each.label)],
      busy.reverse().map((i) => h("tr", { role: "row" }, cell("From", when(points[i], span, n)), series.map((each) => cell(each.label, each.values[i] === null ? "–" : unit(each.values[i]))))),
    );
  return { svg, table, empty: !busy.length };
}

function lines({ name, values }, x, y) {
  const parts = [];
  let part = [];
  values.forEach((value, i) => {
    if (value === null) {
      if (part.length) parts.push(part);
      part = [];
    } else part.push([(x(i) + x(i + 1)) / 2, y(value)]);
  });
  if (part.length) parts.push(part);
  return parts.flatMap((part) => [
    part.length > 1 && s("polyline", { class: `line ${name}`, points: part.map((point) => point.join()).join(" ") }),
    // A line of one or two points is hard to see.
    ...(part.length < 3 ? part.map(([cx, cy]) => s("circle", { class: name, cx, cy, r: 2.5 })) : []),
  ]).filter(Boolean);
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const BOTH = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

function when(iso, span, n) {
  if (!iso) return "";
  const total = span * n;
  return (total <= 3600 ? CLOCK : total <= 2 * 86400 ? CLOCK : span >= 86400 ? DAY : BOTH).format(new Date(iso));
}

// A stacked bar for each item, between its label and its total.
export function bars(items, series, most) {
  return h(
    "ul",
    { class: "types" },
    items.map(({ label, values, total, note }) => {
      const svg = s("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
      let x = 0;
      for (const name of series) {
        const width = (100 * (values[name] || 0)) / most;
        if (width) svg.append(s("rect", { class: name, x, width: Math.max(width, 0.3), y: 0, height: 10 }));
        x += width;
      }
      return h("li", {}, label, svg, h("span", { class: "total" }, number(total)), note);
    }),
  );
}
