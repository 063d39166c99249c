// The overview of a workspace: counts, charts, rates and run times.

import { get, workspacePath } from "../api.js";
import { bars, chart, chartState } from "../charts.js";
import { count, duration, number } from "../format.js";
import { every, heard } from "../live.js";
import { cell, empty, link, STATUSES, table } from "../parts.js";
import { h } from "../render.js";
import { update } from "../state.js";

const WINDOWS = { hour: "hour", day: "day", month: "month" };
const RATES = ["queued", "started", "succeeded", "failed", "cancelled"];
const SPANS = ["minute", "hour", "day"];
const TYPES = 12;
const REFRESH = 5000;

// What is hidden and open stays when the period changes.
const CHARTS = { status: chartState(), ended: chartState(), times: chartState() };

/** @param {import("../state.js").Context} context */
export default async function overview({ id, query, signal }) {
  const period = query.get("window") || "day";
  const read = (signal) =>
    Promise.all([
      get(workspacePath(id, "/stats"), { signal }),
      get(workspacePath(id, `/stats/history?window=${encodeURIComponent(period)}`), { signal }),
    ]);
  const [stats, history] = await read(signal);
  const state = { stats, history };

  const tiles = () =>
    h(
      "div",
      { class: "tiles" },
      STATUSES.map((status) =>
        link(
          `/${id}/jobs?status=${status}`,
          { key: status, class: `tile ${status}` },
          h("strong", {}, number(state.stats.by_status[status])),
          h("span", {}, status),
        )
      ),
      h(
        "div",
        { class: "tile" },
        h(
          "strong",
          {},
          state.stats.oldest_pending_seconds === null ? "–" : duration(state.stats.oldest_pending_seconds),
        ),
        h("span", {}, "longest wait of a due job"),
      ),
    );

  const periods = () =>
    h(
      "nav",
      { class: "windows", "aria-label": "Period" },
      h("span", {}, "The last "),
      Object.entries(WINDOWS).map(([name, text]) =>
        link(`/${id}?window=${name}`, {
          key: name,
          id: `window-${name}`,
          "aria-current": name === period ? "true" : null,
        }, text)
      ),
    );

  function charts() {
    const { data, span_seconds: span } = state.history;
    const points = data.map((point) => point.at);
    const values = (of) => data.map((point) => (of(point) === null ? null : Math.max(0, of(point))));
    const shared = { points, span };
    return [
      chart(CHARTS.status, {
        name: "status",
        title: "Jobs by status",
        note: "at the end of each interval",
        kind: "area",
        choice: true,
        series: STATUSES.map((status) => ({
          name: status,
          label: status,
          values: values((point) => point.by_status[status]),
        })),
        ...shared,
      }),
      chart(CHARTS.ended, {
        name: "ended",
        title: "Throughput",
        note: `jobs that ended, per ${duration(span).replace(/^1 /, "")}`,
        kind: "bars",
        series: [{ name: "success", label: "succeeded", values: values((point) => point.succeeded) }, {
          name: "failed",
          label: "failed",
          values: values((point) => point.failed),
        }],
        ...shared,
      }),
      chart(CHARTS.times, {
        name: "times",
        title: "Queue time and run time",
        note: "averages",
        kind: "line",
        unit: "seconds",
        series: [{ name: "waited", label: "queue time", values: values((point) => point.wait_seconds) }, {
          name: "ran",
          label: "run time",
          values: values((point) => point.run_seconds),
        }],
        ...shared,
      }),
    ];
  }

  const sum = (by) => STATUSES.reduce((all, status) => all + by[status], 0);
  const sorted = () => Object.entries(state.stats.by_type).sort(([, a], [, b]) => sum(b) - sum(a));

  function types() {
    const all = sorted();
    const most = Math.max(1, ...all.map(([, by]) => sum(by)));
    const items = all.slice(0, TYPES).map(([type, by]) => ({
      key: type,
      label: link(`/${id}/jobs?job_type=${encodeURIComponent(type)}`, { class: "name", title: type }, type),
      values: by,
      total: sum(by),
      note: STATUSES.map((status) => `${by[status]} ${status}`).join(", "),
    }));
    return h(
      "figure",
      { key: "types" },
      h("figcaption", {}, h("h2", {}, "Job types"), h("span", { class: "hint" }, "now")),
      items.length ? bars(items, STATUSES, most) : empty("No jobs yet. ", link(`/${id}/jobs/new`, {}, "Create a job")),
      all.length > TYPES && h("p", { class: "hint" }, `And ${count(all.length - TYPES, "more type")}.`),
    );
  }

  const rates = () =>
    h(
      "section",
      {},
      h("h2", {}, "Rates"),
      table(
        ["In the last", ...SPANS],
        RATES.map((rate) =>
          h(
            "tr",
            { key: rate, role: "row" },
            cell("", rate),
            SPANS.map((each) => cell(each, number(state.stats.rates[each][rate]))),
          )
        ),
        { class: "numbers" },
      ),
    );

  function durations() {
    const known = sorted().filter(([type]) => state.stats.durations[type]).slice(0, TYPES);
    return h(
      "section",
      {},
      h("h2", {}, "Run times"),
      known.length
        ? table(
          ["Type", "Median", "95th percentile", "Sample"],
          known.map(([type]) => {
            const each = state.stats.durations[type];
            return h(
              "tr",
              { key: type, role: "row" },
              cell("", h("span", { class: "name", title: type }, type)),
              cell("Median", duration(each.median_seconds)),
              cell("95th percentile", duration(each.p95_seconds)),
              cell("Sample", count(each.jobs, "job")),
            );
          }),
          { class: "numbers" },
        )
        : empty("No job has succeeded yet."),
    );
  }

  return {
    title: "Overview",
    watched: true,
    live: (signal) => {
      heard();
      every(REFRESH, signal, async () => {
        [state.stats, state.history] = await read(signal);
        heard();
        update();
      });
    },
    view: () => [
      tiles(),
      periods(),
      h("div", { class: "grid" }, charts(), types()),
      h("div", { class: "pair" }, rates(), durations()),
    ],
  };
}
