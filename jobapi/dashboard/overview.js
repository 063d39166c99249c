// The overview of a workspace: counts, charts, rates and durations.

import { HOME, get, workspacePath } from "./api.js";
import { STATUSES, cell, count, duration, h, number, rows } from "./dom.js";
import { bars, chart } from "./charts.js";
import { every } from "./live.js";

const WINDOWS = [["hour", "Hour"], ["day", "Day"], ["month", "Month"]];
const RATES = ["queued", "started", "succeeded", "failed", "cancelled"];
const SPANS = ["minute", "hour", "day"];
const TYPES = 12;
const STATS = 5000;

// The charts whose numbers are open, and the statuses hidden in the first chart.
const opened = new Set();
const hidden = new Set();

export default async function overview({ id, query, signal }) {
  const window_ = query.get("window") || "day";
  const read = (signal) => Promise.all([get(workspacePath(id, "/stats"), { signal }), get(workspacePath(id, `/stats/history?window=${encodeURIComponent(window_)}`), { signal })]);
  let [stats, history] = await read(signal);
  const tiles = h("div", { class: "tiles" });
  const charts = h("div", { class: "charts" });
  const rates = h("section", {});
  const types = h("figure", {});
  const durations = h("section", {});

  function showStats() {
    const list = (status) => `${HOME}/${id}/jobs?status=${status}`;
    tiles.replaceChildren(
      ...STATUSES.map((status) => h("a", { class: `tile ${status}`, href: list(status) }, h("strong", {}, number(stats.by_status[status])), h("span", {}, status))),
      h("div", { class: "tile" }, h("strong", {}, stats.oldest_pending_seconds === null ? "–" : duration(stats.oldest_pending_seconds)), h("span", {}, "longest wait of a due job")),
    );
    rates.replaceChildren(
      h("h2", {}, "Rates"),
      rows(["In the last", ...SPANS], RATES.map((rate) => h("tr", { role: "row" }, cell("", rate), SPANS.map((each) => cell(each, number(stats.rates[each][rate]))))), { class: "numbers" }),
    );
    showTypes();
  }

  function showTypes() {
    const sum = (by) => STATUSES.reduce((all, status) => all + by[status], 0);
    const all = Object.entries(stats.by_type).sort(([, a], [, b]) => sum(b) - sum(a));
    const most = Math.max(1, ...all.map(([, by]) => sum(by)));
    const items = all.slice(0, TYPES).map(([type, by]) => ({
      label: h("a", { href: `${HOME}/${id}/jobs?job_type=${encodeURIComponent(type)}` }, type),
      values: by,
      total: sum(by),
      note: h("span", { class: "unseen" }, STATUSES.map((status) => `${by[status]} ${status}`).join(", ")),
    }));
    const took = all.filter(([type]) => stats.durations[type]).slice(0, TYPES);
    types.replaceChildren(
      h("figcaption", {}, h("h2", {}, "By type"), h("span", { class: "hint" }, "now")),
      items.length ? bars(items, STATUSES, most) : h("p", { class: "none" }, "No jobs yet."),
      all.length > TYPES ? h("p", { class: "hint" }, `And ${count(all.length - TYPES, "more type")}.`) : "",
    );
    durations.replaceChildren(
      h("h2", {}, "Run times"),
      took.length
        ? rows(
            ["Type", "Median", "95th percentile", "Sample"],
            took.map(([type]) => {
              const each = stats.durations[type];
              return h("tr", { role: "row" }, cell("", type), cell("Median", duration(each.median_seconds)), cell("95th percentile", duration(each.p95_seconds)), cell("Sample", count(each.jobs, "job")));
            }),
            { class: "numbers" },
          )
        : h("p", { class: "none" }, "No job has succeeded yet."),
    );
  }

  function showCharts() {
    const { data, span_seconds: span } = history;
    const points = data.map((point) => point.at);
    const values = (read) => data.map(read);
    const line = (read) => values((point) => (read(point) === null ? null : Math.max(0, read(point))));
    charts.replaceChildren(
      figure("by status", "Jobs by status", "at the end of each interval", {
        kind: "area",
        points,
        span,
        series: STATUSES.filter((status) => !hidden.has(status)).map((status) => ({ name: status, label: status, values: values((point) => Math.max(0, point.by_status[status])) })),
      }, STATUSES),
      figure("ended", "Throughput", `jobs that ended, per ${duration(span)}`, {
        kind: "bars",
        points,
        span,
        series: [["success", "succeeded"], ["failed", "failed"]].map(([name, label]) => ({ name, label, values: values((point) => point[label]) })),
      }),
      figure("wait", "Waiting and running", "on average", {
        kind: "line",
        points,
        span,
        unit: duration,
        whole: false,
        series: [
          { name: "waited", label: "waited", values: line((point) => point.wait_seconds) },
          { name: "ran", label: "ran", values: line((point) => point.run_seconds) },
        ],
      }),
    );
  }

  // With `choice` the legend's buttons hide and show the series.
  function figure(name, title, note, options, choice) {
    const { svg, table, empty } = chart({ title: `${title}, ${note}`, ...options });
    const key = (label, series) => [h("span", { class: `key ${series}` }), label];
    const legend = choice
      ? choice.map((each) => h("button", { type: "button", id: `legend-${each}`, "aria-pressed": String(!hidden.has(each)), onclick: () => toggle(each) }, key(each, each)))
      : options.series.map((each) => h("span", {}, key(each.label, each.name)));
    const numbers = h("details", { open: opened.has(name) }, h("summary", { id: `numbers-${name}` }, "Numbers"));
    const fill = () => numbers.childElementCount < 2 && numbers.append(empty ? h("p", { class: "none" }, "No data yet.") : h("div", { class: "scroll", tabindex: 0 }, table()));
    if (opened.has(name)) fill();
    numbers.addEventListener("toggle", () => {
      opened[numbers.open ? "add" : "delete"](name);
      if (numbers.open) fill();
    });
    return h("figure", {}, h("figcaption", {}, h("h2", {}, title), h("span", { class: "hint" }, note)), h("div", { class: "legend" }, legend), svg, numbers);
  }

  function toggle(status) {
    hidden[hidden.has(status) ? "delete" : "add"](status);
    keepFocus(showCharts);
  }

  showStats();
  showCharts();
  return {
    title: "Overview",
    node: h(
      "div",
      {},
      tiles,
      h(
        "nav",
        { class: "windows", "aria-label": "Window" },
        "The last ",
        WINDOWS.map(([name, text]) => h("a", { id: `window-${name}`, href: `${HOME}/${id}?window=${name}`, "aria-current": name === window_ && "true" }, text.toLowerCase())),
      ),
      h("div", { class: "grid" }, charts, types),
      h("div", { class: "pair" }, rates, durations),
    ),
    live: (signal) =>
      every(STATS, signal, async () => {
        [stats, history] = await read(signal);
        keepFocus(() => {
          showStats();
          // Not while the pointer is on a chart.
          if (!charts.querySelector("svg:hover")) showCharts();
        });
      }),
  };
}

// Run something that replaces nodes, then restore the focus.
function keepFocus(run) {
  const { id, href } = document.activeElement || {};
  run();
  if (id) document.getElementById(id)?.focus({ preventScroll: true });
  else if (href && document.activeElement === document.body) [...document.links].find((link) => link.href === href)?.focus({ preventScroll: true });
}
