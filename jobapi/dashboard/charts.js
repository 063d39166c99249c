// Charts in SVG. Each says its numbers in a table, too.

import { axisTime, duration, number } from "./format.js";
import { cell, empty, table } from "./parts.js";
import { h } from "./render.js";
import { update } from "./state.js";

const HEIGHT = 200;
const BOTTOM = 22;
const TOP = 10;
const RIGHT = 10;
const LETTER = 6.2; // the usual width of a letter of the labels, in the units of the drawing

// Steps of a time axis: whole seconds, minutes, hours and days.
const TIMES = [
  1,
  2,
  5,
  10,
  15,
  30,
  60,
  120,
  300,
  600,
  900,
  1800,
  3600,
  7200,
  14400,
  21600,
  43200,
  86400,
  172800,
  432000,
  864000,
];

/**
 * The top of an axis that fits `most`, and the step between its grid lines, of which there are at
 * most five.
 * @param {number} most
 * @param {"number"|"seconds"} unit
 */
export function ceiling(most, unit = "number") {
  if (!(most > 0)) return { top: 1, step: 1 };
  let step;
  if (unit === "seconds" && most > 1) step = TIMES.find((each) => most / each <= 5);
  if (!step) {
    const size = 10 ** Math.floor(Math.log10(most / 4));
    step = [1, 2, 5, 10].map((n) => n * size).find((each) => most / each <= 5) || 10 * size;
    if (unit === "number" && step < 1) step = 1;
  }
  return { top: Math.max(step, Math.ceil(most / step - 1e-9) * step), step };
}

/**
 * A chart's state: what is under the pointer and whether its numbers are open.
 * @returns {{at: number|null, open: boolean, hidden: Set<string>}}
 */
export const chartState = () => ({ at: null, open: false, hidden: new Set() });

/**
 * @typedef {object} Series
 * @property {string} name its color
 * @property {string} label
 * @property {(number|null)[]} values one for each point
 */

/**
 * A chart with its title, legend and table.
 * @param {ReturnType<typeof chartState>} state
 * @param {object} options
 * @param {string} options.name
 * @param {string} options.title
 * @param {string} options.note
 * @param {"area"|"bars"|"line"} options.kind the first two are stacked
 * @param {string[]} options.points the times at which the intervals begin
 * @param {number} options.span the length of an interval in seconds
 * @param {Series[]} options.series
 * @param {"number"|"seconds"} [options.unit]
 * @param {boolean} [options.choice] whether the legend hides and shows series
 */
export function chart(state, { name, title, note, kind, points, span, series, unit = "number", choice = false }) {
  const shown = series.filter((each) => !state.hidden.has(each.name));
  const text = (
    value,
  ) => (value === null || value === undefined ? "–" : unit === "seconds" ? duration(value) : number(value));
  const key = (each) => [h("span", { class: `key ${each.name}` }), each.label];
  const toggle = (each) => {
    state.hidden[state.hidden.has(each.name) ? "delete" : "add"](each.name);
    update();
  };
  const blank = !series.some((each) => each.values.some(Boolean));
  return h(
    "figure",
    { key: name },
    h("figcaption", {}, h("h2", {}, title), h("span", { class: "hint" }, note)),
    h(
      "div",
      { class: "legend" },
      series.map((each) => (choice
        ? h("button", {
          key: each.name,
          type: "button",
          class: "small",
          "aria-pressed": String(!state.hidden.has(each.name)),
          onclick: () => toggle(each),
        }, key(each))
        : h("span", { key: each.name }, key(each)))
      ),
    ),
    blank
      ? empty("Nothing in this period.")
      : drawing(state, { label: `${title}, ${note}`, kind, points, span, shown, unit, text }),
    !blank &&
      h(
        "details",
        { open: state.open, ontoggle: (event) => ((state.open = event.target.open), update()) },
        h("summary", { id: `numbers-${name}` }, "Numbers"),
        state.open && numbers({ title, points, span, series, text }),
      ),
  );
}

function numbers({ title, points, span, series, text }) {
  const busy = points.map((_, i) => i).filter((i) => series.some((each) => each.values[i]));
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": `${title}: numbers` },
    table(
      ["From", ...series.map((each) => each.label)],
      busy.reverse().map((i) =>
        h(
          "tr",
          { key: points[i], role: "row" },
          cell("From", axisTime(points[i], span, points.length)),
          series.map((each) => cell(each.label, text(each.values[i]))),
        )
      ),
      { class: "numbers" },
    ),
  );
}

