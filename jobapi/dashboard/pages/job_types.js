// The job types of a workspace: how each is doing, its limits and defaults, and its pause.

import { call, get, post, Problem, workspacePath } from "../api.js";
import { count, duration, number } from "../format.js";
import { follow } from "../live.js";
import {
  address,
  cell,
  closeButton,
  confirm,
  dialog,
  empty,
  field,
  form,
  formState,
  input,
  link,
  pager,
  PRIORITIES,
  select,
  table,
  unseen,
  whole,
} from "../parts.js";
import { h } from "../render.js";
import { say, update } from "../state.js";

const LIMIT = 50;
const REST = 2000;

// The settings that are numbers: name, label, hint.
const LIMITS = /** @type {[string, string, string?][]} */ ([
  ["max_running", "Running jobs", "1 to 1,000. Empty: no limit."],
  [
    "max_running_per_key",
    "Running jobs per concurrency key",
    "1 to 1,000; with 1, jobs of a key run one after the other. Empty: no limit.",
  ],
  [
    "max_pending",
    "Pending jobs",
    "1 to 10,000,000; beyond it, creating a job fails with queue-full. Empty: no limit.",
  ],
]);
const DEFAULTS = /** @type {[string, string, string?][]} */ ([
  ["max_retries", "Automatic retries", "0 to 100. Empty: the service's default."],
  ["timeout_seconds", "Timeout of an attempt, in seconds", "Empty: none."],
  [
    "start_within_seconds",
    "Start within, in seconds",
    "A job that has not started by then is cancelled. Counted from when it is due. Empty: jobs do not expire.",
  ],
]);
const BACKOFFS = /** @type {[string, string, string?][]} */ ([
  ["retry_backoff_seconds", "Backoff before the first retry, in seconds", "Empty: the service's default."],
  ["retry_backoff_max_seconds", "Longest backoff, in seconds", "Empty: the service's default."],
]);
const NUMBERS = [...LIMITS, ...DEFAULTS, ...BACKOFFS].map(([name]) => name);

/** @param {import("../state.js").Context} context */
export default async function jobTypes({ id, query, signal, may }) {
  const list = workspacePath(id, `/job-types?limit=${LIMIT}&page=${Number(query.get("page")) || 1}`);
  const path = (type, more = "") => workspacePath(id, `/job-types/${encodeURIComponent(type)}${more}`);
  const state = { found: await get(list, { signal }) };

  async function read() {
    state.found = await get(list, { signal });
    update();
  }

  // Show the answer to a change at once.
  function put(changed) {
    const data = state.found.data.map((each) => (each.job_type === changed.job_type ? changed : each));
    state.found = { ...state.found, data };
    update();
  }

  // Actions

  const pause = ({ job_type }) =>
    confirm({
      title: `Pause ${job_type}?`,
      text:
        "Workers get no more jobs of this type until it is resumed. Running jobs continue, and jobs can be created.",
      label: "Pause",
      danger: false,
      reason: true,
      run: async (reason) => {
        put(await post(path(job_type, "/pause"), reason ? { reason } : undefined));
        say(`${job_type} is paused`);
      },
    });

  const resume = ({ job_type }) =>
    confirm({
      title: `Resume ${job_type}?`,
      text: "Workers get jobs of this type again.",
      label: "Resume",
      danger: false,
      run: async () => {
        put(await post(path(job_type, "/resume")));
        say(`${job_type} is resumed`);
      },
    });

  /** @param {any} [type] none: a type that has no jobs yet */
  function edit(type) {
    const editing = formState();
    const old = type || {};

    async function save(fields, close) {
      const name = type ? type.job_type : nameOf(fields.job_type.value.trim());
      const body = changes(old, fields);
      if (!type && !Object.keys(body).length) {
        throw new Problem(422, { detail: "Set at least one limit or default." });
      }
      const changed = await call("PATCH", path(name), { body });
      close();
      if (type) put(changed);
      else await read();
      say("Saved");
    }

    dialog(
      type ? `Settings of ${type.job_type}` : "Add a job type",
      (close) =>
        form(
          editing,
          {},
          [
            !type &&
            field(
              editing,
              "Type",
              input("job_type", { id: "type-name", autofocus: true }),
              "Its settings apply from its first job on. Use letters, digits, _ . : -",
            ),
            inputs(editing, old),
          ],
          "Save",
          (fields) => save(fields, close),
          closeButton(close, "Discard"),
        ),
    );
  }

  // The view

  function row(type) {
    const jobs = address(`/${id}/jobs`, new URLSearchParams({ job_type: type.job_type }));
    const count = (status, n, of) => {
      const there = address(`/${id}/jobs`, new URLSearchParams({ job_type: type.job_type, status }));
      return [n ? link(there, { "aria-label": `${number(n)} ${status}` }, number(n)) : "0", of && ` of ${number(of)}`];
    };
    const button = (label, act) =>
      h("button", {
        key: label,
        type: "button",
        class: "small",
        "aria-label": `${label} ${type.job_type}`,
        onclick: () => act(type),
      }, label);
    return h(
      "tr",
      { key: type.job_type, role: "row" },
      cell(
        "Type",
        link(jobs, { class: "row", id: `row-${type.job_type}` }, h("span", { class: "type" }, type.job_type)),
      ),
      cell(
        "State",
        h("span", { class: `badge ${type.paused ? "paused" : "active"}` }, type.paused ? "paused" : "active"),
        type.paused_reason && h("span", { class: "reason hint", dir: "auto" }, type.paused_reason),
      ),
      cell("Pending", count("pending", type.pending)),
      cell("Running", count("running", type.running, type.max_running)),
      cell("Oldest due", duration(type.oldest_due_seconds)),
      cell("Live workers", number(type.live_workers)),
      cell("Limits and defaults", limits(type)),
      may("member") &&
        cell(
          "",
          hasAddress(type.job_type) && h(
            "span",
            { class: "buttons" },
            type.paused ? button("Resume", resume) : button("Pause", pause),
            may("owner") && button("Edit", edit),
          ),
        ),
    );
  }

  return {
    title: "Job types",
    watched: true,
    live: (signal) => {
      const again = follow(id, signal, { read, rest: REST, events: () => again() });
    },
    view: () => [
      h(
        "div",
        { class: "toolbar" },
        h("p", { class: "hint" }, "Job types that have jobs or settings."),
        may("owner") &&
          h("button", { type: "button", class: "small", onclick: () => edit() }, "Add a job type…"),
      ),
      state.found.data.length
        ? table(
          [
            "Type",
            "State",
            "Pending",
            "Running",
            "Oldest due",
            "Live workers",
            "Limits and defaults",
            may("member") && unseen("Action"),
          ].filter(Boolean),
          state.found.data.map(row),
          { class: "job-types" },
        )
        : empty("No job types yet. A type appears here with its first job."),
      pager(`/${id}/job-types`, query, state.found.pagination),
    ],
  };
}

