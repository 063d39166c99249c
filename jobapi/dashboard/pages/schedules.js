// The schedules of a workspace: their next and last runs, a form to create and edit them, and their pause.

import { call, get, newKey, post, workspacePath } from "../api.js";
import { count, duration, time, toLocal, toUtc, wholeTime, zone } from "../format.js";
import { every, heard } from "../live.js";
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
  jsonObject,
  link,
  pager,
  PRIORITIES,
  select,
  table,
  unseen,
  whole,
} from "../parts.js";
import { h } from "../render.js";
import { jobTypes } from "../search.js";
import { say, update } from "../state.js";

const LIMIT = 50;
const REFRESH = 5000;
const OVERLAPS = /** @type {[string, string][]} */ ([
  ["allow", "Create another one"],
  ["skip", "Skip the run"],
  ["replace", "Cancel it first"],
]);
const CATCH_UPS = /** @type {[string, string][]} */ ([
  ["none", "None"],
  ["last", "The last one"],
  ["all", "All, 100 at most"],
]);
const OUTCOMES = {
  existing: "a live job had the unique key",
  overlap: "skipped: a job was live",
  queue_full: "skipped: the queue was full",
  missed: "missed in an outage",
};
const KEYS = ["concurrency_key", "unique_key"];
const NUMBERS = ["max_retries", "timeout_seconds"];
const TIMES = ["starts_at", "ends_at"];

/** @param {import("../state.js").Context} context */
export default async function schedules({ id, query, signal, may, go }) {
  const list = workspacePath(id, `/schedules?limit=${LIMIT}&page=${Number(query.get("page")) || 1}`);
  const path = (schedule, more = "") => workspacePath(id, `/schedules/${schedule.schedule_id}${more}`);
  const state = { found: await get(list, { signal }), types: /** @type {string[]} */ ([]) };
  // Only to suggest job types.
  jobTypes(id, { signal }).then((found) => {
    state.types = found.slice(0, 200).map(([type]) => type);
    update();
  });

  async function read() {
    state.found = await get(list, { signal });
    heard();
    update();
  }

  // Actions

  const act = (title, text, label, run, more = {}) => confirm({ title, text, label, danger: false, run, ...more });

  const runNow = (schedule) => {
    const key = newKey();
    act(
      `Run ${schedule.name} now?`,
      "Its job is created now, in your name. The next runs stay as they are.",
      "Run",
      async () => {
        const made = await post(path(schedule, "/run"), undefined, { headers: { "Idempotency-Key": key } });
        await go(`/${id}/jobs/${made.job_id}`);
        say(made.existing ? "No job was created: this live job has the unique key" : "The job was created");
      },
    );
  };

  const pause = (schedule) =>
    act(
      `Pause ${schedule.name}?`,
      "It creates no jobs until it is resumed. Its jobs continue.",
      "Pause",
      async (reason) => {
        await post(path(schedule, "/pause"), reason ? { reason } : undefined);
        await read();
        say(`${schedule.name} is paused`);
      },
      { reason: true },
    );

  const resume = (schedule) =>
    act(
      `Resume ${schedule.name}?`,
      "It continues from now. It does not catch up on the time between.",
      "Resume",
      async () => {
        await post(path(schedule, "/resume"));
        await read();
        say(`${schedule.name} is resumed`);
      },
    );

  const remove = (schedule, closeForm) =>
    confirm({
      title: `Delete ${schedule.name}?`,
      text: "It creates no more jobs. The jobs that it has created stay.",
      label: "Delete",
      run: async () => {
        await call("DELETE", path(schedule));
        closeForm();
        await read();
        say("Deleted");
      },
    });

  /** @param {any} [schedule] none: a new one */
  function edit(schedule) {
    const editing = formState();
    const old = schedule || { job: {}, timezone: here(), overlap: "allow", catch_up: "last", jitter_seconds: 0 };
    let sent = null;
    let key = null;

    async function save(fields, close) {
      const body = bodyOf(fields, schedule ? old : null);
      if (schedule) await call("PATCH", path(schedule), { body });
      else {
        // The same key when the same body is sent again: after a lost response it is one schedule.
        const same = JSON.stringify(body);
        if (same !== sent) key = newKey();
        sent = same;
        await post(workspacePath(id, "/schedules"), body, { headers: { "Idempotency-Key": key } });
      }
      close();
      await read();
      say("Saved");
    }

    dialog(
      schedule ? `Edit ${schedule.name}` : "Create a schedule",
      (close) =>
        form(
          editing,
          {},
          inputs(editing, old, state.types),
          schedule ? "Save" : "Create",
          (fields) => save(fields, close),
          [
            closeButton(close, "Discard"),
            schedule &&
            h(
              "button",
              { type: "button", class: "danger", onclick: () => remove(schedule, close) },
              "Delete…",
            ),
          ],
        ),
    );
  }

  // The view

  function row(schedule) {
    const jobs = address(`/${id}/jobs`, new URLSearchParams({ schedule_id: schedule.schedule_id }));
    const button = (label, act) =>
      h("button", {
        key: label,
        type: "button",
        class: "small",
        "aria-label": `${label} ${schedule.name}`,
        onclick: () => act(schedule),
      }, label);
    const stopped = schedule.paused || schedule.suspended_reason;
    return h(
      "tr",
      { key: schedule.schedule_id, role: "row" },
      cell(
        "Name",
        link(
          jobs,
          { class: "row", id: `row-${schedule.schedule_id}`, title: `Jobs of ${schedule.name}` },
          h("span", { class: "name", dir: "auto" }, schedule.name),
        ),
        h("span", { class: "type hint" }, schedule.job.job_type),
      ),
      cell("Times", times(schedule)),
      cell("State", stateOf(schedule)),
      cell("Next run", nextRuns(schedule)),
      cell("Last run", lastRun(schedule, id)),
      may("member") &&
        cell(
          "",
          h(
            "span",
            { class: "buttons" },
            button("Run", runNow),
            stopped ? button("Resume", resume) : button("Pause", pause),
            button("Edit", edit),
          ),
        ),
    );
  }

  return {
    title: "Schedules",
    watched: true,
    live: (signal) => {
      heard();
      every(REFRESH, signal, read);
    },
    view: () => [
      h(
        "div",
        { class: "toolbar" },
        h("p", { class: "hint" }, "Schedules create jobs at times of a time zone, or at regular intervals."),
        may("member") && h("button", { type: "button", class: "small", onclick: () => edit() }, "Create a schedule…"),
      ),
      state.found.data.length
        ? [
          h("p", { class: "hint" }, count(state.found.pagination.total, "schedule")),
          table(
            [
              "Name",
              "Times",
              "State",
              ["Next run ", h("span", { class: "zone" }, zone())],
              ["Last run ", h("span", { class: "zone" }, zone())],
              may("member") && unseen("Action"),
            ].filter(Boolean),
            state.found.data.map(row),
            { class: "schedules" },
          ),
        ]
        : empty("No schedules yet."),
      pager(`/${id}/schedules`, query, state.found.pagination),
    ],
  };
}

