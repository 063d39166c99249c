// The form of a job: a new one, empty or filled in from another, or a pending one that is edited.

import { call, get, jobPath, newKey, post, workspacePath } from "../api.js";
import { toLocal, toUtc } from "../format.js";
import {
  closeButton,
  dialog,
  ENDED,
  field,
  form,
  formState,
  input,
  jsonObject,
  link,
  PRIORITIES,
  select,
  whole,
} from "../parts.js";
import { h } from "../render.js";
import { jobTypes } from "../search.js";
import { update } from "../state.js";

const NUMBERS = ["max_retries", "timeout_seconds", "estimated_duration"];
const KEYS = ["concurrency_key", "unique_key"];
const TIMES = ["scheduled_at", "expires_at"];
const CONFLICTS = /** @type {[string, string][]} */ ([
  ["keep", "Keep it, and create no job"],
  ["replace", "Replace its metadata, priority and schedule"],
  ["refuse", "Refuse the new job"],
]);

/** @param {import("../state.js").Context} context */
export default async function jobForm({ id, rest, query, signal, go, may }) {
  const edited = rest || null;
  const like = edited || query.get("like");
  const title = edited ? "Edit job" : "Create job";
  if (!may("member")) {
    return {
      title,
      view: () => h("p", {}, `${edited ? "Editing" : "Creating"} jobs requires the role member or higher.`),
    };
  }
  const old = like ? await get(jobPath(id, like), { signal }) : {};
  if (edited && old.status !== "pending") {
    return {
      title,
      view: () =>
        h(
          "p",
          {},
          `Only a pending job can be edited; this one is ${old.status}. `,
          link(`/${id}/jobs/${edited}`, {}, "Back to the job"),
        ),
    };
  }
  const state = { form: formState(), types: /** @type {string[]} */ ([]) };
  // A copy of a live job cannot have its unique key.
  const keys = {
    concurrency_key: old.concurrency_key || "",
    unique_key: (edited || ENDED.includes(old.status)) && old.unique_key || "",
  };
  let sent = null;
  let key = null;
  // Only to suggest job types.
  jobTypes(id, { signal }).then((found) => {
    state.types = found.slice(0, 200).map(([type]) => type);
    update();
  });

  async function send(fields) {
    const body = {};
    if (fields.priority.value) body.priority = fields.priority.value;
    const metadata = fields.metadata.value.trim();
    if (metadata) body.metadata = jsonObject("metadata", metadata);
    for (const name of NUMBERS) {
      const value = fields[name].value.trim();
      if (value) body[name] = whole(value);
      else if (edited && name !== "max_retries") body[name] = null;
    }
    for (const name of KEYS) {
      const value = fields[name].value.trim();
      if (edited ? value !== keys[name] : value) body[name] = value || null;
    }
    if (edited) {
      // The metadata is merged: a key that was removed here has to be named.
      for (const name of Object.keys(old.metadata || {})) {
        if (!(name in (body.metadata || {}))) (body.metadata ??= {})[name] = null;
      }
      // The input shows seconds; an untouched time is not sent.
      for (const name of TIMES) {
        const local = fields[name].value;
        if (local !== (old[name] ? toLocal(old[name]) : "")) body[name] = toUtc(local) || null;
      }
      await call("PATCH", jobPath(id, edited), { body });
      return go(`/${id}/jobs/${edited}`);
    }
    Object.assign(body, { job_type: fields.job_type.value.trim(), workspace_id: Number(id) });
    for (const name of TIMES) if (fields[name].value) body[name] = toUtc(fields[name].value);
    if (body.unique_key) body.on_conflict = fields.on_conflict.value;
    // The same key when the same body is sent again: after a lost response it is one job.
    const same = JSON.stringify(body);
    if (same !== sent) key = newKey();
    sent = same;
    const made = await post(workspacePath(id, "/jobs"), body, { headers: { "Idempotency-Key": key } });
    await go(`/${id}/jobs/${made.job_id}`);
    if (made.existing) tellExisting(body.on_conflict === "replace");
  }

  const time = (name, label, hint) =>
    field(
      state.form,
      label,
      input(name, {
        type: "datetime-local",
        step: 1,
        value: edited && old[name] ? toLocal(old[name]) : "",
      }),
      hint,
    );
  const text = (name, label, hint) =>
    field(state.form, label, input(name, { maxlength: 200, value: keys[name] }), hint);
  const number = (name, label, hint) =>
    field(state.form, label, input(name, { inputmode: "numeric", value: old[name] ?? "" }), hint);

  return {
    title,
    view: () =>
      form(
        state.form,
        { class: "card" },
        [
          edited ? h("p", {}, "Type: ", h("strong", {}, old.job_type)) : [
            field(
              state.form,
              "Type",
              input("job_type", { list: "types", required: true, value: old.job_type || "" }),
              "Workers claim jobs by type. Use letters, digits, _ . : -",
            ),
            h("datalist", { id: "types" }, state.types.map((type) => h("option", { value: type, key: type }))),
          ],
          field(
            state.form,
            "Priority",
            select("priority", edited ? PRIORITIES : [["", "default"], ...PRIORITIES], old.priority || ""),
          ),
          field(
            state.form,
            "Metadata",
            h("textarea", {
              name: "metadata",
              rows: 10,
              spellcheck: "false",
              value: old.metadata ? JSON.stringify(old.metadata, null, 2) : "",
            }),
            "The input of the job, as a JSON object.",
          ),
          time("scheduled_at", "Scheduled for", "In your time zone. Empty: now."),
          h(
            "details",
            { open: Boolean(like) },
            h("summary", {}, "More options"),
            number(
              "max_retries",
              "Automatic retries",
              edited ? "0 to 100." : "0 to 100. Empty: the default of the type, or 3.",
            ),
            number("timeout_seconds", "Timeout of an attempt, in seconds"),
            number("estimated_duration", "Estimated duration, in seconds"),
            time(
              "expires_at",
              "Expires",
              "In your time zone. The job is cancelled if no attempt has begun by then.",
            ),
            text(
              "concurrency_key",
              "Concurrency key",
              "Jobs of a type with the same key share its limit of running jobs per key.",
            ),
            text("unique_key", "Unique key", "At most one pending or running job of a type may have it."),
            !edited &&
              field(
                state.form,
                "If a live job has the unique key",
                select("on_conflict", CONFLICTS, "keep"),
              ),
          ),
        ],
        edited ? "Save" : "Create job",
        send,
        edited && link(`/${id}/jobs/${edited}`, { class: "button" }, "Discard"),
      ),
  };
}

function tellExisting(replaced) {
  dialog("No job was created", (close) => [
    h(
      "p",
      {},
      "This live job has the same unique key. ",
      replaced ? "It got the new metadata, priority and schedule." : "It was not changed.",
    ),
    h("div", { class: "buttons" }, closeButton(close)),
  ]);
}
