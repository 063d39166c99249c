// Operations: cancel, retry or delete all jobs that match a filter, after a dry run has counted them.

import { HOME, get, newKey, post, workspacePath } from "./api.js";
import { cancelButton, cell, count, dialog, h, number, rows, say, since } from "./dom.js";
import { every } from "./live.js";

const WHAT = {
  cancel: { takes: "pending and running jobs", done: "cancelled" },
  retry: { takes: "failed and cancelled jobs", done: "retried" },
  delete: { takes: "ended jobs", done: "deleted" },
};
const FOLLOWED = 700;

// The filters of the list in the form that an operation takes.
function filterOf(query) {
  const filter = {};
  for (const name of ["status", "job_type", "priority"]) {
    if (query.has(name)) filter[name] = query.getAll(name);
  }
  for (const name of ["created_after", "created_before", "updated_after"]) {
    if (query.has(name)) filter[name] = query.get(name);
  }
  if (query.has("created_by")) filter.created_by = Number(query.get("created_by"));
  for (const [name, value] of query) {
    if (name.startsWith("metadata.")) (filter.metadata ??= {})[name.slice(9)] = value;
  }
  return filter;
}

const inWords = (filter) =>
  Object.entries(filter)
    .flatMap(([name, value]) =>
      name === "metadata"
        ? Object.entries(value).map(([path, wanted]) => `${path} is ${wanted}`)
        : `${name.replaceAll("_", " ")} ${Array.isArray(value) ? value.join(" or ") : value}`,
    )
    .join(", ") || "all jobs";

const matched = (operation, what = "job") =>
  operation.matched_is_capped ? `more than ${count(operation.matched, what)}` : count(operation.matched, what);

// The dialog for an operation. `changed` is called when it is closed after the start of one.
export function ask(id, action, query, changed) {
  const filter = filterOf(query);
  const what = WHAT[action];
  const path = workspacePath(id, "/operations");
  const key = newKey();
  const closed = new AbortController();
  let begun = false;
  const body = h("div", {}, h("p", { "aria-busy": true }, "Counting…"));
  const close = cancelButton();
  const buttons = h("div", { class: "buttons" }, close);
  const wrong = h("p", { class: "problem", role: "alert" });
  const title = `${action[0].toUpperCase()}${action.slice(1)} all matching jobs`;
  dialog(title, [h("p", {}, "Filter: ", h("strong", { dir: "auto" }, inWords(filter)), `. Applies to ${what.takes}.`), body, wrong, buttons], () => {
    closed.abort();
    if (begun) changed();
  });

  async function plan() {
    wrong.textContent = "";
    const operation = await post(path, { action, filter, dry_run: true }, { signal: closed.signal });
    if (!operation.matched) return body.replaceChildren(h("p", {}, "No jobs match."));
    const reason = h("input", { id: "reason", maxlength: 1000, autocomplete: "off" });
    body.replaceChildren(
      h("p", {}, h("strong", { class: "matched" }, matched(operation)), ` will be ${what.done}.`),
      action === "delete" ? h("p", {}, "Their results, attempts and history are deleted too. This cannot be undone.") : h("div", { class: "field" }, h("label", { for: "reason" }, "Reason (optional)"), reason),
    );
    const run = h("button", { type: "button", class: "primary", onclick: () => attempt(() => start(reason.value.trim())) }, `${title.split(" ")[0]} ${matched(operation)}`);
    buttons.prepend(run);
    say(`${matched(operation)} will be ${what.done}`);
    run.focus();
  }

  async function start(reason) {
    const run = buttons.querySelector(".primary");
    run.disabled = true;
    try {
      // The idempotency key: a repeated request after a lost response starts no second operation.
      const operation = await post(path, { action, filter, ...(reason ? { reason } : {}) }, { headers: { "Idempotency-Key": key } });
      begun = true;
      run.remove();
      track(operation);
    } finally {
      run.disabled = false;
    }
  }

  function track(operation) {
    const bar = h("progress", { max: Math.max(operation.matched, 1), "aria-label": "Done" });
    const text = h("p", { role: "status" });
    const stop = h("button", { type: "button", onclick: () => attempt(async () => show(await post(`${path}/${operation.operation_id}/stop`))) }, "Stop");
    body.replaceChildren(bar, text);
    buttons.prepend(stop);
    close.focus();

    function show(now) {
      operation = now;
      bar.value = now.status === "finished" ? bar.max : now.changed + now.skipped;
      text.textContent =
        `${number(now.changed)} ${what.done}` +
        (now.status === "running" ? ` of ${matched(now)}. The operation continues if you close this dialog.` : now.status === "stopped" ? ", then stopped." : ".") +
        (now.skipped ? ` ${number(now.skipped)} skipped, because their result would become too large.` : "");
      if (now.status !== "running") {
        stop.remove();
        closed.abort();
      }
    }
    show(operation);
    if (operation.status === "running") every(FOLLOWED, closed.signal, async () => show(await get(`${path}/${operation.operation_id}`, { signal: closed.signal })));
  }

  async function attempt(run) {
    wrong.textContent = "";
    try {
      await run();
    } catch (error) {
      if (!closed.signal.aborted) wrong.textContent = error.message;
    }
  }

  attempt(plan).then(() => wrong.textContent && body.replaceChildren());
}

// The page of a workspace's operations.
export default async function operations({ id, signal, may, reload, query }) {
  const page = Number(query.get("page")) || 1;
  const path = workspacePath(id, "/operations");
  const { data, pagination } = await get(`${path}?limit=25&page=${page}`, { signal });
  const each = (operation) => {
    const stop = h("button", { type: "button", onclick: () => post(`${path}/${operation.operation_id}/stop`).catch(() => {}).then(reload) }, "Stop");
    const mine = operation.action === "delete" ? may("owner") : may("member");
    return h(
      "tr",
      { role: "row" },
      cell("Action", operation.action),
      cell("Jobs", h("span", { dir: "auto" }, inWords(operation.filter)), operation.reason && h("span", { class: "hint", dir: "auto" }, ` (${operation.reason})`)),
      cell("Status", h("span", { class: "badge" }, operation.status), operation.status === "running" && mine && stop),
      cell("Done", `${number(operation.changed)} of ${matched(operation, "job")}`, operation.skipped ? `, ${number(operation.skipped)} skipped` : ""),
      cell("Started", since(operation.created_at)),
    );
  };
  const to = (n, text) => h("a", { href: `${HOME}/${id}/operations?page=${n}` }, text);
  return {
    title: "Operations",
    node: h(
      "div",
      {},
      h("p", {}, "Operations that were started from ", h("a", { href: `${HOME}/${id}/jobs` }, "the list of jobs"), " or through the API. They are kept for 30 days."),
      data.length ? rows(["Action", "Jobs", "Status", "Done", "Started"], data.map(each)) : h("p", { class: "none" }, "No operations yet."),
      pagination.total_pages > 1 && h("p", { class: "pages" }, page > 1 && to(page - 1, "Previous"), h("span", {}, `Page ${page} of ${pagination.total_pages}`), page < pagination.total_pages && to(page + 1, "Next")),
    ),
    live: (signal) => data.some((operation) => operation.status === "running") && every(2000, signal, reload),
  };
}