/** When a schedule runs, in words. */
function times(schedule) {
  if (schedule.every_seconds) return `every ${duration(schedule.every_seconds)}`;
  return [h("code", {}, schedule.cron), " ", h("span", { class: "hint" }, schedule.timezone)];
}

function stateOf(schedule) {
  const over = !schedule.next_run_at;
  const [name, kind] = schedule.suspended_reason
    ? ["suspended", "failed"]
    : schedule.paused
    ? ["paused", "paused"]
    : over
    ? ["ended", ""]
    : ["active", "active"];
  const reason = schedule.suspended_reason || schedule.paused_reason;
  return [
    h("span", { class: `badge ${kind}` }, name),
    reason && h("span", { class: "reason hint", dir: "auto" }, reason),
  ];
}

/** The next run, in the viewer's zone and the schedule's, and those after it. */
function nextRuns(schedule) {
  if (!schedule.next_run_at) return "–";
  return [
    time(schedule.next_run_at),
    elsewhere(schedule, schedule.next_run_at),
    schedule.upcoming.length > 1 &&
    h(
      "details",
      {},
      h("summary", {}, "More"),
      h(
        "ol",
        { class: "upcoming" },
        schedule.upcoming.slice(1).map((at) =>
          h("li", { key: at }, h("span", {}, wholeTime(at)), elsewhere(schedule, at))
        ),
      ),
    ),
  ];
}

/** A time in the schedule's zone, if that shows another one than the viewer's. */
function elsewhere({ timezone, every_seconds }, iso) {
  if (every_seconds) return null;
  const at = new Date(iso);
  const there = inZone(at, timezone);
  return there === inZone(at, undefined)
    ? null
    : h("span", { class: "there hint" }, `${there} in ${timezone.replaceAll("_", " ")}`);
}

/** @param {Date} at @param {string|undefined} timeZone undefined: the viewer's */
function inZone(at, timeZone) {
  try {
    return new Intl.DateTimeFormat("en-GB", {
      timeZone,
      day: "numeric",
      month: "short",
      hour: "2-digit",
      minute: "2-digit",
      hourCycle: "h23",
    }).format(at);
  } catch {
    // A zone that this browser does not know.
    return "";
  }
}

function lastRun({ last_run: last }, id) {
  if (!last) return "–";
  const text = OUTCOMES[last.outcome];
  return [
    last.job_id ? link(`/${id}/jobs/${last.job_id}`, { title: last.job_id }, time(last.ran_at)) : time(last.ran_at),
    text && h("span", { class: "reason hint" }, text),
  ];
}

const here = () => Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
const zones = () => (Intl.supportedValuesOf ? Intl.supportedValuesOf("timeZone") : []);

