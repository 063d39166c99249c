// The failures of a workspace by their causes, and the retry of all that failed in the same way.

import { get, workspacePath } from "../api.js";
import { bulk } from "../bulk.js";
import { count, number, time, zone } from "../format.js";
import { follow } from "../live.js";
import { address, cell, empty, field, formState, input, link, table, unseen } from "../parts.js";
import { h } from "../render.js";
import { update } from "../state.js";

const LIMIT = 50;
const REST = 5000;

/** @param {import("../state.js").Context} context */
export default async function errors({ id, query, signal, go, may, reload }) {
  const types = query.getAll("job_type");
  const path = workspacePath(
    id,
    `/jobs/errors?${new URLSearchParams([["limit", String(LIMIT)], ...types.map((type) => ["job_type", type])])}`,
  );
  const state = { found: await get(path, { signal }), form: formState() };

  async function read() {
    state.found = await get(path, { signal });
    update();
  }

  function live(signal) {
    const again = follow(id, signal, {
      read,
      rest: REST,
      events(found) {
        // What ends or leaves the status failed, or deletes a failed job.
        if (
          found.some((event) => [event.from_status, event.to_status].includes("failed") || event.kind === "deleted")
        ) again();
      },
    });
  }

  const filter = ({ job_type, error_group }) => ({
    status: ["failed"],
    job_type: [job_type],
    ...(error_group ? { error_group: [error_group] } : {}),
  });
  const jobs = (group) =>
    address(`/${id}/jobs`, new URLSearchParams(Object.entries(filter(group)).map(([name, [value]]) => [name, value])));

  const row = (group) =>
    h(
      "tr",
      { key: `${group.job_type} ${group.error_group}`, role: "row" },
      cell(
        "Cause",
        link(
          jobs(group),
          { class: "row", id: `row-${group.job_type}-${group.error_group}` },
          h("span", { class: "error", dir: "auto", title: group.cause }, group.cause),
        ),
      ),
      cell("Type", h("span", { class: "type", title: group.job_type }, group.job_type)),
      cell("Jobs", h("strong", {}, number(group.count), group.count_is_capped && " or more")),
      cell("Last failed", time(group.last_failed_at)),
      cell(
        "Samples",
        group.job_ids.map((
          job,
        ) => [link(`/${id}/jobs/${job}`, { key: job, class: "id", title: job }, job.slice(-8)), " "]),
      ),
      may("member") &&
        cell(
          "",
          h("button", {
            type: "button",
            class: "small",
            "aria-label": `Retry all: ${group.cause}`,
            onclick: () => bulk(id, "retry", filter(group), reload),
          }, "Retry all…"),
        ),
    );

  function choose(event) {
    event.preventDefault();
    const wanted = String(new FormData(event.currentTarget).get("job_type")).split(/[\s,]+/).filter(Boolean);
    if (wanted.join() !== types.join()) {
      go(address(`/${id}/errors`, new URLSearchParams(wanted.map((type) => ["job_type", type]))), { keep: true });
    }
  }

  return {
    title: "Errors",
    watched: true,
    live,
    view: () => [
      h(
        "p",
        { class: "hint" },
        "Jobs that have failed, by type and by the last line of their error. Numbers, ids and quoted texts in it do not matter. ",
        state.found.is_capped && "There may be more groups than these.",
      ),
      h(
        "form",
        { class: "filters", role: "search", "aria-label": "Filters", onsubmit: choose, onchange: choose },
        field(state.form, "Type", input("job_type", { id: "filter", type: "search", value: types.join(" ") })),
      ),
      state.found.data.length
        ? [
          h("p", { class: "hint" }, count(state.found.data.length, "group")),
          table(
            [
              "Cause",
              "Type",
              "Jobs",
              ["Last failed ", h("span", { class: "zone" }, zone())],
              "Samples",
              may("member") && unseen("Action"),
            ].filter(Boolean),
            state.found.data.map(row),
            { class: "errors" },
          ),
        ]
        : empty(
          types.length ? "No failed jobs of these types. " : "No failed jobs. ",
          types.length > 0 && link(`/${id}/errors`, {}, "All types"),
        ),
    ],
  };
}
