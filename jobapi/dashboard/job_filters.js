// The filters of the list of jobs. They are in the address, with the names of the API's list.

import { moment, number, toLocal, toUtc } from "./format.js";
import { address, field, input, link, PRIORITIES, select, STATUSES } from "./parts.js";
import { h } from "./render.js";
import { update } from "./state.js";

const SORTS = /** @type {[string, string][]} */ ([
  ["created_at desc", "Newest first"],
  ["created_at asc", "Oldest first"],
  ["updated_at desc", "Last changed first"],
  ["updated_at asc", "Least recently changed first"],
  ["priority desc", "Most urgent first"],
  ["priority asc", "Least urgent first"],
  ["status asc", "By status, pending first"],
  ["status desc", "By status, cancelled first"],
  ["started_at asc", "Running longest first"],
  ["started_at desc", "Most recently started first"],
]);
const LIMITS = ["10", "20", "50", "100"];
export const TIMES = {
  created_after: "Created at or after",
  created_before: "Created before",
  updated_after: "Changed at or after",
};
const METADATA = 5;

// The filters that links set. They are shown with a button that removes them.
const FIXED = {
  error_group: () => "One group of errors",
  job_id: (value) => `Job ${value.slice(-8)}`,
  concurrency_key: (value) => `Concurrency key ${value}`,
  schedule_id: () => "Of one schedule",
  unique_key: (value) => `Unique key ${value}`,
  expires_after: (value) => `Expires at or after ${moment(value)}`,
  expires_before: (value) => `Expires before ${moment(value)}`,
};

/** Whether a parameter of the list chooses jobs, and not their order or page. */
export const isFilter = (name) => !["sort", "order", "page", "limit", "cursor"].includes(name);

/** The query of the first page. @param {URLSearchParams} query */
export function beginning(query) {
  const there = new URLSearchParams(query);
  ["page", "cursor"].forEach((name) => there.delete(name));
  return there;
}

/**
 * @param {object} options
 * @param {string} options.id the workspace
 * @param {URLSearchParams} options.query
 * @param {import("./state.js").Context["go"]} options.go
 * @param {{form: any, problem: string, stats: any}} options.state the messages for the filters, and
 *   the statistics of the workspace, once they are there
 * @returns {() => import("./render.js").Tree} the view
 */
