// The workers of the last day: who is there, what they claim, and how many jobs each runs.

import { get, workspacePath } from "../api.js";
import { count, number, time, zone } from "../format.js";
import { every, heard } from "../live.js";
import { cell, empty, link, pager, table, who } from "../parts.js";
import { names } from "../names.js";
import { h } from "../render.js";
import { update } from "../state.js";

const LIMIT = 50;
const REFRESH = 5000;
const TYPES = 6;

/** @param {import("../state.js").Context} context */
export default async function workers({ id, query, signal }) {
  const live = query.get("state") === "live";
  const page = Number(query.get("page")) || 1;
  const path = workspacePath(id, `/workers?limit=${LIMIT}&page=${page}${live ? "&state=live" : ""}`);
  const state = { found: await get(path, { signal }) };

  const row = (worker) =>
    h(
      "tr",
      { key: `${worker.actor} ${worker.name}`, role: "row", class: worker.state === "gone" ? "gone" : null },
      cell("Name", h("span", { class: "name", dir: "auto", title: worker.name }, worker.name)),
      cell("State", h("span", { class: `badge ${worker.state}` }, worker.state)),
      cell("Job types", types(worker.job_types)),
      cell("Running", number(worker.running)),
      cell("Last seen", time(worker.last_seen_at)),
      cell("First seen", time(worker.first_seen_at)),
      cell("Actor", actor(worker.actor)),
    );

  // A user or an API key, such as "user:1", by name.
  function actor(text) {
    const [kind, n] = text.split(":");
    const by = who({ worker: null, user_id: null, key_id: null, [`${kind}_id`]: Number(n) }, names(id));
    return h("span", { class: "name", dir: "auto", title: by || text }, by || text);
  }

  return {
    title: "Workers",
    watched: true,
    live: (signal) => {
      heard();
      every(REFRESH, signal, async () => {
        state.found = await get(path, { signal });
        heard();
        update();
      });
    },
    view: () => [
      h(
        "p",
        { class: "hint" },
        "Workers that have claimed jobs within the last day. A worker is live while it claims, waits for jobs or holds a lease. ",
        live
          ? link(`/${id}/workers`, {}, "Show all workers")
          : link(`/${id}/workers?state=live`, {}, "Show only live workers"),
      ),
      state.found.data.length
        ? [
          h("p", { class: "hint" }, count(state.found.pagination.total, "worker")),
          table(
            [
              "Name",
              "State",
              "Job types",
              "Running",
              ["Last seen ", h("span", { class: "zone" }, zone())],
              ["First seen ", h("span", { class: "zone" }, zone())],
              "Actor",
            ],
            state.found.data.map(row),
            { class: "workers" },
          ),
        ]
        : empty(live ? "No worker is live." : "No worker has claimed jobs within the last day."),
      pager(`/${id}/workers`, query, state.found.pagination),
    ],
  };
}

function types(claimed) {
  if (!claimed) return "all";
  const more = claimed.length - TYPES;
  return h(
    "span",
    { class: "type", title: more > 0 ? claimed.join(", ") : null },
    claimed.slice(0, TYPES).join(", "),
    more > 0 && ` and ${number(more)} more`,
  );
}