/** The settings of a type in words, without those that other columns show. */
function limits(type) {
  const each = [
    type.max_running_per_key && `max ${number(type.max_running_per_key)} running per key`,
    type.rate_limit && `${count(type.rate_limit.starts, "start")} per ${duration(type.rate_limit.seconds)}`,
    type.max_pending && `max ${number(type.max_pending)} pending`,
    type.start_within_seconds && `start within ${duration(type.start_within_seconds)}`,
    type.priority && `priority ${type.priority}`,
    type.max_retries !== null && (type.max_retries === 1 ? "1 retry" : `${type.max_retries} retries`),
    type.timeout_seconds && `timeout ${duration(type.timeout_seconds)}`,
    type.retry_backoff_seconds && `backoff from ${duration(type.retry_backoff_seconds)}`,
    type.retry_backoff_max_seconds && `backoff up to ${duration(type.retry_backoff_max_seconds)}`,
  ].filter(Boolean);
  return each.length ? each.join(", ") : "–";
}

/** The inputs of all settings of a type. */
function inputs(editing, old) {
  const numbers = (all) =>
    all.map(([name, label, hint]) =>
      field(editing, label, input(name, { inputmode: "numeric", value: old[name] ?? "" }), hint)
    );
  const group = (legend, ...content) => h("fieldset", { class: "fields" }, h("legend", {}, legend), content);
  const rate = (part, label) =>
    field(
      editing,
      label,
      input(`rate_limit.${part}`, {
        id: `rate-${part}`,
        inputmode: "numeric",
        value: old.rate_limit?.[part] ?? "",
      }),
    );
  return [
    group(
      "Limits",
      numbers(LIMITS),
      h(
        "div",
        { class: "two" },
        rate("starts", "Rate limit: starts"),
        rate("seconds", "Rate limit: period in seconds"),
      ),
    ),
    group(
      "Defaults of new jobs",
      field(
        editing,
        "Priority",
        select("priority", [["", "normal (default)"], ...PRIORITIES], old.priority || "", { id: "type-priority" }),
      ),
      numbers(DEFAULTS),
    ),
    group("Automatic retries", numbers(BACKOFFS)),
    group(
      "Pause",
      h(
        "label",
        {},
        h("input", { type: "checkbox", name: "paused", checked: Boolean(old.paused) }),
        " Paused: workers get no jobs of this type",
      ),
      field(
        editing,
        "Reason of the pause",
        input("paused_reason", { maxlength: 1000, value: old.paused_reason || "" }),
      ),
    ),
  ];
}

/** The merge patch of what was changed in the dialog: another user may have changed the rest. */
function changes(old, fields) {
  const body = {};
  const note = (name, value) => {
    if (value !== (old[name] ?? null)) body[name] = value;
  };
  for (const name of NUMBERS) note(name, numberOf(fields[name]));
  note("priority", fields.priority.value || null);
  note("paused_reason", fields.paused_reason.value.trim() || null);
  if (fields.paused.checked !== Boolean(old.paused)) body.paused = fields.paused.checked;
  const rate = { starts: numberOf(fields["rate_limit.starts"]), seconds: numberOf(fields["rate_limit.seconds"]) };
  const missing = Object.keys(rate).filter((part) => rate[part] === null);
  if (missing.length === 1) {
    throw wrong(`rate_limit.${missing[0]}`, "A rate limit needs both numbers. Leave both empty for no limit.");
  }
  if (missing.length) note("rate_limit", null);
  else if (rate.starts !== old.rate_limit?.starts || rate.seconds !== old.rate_limit?.seconds) body.rate_limit = rate;
  return body;
}

const numberOf = (node) => (node.value.trim() === "" ? null : whole(node.value.trim()));

// Browsers resolve these names in URLs, even if they are encoded: a request would be about the workspace.
const hasAddress = (type) => type !== "." && type !== "..";

function nameOf(text) {
  if (!/^[A-Za-z0-9_.:-]{1,100}$/.test(text)) {
    throw wrong("job_type", "1 to 100 letters, digits, _ . : or -");
  }
  if (!hasAddress(text)) throw wrong("job_type", "A type with this name cannot have settings.");
  return text;
}

const wrong = (name, message) => new Problem(422, { detail: message, errors: { [name]: [message] } });