export function jobFilters({ id, query, go, state }) {
  const here = `/${id}/jobs`;
  const sort = query.get("sort") || "created_at";
  const types = query.getAll("job_type");
  const filtered = [...query.keys()].some(isFilter);

  function filters() {
    const wide = matchMedia("(min-width: 641px)").matches;
    const active = [...new Set(query.keys())].filter(isFilter).length;
    return h(
      "details",
      { id: "filters", open: wide || Boolean(state.problem) },
      h("summary", {}, "Filters and sorting", active > 0 && ` (${active})`),
      panel(),
    );
  }

  function panel() {
    const form = state.form;
    const chip = (name, value, ...more) =>
      h(
        "label",
        { class: "tick", key: value },
        h("input", {
          type: "checkbox",
          name,
          value,
          id: `${name}-${value}`,
          checked: query.getAll(name).includes(value),
        }),
        h("span", { class: name === "status" ? value : null }, value, more),
      );
    const totals = state.stats?.by_status;
    const metadata = [...query].filter(([name]) => name.startsWith("metadata.")).map(([name, value]) =>
      `${name.slice(9)}=${value}`
    );
    const more = [...Object.keys(TIMES), "created_by", "error"].some((name) => query.has(name)) || metadata.length > 0;
    const fixed = [...query].filter(([name]) => name in FIXED);
    return h(
      "form",
      {
        class: "filters",
        role: "search",
        "aria-label": "Filters",
        novalidate: true,
        onsubmit: (event) => (event.preventDefault(), apply(event.target)),
        onchange: (event) => apply(event.currentTarget),
      },
      h(
        "fieldset",
        {},
        h("legend", {}, "Status"),
        STATUSES.map((status) =>
          chip("status", status, totals && h("span", { class: "n" }, ` ${number(totals[status])}`))
        ),
      ),
      h("fieldset", {}, h("legend", {}, "Priority"), PRIORITIES.map((priority) => chip("priority", priority))),
      field(
        form,
        "Type",
        input("job_type", {
          id: "filter",
          type: "search",
          list: "types",
          value: types.join(" "),
          placeholder: "etl report",
        }),
      ),
      h(
        "datalist",
        { id: "types" },
        Object.keys(state.stats?.by_type || {}).slice(0, 200).map((type) => h("option", { value: type, key: type })),
      ),
      field(form, "Sort", select("sort", SORTS, `${sort} ${query.get("order") || "desc"}`, { id: "sort" })),
      h(
        "details",
        { class: "more", open: more },
        h("summary", {}, "More filters"),
        h(
          "div",
          { class: "filters" },
          field(
            form,
            "Text of the error",
            input("error", { id: "error", type: "search", value: query.get("error") || "" }),
          ),
          [...metadata, ""].slice(0, METADATA).map((pair, i) =>
            field(
              form,
              i ? `Metadata ${i + 1}` : "Metadata",
              input(`metadata-${i}`, {
                id: i ? `metadata-${i}` : "metadata",
                value: pair,
                placeholder: "file.name=a.csv",
              }),
              i === 0 && "A path, = and the whole value.",
            )
          ),
          Object.entries(TIMES).map(([name, label]) =>
            field(
              form,
              label,
              input(name, {
                id: name,
                type: "datetime-local",
                step: 1,
                value: query.has(name) ? toLocal(query.get(name)) : "",
              }),
            )
          ),
          field(
            form,
            "Created by (user id)",
            input("created_by", { id: "created_by", inputmode: "numeric", value: query.get("created_by") || "" }),
          ),
          field(
            form,
            "Jobs per page",
            select(
              "limit",
              LIMITS.includes(query.get("limit") || "50") ? LIMITS : [...LIMITS, query.get("limit")],
              query.get("limit") || "50",
              { id: "limit" },
            ),
          ),
        ),
      ),
      fixed.map(([name, value]) =>
        h(
          "span",
          { class: "chip", key: `${name} ${value}` },
          h("span", { dir: "auto" }, FIXED[name](value)),
          h("button", {
            type: "button",
            class: "small",
            "aria-label": "Remove this filter",
            onclick: () => drop(name, value),
          }, "×"),
        )
      ),
      filtered && link(here, { class: "clear" }, "Clear filters"),
      state.problem && h("p", { class: "problem", role: "alert" }, state.problem),
      h("button", { class: "unseen", tabindex: -1 }, "Filter"),
    );
  }

  function drop(name, value) {
    const wanted = beginning(query);
    const others = wanted.getAll(name).filter((each) => each !== value);
    wanted.delete(name);
    others.forEach((each) => wanted.append(name, each));
    go(address(here, wanted), { keep: true });
  }

  function apply(node) {
    const form = new FormData(node);
    const text = (name) => String(form.get(name) || "").trim();
    const wanted = new URLSearchParams();
    for (const name of ["status", "priority"]) form.getAll(name).forEach((value) => wanted.append(name, String(value)));
    text("job_type").split(/[\s,]+/).filter(Boolean).forEach((value) => wanted.append("job_type", value));
    for (const name of Object.keys(FIXED)) query.getAll(name).forEach((value) => wanted.append(name, value));
    state.form.wrong = {};
    for (let i = 0; i < METADATA; i++) {
      const pair = text(`metadata-${i}`);
      if (!pair) continue;
      const sign = pair.indexOf("=");
      if (sign < 1) state.form.wrong[`metadata-${i}`] = "Write a path, = and a value, such as batch_id=3.";
      else wanted.append(`metadata.${pair.slice(0, sign).trim()}`, pair.slice(sign + 1).trim());
    }
    update();
    if (Object.keys(state.form.wrong).length) return;
    for (const name of Object.keys(TIMES)) {
      // The input shows seconds. An untouched value keeps its fraction.
      const local = text(name);
      const old = query.get(name);
      if (local) wanted.set(name, old && toLocal(old) === local ? old : toUtc(local));
    }
    for (const name of ["created_by", "error"]) text(name) && wanted.set(name, text(name));
    const [by, order] = text("sort").split(" ");
    if (by !== "created_at" || order !== "desc") {
      wanted.set("sort", by);
      wanted.set("order", order);
      // Only running jobs can be sorted by their start.
      if (by === "started_at" && sort !== "started_at") {
        wanted.delete("status");
        wanted.set("status", "running");
      } else if (by === "started_at" && String(wanted.getAll("status")) !== "running") {
        ["sort", "order"].forEach((name) => wanted.delete(name));
      }
    }
    if (text("limit") !== "50") wanted.set("limit", text("limit"));
    // Enter triggers both change and submit, and the user may have left the page.
    if (!node.isConnected || String(wanted) === String(new URLSearchParams(location.search))) return;
    go(address(here, wanted), { keep: true });
  }

  return filters;
}
