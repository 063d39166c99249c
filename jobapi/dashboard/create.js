// The form for a new job, empty or filled from another job.

import { Problem, get, jobPath, newKey, parse, post, workspacePath } from "./api.js";
import { PRIORITIES, field, form, h, select, toUtc } from "./dom.js";

export default async function create({ id, query, signal, go, may }) {
  if (!may("member")) return { title: "Create job", node: h("p", {}, "Creating jobs requires the role member or higher.") };
  const like = query.get("like");
  const [old, stats] = await Promise.all([
    like ? get(jobPath(id, like), { signal }) : {},
    // Only to suggest existing job types.
    get(workspacePath(id, "/stats"), { signal }).catch(() => ({ by_type: {} })),
  ]);
  const text = (name, properties) => h("input", { name, autocomplete: "off", spellcheck: "false", ...properties });
  const whole = (name, value) => text(name, { inputmode: "numeric", value: value ?? "" });
  const metadata = h("textarea", { name: "metadata", rows: 10, spellcheck: "false", value: old.metadata ? JSON.stringify(old.metadata, null, 2) : "" });
  let sent = null;
  let key = null;

  const node = form(
    { class: "create" },
    [
      field("Type", text("job_type", { list: "types", required: true, value: old.job_type || "" }), "Workers claim jobs by type. Use letters, digits, _ . : -"),
      h("datalist", { id: "types" }, Object.keys(stats.by_type).slice(0, 200).map((type) => h("option", { value: type }))),
      field("Priority", select({ name: "priority" }, PRIORITIES, old.priority || "normal")),
      field("Metadata", metadata, "The input of the job, as a JSON object."),
      field("Scheduled for", h("input", { type: "datetime-local", step: 1, name: "scheduled_at" }), "In your time zone. Empty: now."),
      h(
        "details",
        { open: Boolean(like) },
        h("summary", {}, "More options"),
        field("Automatic retries", whole("max_retries", old.max_retries), "0 to 100. Empty: 3."),
        field("Timeout of an attempt, in seconds", whole("timeout_seconds", old.timeout_seconds)),
        field("Estimated duration, in seconds", whole("estimated_duration", old.estimated_duration)),
      ),
    ],
    "Create job",
    async (fields) => {
      const body = { job_type: fields.job_type.value.trim(), workspace_id: Number(id), priority: fields.priority.value };
      if (metadata.value.trim()) body.metadata = object(metadata.value);
      if (fields.scheduled_at.value) body.scheduled_at = toUtc(fields.scheduled_at.value);
      for (const name of ["max_retries", "timeout_seconds", "estimated_duration"]) {
        const value = fields[name].value.trim();
        // Anything but digits is sent unchanged; the service explains what is wrong.
        if (value) body[name] = /^\d+$/.test(value) ? Number(value) : value;
      }
      // The same key when the same body is sent again: after a lost response it is one job.
      const same = JSON.stringify(body);
      if (same !== sent) key = newKey();
      sent = same;
      const made = await post(workspacePath(id, "/jobs"), body, { headers: { "Idempotency-Key": key } });
      await go(`/${id}/jobs/${made.job_id}`);
    },
  );
  return { title: "Create job", node };
}

function object(text) {
  let value;
  try {
    value = parse(text);
  } catch (error) {
    throw wrong(`Not valid JSON: ${error.message}`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw wrong('Enter a JSON object, such as {"name": "value"}.');
  return value;
}

const wrong = (message) => new Problem(422, { detail: message, errors: { metadata: [message] } });