/** The inputs of all fields of a schedule. */
function inputs(editing, old, types) {
  const { job } = old;
  const group = (legend, ...content) => h("fieldset", { class: "fields" }, h("legend", {}, legend), content);
  const text = (name, label, value, hint, more = {}) =>
    field(editing, label, input(name, { value: value ?? "", ...more }), hint);
  const at = (name, label, hint) =>
    text(name, label, old[name] ? toLocal(old[name]) : "", hint, { type: "datetime-local", step: 1 });
  const ofJob = (name, label, hint, more = {}) => text(`job.${name}`, label, job[name], hint, more);
  const digits = { inputmode: "numeric" };
  return [
    text("name", "Name", old.name, "Unique in the workspace.", { autofocus: true, maxlength: 200 }),
    group(
      "When",
      h(
        "div",
        { class: "two" },
        text("cron", "Cron expression", old.cron, "Minute, hour, day of month, month, day of week: 30 2 * * *", {
          maxlength: 200,
        }),
        text("every_seconds", "Or every so many seconds", old.every_seconds, "Instead of an expression.", digits),
      ),
      text("timezone", "Time zone", old.timezone, "Of the expression.", { list: "zones", maxlength: 64 }),
      h("datalist", { id: "zones" }, zones().map((name) => h("option", { value: name, key: name }))),
    ),
    group(
      "Job",
      ofJob("job_type", "Type", "Workers claim jobs by type. Use letters, digits, _ . : -", { list: "schedule-types" }),
      h("datalist", { id: "schedule-types" }, types.map((type) => h("option", { value: type, key: type }))),
      field(
        editing,
        "Priority",
        select("job.priority", [["", "default"], ...PRIORITIES], job.priority || "", { id: "schedule-priority" }),
      ),
      field(
        editing,
        "Metadata",
        h("textarea", {
          name: "job.metadata",
          id: "schedule-metadata",
          rows: 5,
          spellcheck: "false",
          value: job.metadata ? JSON.stringify(job.metadata, null, 2) : "",
        }),
        "The input of each job, as a JSON object.",
      ),
    ),
    group(
      "Runs",
      field(
        editing,
        "If a job of the schedule is still pending or running",
        select("overlap", OVERLAPS, old.overlap),
      ),
      field(editing, "After an outage, make up for", select("catch_up", CATCH_UPS, old.catch_up)),
    ),
    h(
      "details",
      {},
      h("summary", {}, "More options"),
      text("jitter_seconds", "Delay each job by up to, in seconds", old.jitter_seconds, "", digits),
      at("starts_at", "Starts", "In your time zone. Empty: now."),
      at("ends_at", "Ends", "In your time zone. Empty: never."),
      ofJob("max_retries", "Automatic retries", "0 to 100. Empty: the default of the type, or 3.", digits),
      ofJob("timeout_seconds", "Timeout of an attempt, in seconds", "", digits),
      ofJob(
        "concurrency_key",
        "Concurrency key",
        "Jobs of a type with the same key share its limit of running jobs per key.",
        { maxlength: 200 },
      ),
      ofJob("unique_key", "Unique key", "While a job with it is live, a run creates none.", { maxlength: 200 }),
    ),
  ];
}

/** What is sent: a new schedule, or with `old` the merge patch of what was changed in the dialog. */
function bodyOf(fields, old) {
  const value = (name) => fields[name].value.trim();
  const given = {
    name: value("name"),
    cron: value("cron").split(/\s+/).join(" ") || null,
    every_seconds: value("every_seconds") ? whole(value("every_seconds")) : null,
    timezone: value("timezone") || null,
    overlap: value("overlap"),
    catch_up: value("catch_up"),
    jitter_seconds: value("jitter_seconds") ? whole(value("jitter_seconds")) : 0,
  };
  const job = { job_type: value("job.job_type"), priority: value("job.priority") || null };
  for (const name of KEYS) job[name] = value(`job.${name}`) || null;
  for (const name of NUMBERS) job[name] = value(`job.${name}`) ? whole(value(`job.${name}`)) : null;
  const metadata = value("job.metadata") ? jsonObject("job.metadata", value("job.metadata")) : null;
  const body = changed(given, old);
  for (const name of TIMES) {
    // The input shows seconds; an untouched time is not sent.
    const local = fields[name].value;
    if (local !== (old?.[name] ? toLocal(old[name]) : "")) body[name] = toUtc(local) || null;
  }
  const patch = changed(job, old?.job);
  if (!old) {
    return { ...body, job: metadata ? { ...patch, metadata } : patch };
  }
  if (JSON.stringify(metadata) !== JSON.stringify(old.job.metadata ?? null)) {
    // The metadata is merged: a key that was removed here has to be named.
    const gone = Object.keys(old.job.metadata || {}).filter((name) => !(name in (metadata || {})));
    patch.metadata = metadata && { ...metadata, ...Object.fromEntries(gone.map((name) => [name, null])) };
  }
  return Object.keys(patch).length ? { ...body, job: patch } : body;
}

/** The values that differ from those of `old`, or that are not null if there is none. */
const changed = (given, old) =>
  Object.fromEntries(Object.entries(given).filter(([name, value]) => value !== (old?.[name] ?? null)));
