// A new job, from nothing or like another.

import { Problem, get, jobPath, newKey, parse, post, workspacePath } from "./api.js";
import { PRIORITIES, field, form, h, select, toUtc } from "./dom.js";

export default async function create({ id, query, signal, go, may }) {
  if (!may("member")) return { title: "Create job", node: h("p", {}, "This needs the role member or higher.") };
  const like = query.get("like");
  const [old, stats] = await Promise.all([
    like ? get(jobPath(id, like), { signal }) : {},
    // Only to offer the types that there are.
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
      field("Type", text("job_type", { list: "types", required: true, value: old.job_type || "" }), "What workers know it by: letters, digits, _ . : -"),
      h("datalist", { id: "types" }, Object.keys(stats.by_type).slice(0, 200).map((type) => h("option", { value: type }))),
      field("Priority", select({ name: "priority" }, PRIORITIES, old.priority || "normal")),
      field("Metadata", metadata, "A JSON object: what the job needs to know."),
      field("Not before", h("input", { type: "datetime-local", step: 1, name: "scheduled_at" }), "In your own time zone; empty: now."),
      h(
        "details",
        { open: Boolean(like) },
        h("summary", {}, "More"),
        field("Automatic retries", whole("max_retries", old.max_retries), "0 to 100; 3 where it is empty."),
        field("An attempt may run for, in seconds", whole("timeout_seconds", old.timeout_seconds)),
        field("Expected to take, in seconds", whole("estimated_duration", old.estimated_duration)),
      ),
    ],
    "Create job",
    async (fields) => {
      const body = { job_type: fields.job_type.value.trim(), workspace_id: Number(id), priority: fields.priority.value };
      if (metadata.value.trim()) body.metadata = object(metadata.value);
      if (fields.scheduled_at.value) body.scheduled_at = toUtc(fields.scheduled_at.value);
      for (const name of ["max_retries", "timeout_seconds", "estimated_duration"]) {
        const value = fields[name].value.trim();
        // What is no number is sent as it is: the service says what is wrong with it.
        if (value) body[name] = /^\d+$/.test(value) ? Number(value) : value;
      }
      // Sent again, after no answer came, it is still one job.
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
    throw wrong(`This is no JSON: ${error.message}`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw wrong('Write an object: {"name": "value"}.');
  return value;
}

const wrong = (message) => new Problem(422, { detail: message, errors: { metadata: [message] } });
