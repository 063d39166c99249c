// The form of a job: a new one, empty or filled in from another, or a pending one that is edited.

import { call, get, jobPath, newKey, parse, post, Problem, workspacePath } from "../api.js";
import { toLocal, toUtc } from "../format.js";
import { field, form, formState, input, link, PRIORITIES, select, whole } from "../parts.js";
import { h } from "../render.js";
import { jobTypes } from "../search.js";
import { update } from "../state.js";

const NUMBERS = ["max_retries", "timeout_seconds", "estimated_duration"];

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
  let sent = null;
  let key = null;
  // Only to suggest job types.
  jobTypes(id, { signal }).then((found) => {
    state.types = found.slice(0, 200).map(([type]) => type);
    update();
  });

  async function send(fields) {
    const body = { priority: fields.priority.value };
    const metadata = fields.metadata.value.trim();
    if (metadata) body.metadata = object(metadata);
    for (const name of NUMBERS) {
      const value = fields[name].value.trim();
      if (value) body[name] = whole(value);
      else if (edited && name !== "max_retries") body[name] = null;
    }
    const at = toUtc(fields.scheduled_at.value);
    if (edited) {
      // The metadata is merged: a key that was removed here has to be named.
      for (const name of Object.keys(old.metadata || {})) {
        if (!(name in (body.metadata || {}))) (body.metadata ??= {})[name] = null;
      }
      // The input shows seconds; an untouched time is not sent.
      if (fields.scheduled_at.value !== (old.scheduled_at ? toLocal(old.scheduled_at) : "")) {
        body.scheduled_at = at || null;
      }
      await call("PATCH", jobPath(id, edited), { body });
      return go(`/${id}/jobs/${edited}`);
    }
    Object.assign(body, { job_type: fields.job_type.value.trim(), workspace_id: Number(id) });
    if (at) body.scheduled_at = at;
    // The same key when the same body is sent again: after a lost response it is one job.
    const same = JSON.stringify(body);
    if (same !== sent) key = newKey();
    sent = same;
    const made = await post(workspacePath(id, "/jobs"), body, { headers: { "Idempotency-Key": key } });
    return go(`/${id}/jobs/${made.job_id}`);
  }

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
          field(state.form, "Priority", select("priority", PRIORITIES, old.priority || "normal")),
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
          field(
            state.form,
            "Scheduled for",
            input("scheduled_at", {
              type: "datetime-local",
              step: 1,
              value: edited && old.scheduled_at ? toLocal(old.scheduled_at) : "",
            }),
            "In your time zone. Empty: now.",
          ),
          h(
            "details",
            { open: Boolean(like) },
            h("summary", {}, "More options"),
            number("max_retries", "Automatic retries", edited ? "0 to 100." : "0 to 100. Empty: 3."),
            number("timeout_seconds", "Timeout of an attempt, in seconds"),
            number("estimated_duration", "Estimated duration, in seconds"),
          ),
        ],
        edited ? "Save" : "Create job",
        send,
        edited && link(`/${id}/jobs/${edited}`, { class: "button" }, "Discard"),
      ),
  };
}

function object(text) {
  let value;
  try {
    value = parse(text);
  } catch (error) {
    throw wrong(`Not valid JSON: ${error.message}`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw wrong('Enter a JSON object, such as {"name": "value"}.');
  }
  return value;
}

const wrong = (message) => new Problem(422, { detail: message, errors: { metadata: [message] } });
