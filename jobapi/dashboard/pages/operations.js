// The operations of a workspace, which are started from the list of jobs.

import { get, post, workspacePath } from "../api.js";
import { inWords, matched } from "../bulk.js";
import { number, time, zone } from "../format.js";
import { every, heard } from "../live.js";
import { cell, empty, link, pager, table } from "../parts.js";
import { h } from "../render.js";
import { update } from "../state.js";

const RUNNING = 2000;
const IDLE = 10_000;

/** @param {import("../state.js").Context} context */
export default async function operations({ id, signal, may, query }) {
  const path = workspacePath(id, "/operations");
  const list = `${path}?limit=25&page=${Number(query.get("page")) || 1}`;
  const state = { found: await get(list, { signal }), problem: "" };

  async function read() {
    state.found = await get(list, { signal });
    heard();
    update();
    return state.found.data.some((operation) => operation.status === "running") ? RUNNING : IDLE;
  }

  async function stop(operation) {
    state.problem = "";
    try {
      await post(`${path}/${operation.operation_id}/stop`);
      await read();
    } catch (error) {
      state.problem = error.message;
      update();
    }
  }

  const row = (operation) => {
    const mine = operation.action === "delete" ? may("owner") : may("member");
    return h(
      "tr",
      { key: operation.operation_id, role: "row" },
      cell("Action", operation.action),
      cell(
        "Jobs",
        h("span", { dir: "auto" }, inWords(operation.filter)),
        operation.reason && h("span", { class: "hint", dir: "auto" }, ` (${operation.reason})`),
      ),
      cell(
        "Status",
        h("span", { class: "badge" }, operation.status),
        " ",
        operation.status === "running" && mine &&
          h(
            "button",
            { type: "button", class: "small", "data-destructive": true, onclick: () => stop(operation) },
            "Stop",
          ),
      ),
      cell(
        "Done",
        `${number(operation.changed)} of ${matched(operation)}`,
        operation.skipped > 0 && `, ${number(operation.skipped)} skipped`,
      ),
      cell("Started", time(operation.created_at)),
    );
  };

  return {
    title: "Operations",
    watched: true,
    live: (signal) => {
      heard();
      every(state.found.data.some((operation) => operation.status === "running") ? RUNNING : IDLE, signal, read);
    },
    view: () => [
      h(
        "p",
        { class: "hint" },
        "Operations that were started from ",
        link(`/${id}/jobs`, {}, "the list of jobs"),
        " or through the API. They are kept for 30 days.",
      ),
      state.problem && h("p", { class: "problem", role: "alert" }, state.problem),
      state.found.data.length
        ? table(
          ["Action", "Jobs", "Status", "Done", ["Started ", h("span", { class: "zone" }, zone())]],
          state.found.data.map(row),
        )
        : empty("No operations yet. Filter the list of jobs, then choose “Cancel all…” or “Retry all…” there."),
      pager(`/${id}/operations`, query, state.found.pagination),
    ],
  };
}
