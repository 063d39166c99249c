// Actions on many jobs: an operation on all that match a filter, after a dry run has counted them.

import { get, newKey, post, workspacePath } from "./api.js";
import { count, number } from "./format.js";
import { every } from "./live.js";
import { capital, closeButton, dialog, field, formState, input, sureBox } from "./parts.js";
import { h } from "./render.js";
import { say, update } from "./state.js";

export const WHAT = {
  cancel: { takes: "pending and running jobs", done: "cancelled" },
  retry: { takes: "failed and cancelled jobs", done: "retried" },
  delete: { takes: "ended jobs", done: "deleted" },
};
const FOLLOWED = 700;

/** The filters of a list in the form that an operation takes. @param {URLSearchParams} query */
export function filterOf(query) {
  const filter = {};
  for (const name of ["status", "job_type", "priority", "error_group", "job_id", "concurrency_key", "unique_key"]) {
    if (query.has(name)) filter[name] = query.getAll(name);
  }
  for (const name of ["created_after", "created_before", "updated_after", "expires_after", "expires_before", "error"]) {
    if (query.has(name)) filter[name] = query.get(name);
  }
  if (query.has("created_by")) filter.created_by = Number(query.get("created_by"));
  for (const [name, value] of query) {
    if (name.startsWith("metadata.")) (filter.metadata ??= {})[name.slice(9)] = value;
  }
  return filter;
}

const NAMES = { error_group: "error group", error: "error contains" };

/** A filter in words: "status failed, job type etl or report". */
export const inWords = (filter) =>
  Object.entries(filter)
    .flatMap(([name, value]) =>
      name === "job_id"
        ? count(value.length, "selected job")
        : name === "metadata"
        ? Object.entries(value).map(([path, wanted]) => `${path} is ${wanted}`)
        : `${NAMES[name] || name.replaceAll("_", " ")} ${Array.isArray(value) ? value.join(" or ") : value}`
    )
    .join(", ") || "all jobs";

export const matched = (
  operation,
) => (operation.matched_is_capped ? `more than ${count(operation.matched, "job")}` : count(operation.matched, "job"));

/**
 * Open the dialog for an operation.
 * @param {string} id the workspace
 * @param {"cancel"|"retry"|"delete"} action
 * @param {Record<string, any>} filter
 * @param {() => void} changed called when the dialog is closed after the operation was started
 */
export function bulk(id, action, filter, changed) {
  const what = WHAT[action];
  const path = workspacePath(id, "/operations");
  const closed = new AbortController();
  const key = newKey();
  const form = formState();
  let reason = "";
  let sure = action !== "delete";
  let plan = null;
  let operation = null;

  dialog(`${capital(action)} ${filter.job_id ? "the selected" : "all matching"} jobs`, view, {
    closed: () => {
      closed.abort();
      if (operation) changed();
    },
  });

  attempt(async () => {
    plan = await post(path, { action, filter, dry_run: true }, { signal: closed.signal });
    say(plan.matched ? `${matched(plan)} will be ${what.done}` : "No jobs match");
  });

  async function attempt(run) {
    Object.assign(form, { busy: true, problem: "" });
    update();
    try {
      await run();
    } catch (error) {
      if (!closed.signal.aborted) form.problem = error.message;
    } finally {
      form.busy = false;
      update();
    }
  }

  const start = () =>
    attempt(async () => {
      // The idempotency key: a repeated request after a lost response starts no second operation.
      operation = await post(path, { action, filter, ...(reason.trim() ? { reason: reason.trim() } : {}) }, {
        headers: { "Idempotency-Key": key },
      });
      every(FOLLOWED, closed.signal, async () => {
        if (operation.status !== "running") return null;
        operation = await get(`${path}/${operation.operation_id}`, { signal: closed.signal });
        update();
      });
    });

  const stop = () =>
    attempt(async () => {
      operation = await post(`${path}/${operation.operation_id}/stop`);
    });

  function view(close) {
    return [
      h("p", {}, "Filter: ", h("strong", { dir: "auto" }, inWords(filter)), `. Applies to ${what.takes}.`),
      operation ? progress() : preview(),
      form.problem && h("p", { class: "problem", role: "alert" }, form.problem),
      h(
        "div",
        { class: "buttons" },
        closeButton(close),
        !operation && plan?.matched > 0 &&
          h("button", {
            key: "run",
            type: "button",
            class: action === "retry" ? "primary" : "danger",
            "data-destructive": true,
            disabled: form.busy || !sure,
            onclick: start,
          }, `${capital(action)} ${matched(plan)}`),
        operation?.status === "running" &&
          h(
            "button",
            { key: "stop", type: "button", "data-destructive": true, disabled: form.busy, onclick: stop },
            "Stop",
          ),
      ),
    ];
  }

  function preview() {
    if (!plan) return form.problem ? null : h("p", { key: "counting" }, "Counting…");
    if (!plan.matched) return h("p", { key: "none" }, "No jobs match.");
    return h(
      "div",
      { key: "plan" },
      h("p", {}, h("strong", { class: "matched" }, matched(plan)), ` will be ${what.done}.`),
      action === "delete"
        ? [
          h("p", {}, "Their results, attempts and history are deleted too. This cannot be undone."),
          sureBox(`Delete ${matched(plan)} permanently`, sure, (now) => (sure = now)),
        ]
        : field(
          form,
          "Reason (optional)",
          input("reason", { maxlength: 1000, oninput: (event) => (reason = event.target.value) }),
        ),
    );
  }

  function progress() {
    const done = operation.status === "finished" ? operation.matched : operation.changed + operation.skipped;
    const text = operation.status === "running"
      ? ` of ${matched(operation)}. The operation continues if you close this dialog.`
      : operation.status === "stopped"
      ? ", then stopped."
      : ".";
    return h(
      "div",
      { key: "progress" },
      h("progress", { max: Math.max(operation.matched, 1), value: done, "aria-label": "Done" }),
      h(
        "p",
        { role: "status" },
        `${number(operation.changed)} ${what.done}${text}`,
        operation.skipped > 0 &&
          ` ${
            number(operation.skipped)
          } skipped, because their result would become too large or another live job has their unique key.`,
      ),
    );
  }
}