function drawing(state, { label, kind, points, span, shown, unit, text }) {
  const width = Math.max(280, Math.min(560, (document.getElementById("main")?.clientWidth || 560) - 64));
  const n = points.length;
  const stacked = kind !== "line";
  const sums = points.map((
    _,
    i,
  ) => (stacked
    ? shown.reduce((all, each) => all + (each.values[i] || 0), 0)
    : Math.max(0, ...shown.map((each) => each.values[i] || 0)))
  );
  const { top, step } = ceiling(Math.max(0, ...sums), unit);
  const ticks = Array.from({ length: Math.round(top / step) + 1 }, (_, i) => i * step);
  // The labels of the axis decide its width.
  const left = Math.max(30, Math.ceil(Math.max(...ticks.map((value) => text(value).length)) * LETTER) + 10);
  const x = (i) => left + ((width - left - RIGHT) * i) / n;
  const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - TOP) * value) / top;
  const labels = width > 500 ? 6 : 3;
  const point = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const i = Math.floor((((event.clientX - box.left) / box.width) * width - left) / (x(1) - x(0)));
    state.at = i >= 0 && i < n ? i : null;
    update();
  };
  return h(
    "svg",
    {
      viewBox: `0 0 ${width} ${HEIGHT}`,
      role: "img",
      "aria-label": `${label}. The numbers are in the table below.`,
      onpointermove: point,
      onpointerleave: () => ((state.at = null), update()),
    },
    ticks.map((
      value,
    ) => [
      h("line", { key: `line ${value}`, class: "grid", x1: left, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      h("text", { key: `tick ${value}`, class: "tick-y", x: left - 6, y: y(value) + 4 }, text(value)),
    ]),
    Array.from({ length: labels }, (_, k) => {
      const i = Math.round((k * n) / labels);
      return h(
        "text",
        { key: `x ${k}`, class: k ? "tick-x" : "tick-x begin", x: x(i), y: HEIGHT - 5 },
        axisTime(points[i], span, n),
      );
    }),
    kind === "line"
      ? shown.map((each) => lines(each, x, y))
      : kind === "bars"
      ? stackedBars(shown, points, x, y)
      : areas(shown, points, x, y),
    state.at !== null && pointer(state.at, { points, span, shown, text, x, width, left }),
  );
}

/** The values under the pointer. */
function pointer(i, { points, span, shown, text, x, width, left }) {
  const middle = (x(i) + x(i + 1)) / 2;
  const begin = i > points.length / 2;
  return [
    h("line", { class: "mark", y1: TOP, y2: HEIGHT - BOTTOM, x1: middle, x2: middle }),
    h(
      "text",
      { class: begin ? "read begin" : "read", x: begin ? left + 4 : width - RIGHT, y: TOP + 2 },
      `${axisTime(points[i], span, points.length)}: ${
        shown.map((each) => `${text(each.values[i])} ${each.label}`).join(", ")
      }`,
    ),
  ];
}

function stackedBars(shown, points, x, y) {
  const gap = points.length > 100 ? 0.1 : 0.2;
  const width = x(1) - x(0);
  const below = points.map(() => 0);
  return shown.map((each) =>
    each.values.map((value, i) => {
      if (!value) return null;
      const from = below[i];
      below[i] += value;
      return h("rect", {
        key: `${each.name} ${i}`,
        class: each.name,
        x: x(i) + (width * gap) / 2,
        width: width * (1 - gap),
        y: y(below[i]),
        height: Math.max(0.5, y(from) - y(below[i])),
      });
    })
  );
}

// A value is the state at the end of an interval, drawn over the whole interval.
function areas(shown, points, x, y) {
  const below = points.map(() => 0);
  return shown.map((each) => {
    const up = [];
    const down = [];
    each.values.forEach((value, i) => {
      down.unshift(`${x(i + 1)},${y(below[i])}`, `${x(i)},${y(below[i])}`);
      below[i] += value || 0;
      up.push(`${x(i)},${y(below[i])}`, `${x(i + 1)},${y(below[i])}`);
    });
    return h("polygon", { key: each.name, class: each.name, points: [...up, ...down].join(" ") });
  });
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
  return parts.map((part, k) => [
    part.length > 1 &&
    h("polyline", { key: `${name} ${k}`, class: `line ${name}`, points: part.map((point) => point.join()).join(" ") }),
    // A line of one or two points is hard to see.
    part.length < 3 && part.map(([cx, cy]) => h("circle", { key: `${name} ${cx}`, class: name, cx, cy, r: 2.5 })),
  ]);
}

/**
 * A stacked bar for each item, between its label and its total.
 * @param {{key: string, label: import("./render.js").Tree, values: Record<string, number>, total: number, note: string}[]} items
 * @param {string[]} series
 * @param {number} most
 */
export function bars(items, series, most) {
  return h(
    "ul",
    { class: "types" },
    items.map(({ key, label, values, total, note }) => {
      let x = 0;
      const parts = series.map((name) => {
        const width = (100 * (values[name] || 0)) / most;
        x += width;
        return width > 0 &&
          h("rect", { key: name, class: name, x: x - width, width: Math.max(width, 0.3), y: 0, height: 10 });
      });
      return h(
        "li",
        { key },
        label,
        h("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, parts),
        h("span", { class: "total" }, number(total)),
        h("span", { class: "unseen" }, note),
      );
    }),
  );
}
