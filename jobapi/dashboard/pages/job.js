// One job: why it is as it is, its fields, attempts and history, and the actions on it.

import { ask as request, call, get, jobPath, parse, post, problemOf, workspacePath } from "../api.js";
import { duration, moment, number, ran, running, wholeTime } from "../format.js";
import { json, jsonState } from "../json.js";
import { jobLog } from "../log.js";
import { every, follow, wake } from "../live.js";
import { address, badge, bar, capital, cell, confirm, copyButton, empty, ENDED, link, table, who } from "../parts.js";
import { names } from "../names.js";
import { h } from "../render.js";
import { say, update } from "../state.js";

const PROGRESS = 2000;
const EXPLAINED = 5000;
const EXPLAINED_AGAIN = 2000;
const PAGE = 100;

// The event kinds about jobs, with their names in a job's history.
const EVENTS = {
  created: "Created",
  started: "Started by hand",
  claimed: "Claimed",
  progressed: "Progress",
  succeeded: "Succeeded",
  failed: "Failed",
  retried: "Queued again for a retry",
  lease_expired: "Lease expired",
  cancelled: "Cancelled",
  edited: "Edited",
  released: "Released by the worker",
  deleted: "Deleted",
  timed_out: "Timed out",
};

/** @param {import("../state.js").Context} context */
export default async function job({ id, rest: name, signal, go, may }) {
  const path = (more = "") => jobPath(id, name, more);
  // What is shown besides the job: attempts, the newest events, and the job's row of the list, which
  // has the worker and the cause of the error.
  const others = () =>
    Promise.all([
      get(path("/attempts"), { signal }),
      get(path(`/events?order=desc&limit=${PAGE}`), { signal }),
      get(workspacePath(id, `/jobs?light=true&job_id=${encodeURIComponent(name)}`), { signal }),
    ]);
  // Null if an older service cannot explain.
  const readExplanation = () =>
    get(path("/explain"), { signal }).catch((error) => error.status === 404 ? null : Promise.reject(error));
  const [first, [attempts, events, rows], explained] = await Promise.all([
    get(path(), { signal }),
    others(),
    readExplanation(),
  ]);

  const state = {
    job: first,
    row: rows.data[0],
    attempts: attempts.data,
    /** The history, newest first. */
    events: events.data,
    cursor: events.pagination.next_cursor,
    explained,
    deleted: false,
    /** How long jobs of this type usually run, in seconds. */
    usual: null,
    metadata: jsonState(),
    result: jsonState(),
  };
  const log = jobLog({ path: path("/logs"), signal, status: () => state.deleted ? null : state.job.status });
  let etag = null;
  // Gets a "wake" when the job has another status, which needs another explanation.
  const changed = new EventTarget();

  // Read the job again and, if it has changed, its attempts and newest events.
  async function read() {
    if (state.deleted) return;
    const response = await request("GET", path(), { signal, headers: etag ? { "If-None-Match": etag } : {} });
    if (response.status === 304) return;
    if (response.status === 404) return gone();
    if (!response.ok) throw await problemOf(response);
    const now = parse(await response.text());
    const [attempts, events, rows] = await others();
    etag = response.headers.get("ETag");
    if (now.status !== state.job.status) {
      say(`The job is ${now.status}`);
      wake(changed);
    }
    state.job = now;
    state.attempts = attempts.data;
    state.row = rows.data[0];
    add(events);
    update();
  }

  // The newest events, in front of those that are there.
  function add({ data, pagination }) {
    const there = new Set(state.events.map((event) => event.event_id));
    const newer = data.filter((event) => !there.has(event.event_id));
    if (newer.length < data.length || !pagination.next_cursor) state.events = [...newer, ...state.events];
    else {
      // All of the page is new, so there may be others between it and those that are shown.
      state.events = data;
      state.cursor = pagination.next_cursor;
    }
  }

  function gone() {
    state.deleted = true;
    say("The job was deleted");
  }

  async function older() {
    const found = await get(path(`/events?order=desc&limit=${PAGE}&cursor=${encodeURIComponent(state.cursor)}`), {
      signal,
    });
    state.events = [...state.events, ...found.data];
    state.cursor = found.pagination.next_cursor;
    update();
  }

  function live(signal) {
    const again = follow(id, signal, {
      read,
      rest: 700,
      events(found) {
        const mine = found.filter((event) => event.job_id === name);
        if (mine.some((event) => event.kind === "deleted")) return gone();
        for (const event of mine) {
          if (event.kind === "progressed" && state.job.status === "running") progressed(event.data);
        }
        if (mine.length) again();
      },
    });
    log.live(signal);
    // Events tell of every ten percent only.
    every(PROGRESS, signal, async () => {
      if (state.job.status !== "running" || state.deleted) return null;
      const found = await get(path("/status"), { signal });
      if (found.status !== state.job.status) again();
      else progressed(found);
    });
    // While the job waits or runs, and once more after its end.
    let last = Date.now();
    every(EXPLAINED, signal, async () => {
      const { explained: before, job, deleted } = state;
      if (!before || deleted || (ENDED.includes(job.status) && before.status === job.status)) return null;
      const wait = last + EXPLAINED_AGAIN - Date.now();
      if (wait > 0) return wait;
      last = Date.now();
      const now = await readExplanation();
      if (!now) return;
      state.explained = now;
      update();
      if (now.status !== state.job.status) again();
    }, changed);
    get(workspacePath(id, `/stats?job_type=${encodeURIComponent(first.job_type)}`), { signal })
      .then((stats) => {
        state.usual = stats.durations[first.job_type]?.median_seconds ?? null;
        update();
      })
      .catch(() => {});
  }

  function progressed({ progress_percent, progress_message }) {
    state.job = { ...state.job, result: { ...state.job.result, progress_percent, progress_message } };
    update();
  }

  // Actions

  const DO = {
    cancel: () =>
      confirm({
        title: "Cancel this job?",
        text: "The result so far is kept. A worker that runs the job learns of it from its next report.",
        label: "Cancel the job",
        keep: "Keep it",
        reason: true,
        run: async (reason) => {
          await post(path("/cancel"), reason ? { reason } : undefined);
          await read();
        },
      }),
    retry: () =>
      confirm({
        title: "Retry this job?",
        text: "The job becomes pending and due now. Its result will be replaced.",
        label: "Retry the job",
        danger: false,
        reason: true,
        run: async (reason) => {
          await post(path("/retry"), reason ? { reason } : undefined);
          await read();
        },
      }),
    delete: () =>
      confirm({
        title: "Delete this job?",
        text: "Its result, attempts, log and history are deleted too. This cannot be undone.",
        label: "Delete the job",
        keep: "Keep it",
        sure: "Delete the job permanently",
        run: async () => {
          await call("DELETE", path());
          await go(`/${id}/jobs`);
        },
      }),
  };

  function actions() {
    const { status } = state.job;
    const verbs = [
      ["pending", "running"].includes(status) && may("member") && "cancel",
      ["failed", "cancelled"].includes(status) && may("member") && "retry",
      ENDED.includes(status) && may("owner") && "delete",
    ];
    return h(
      "div",
      { class: "buttons" },
      status === "pending" && may("member") &&
        link(`/${id}/jobs/${name}/edit`, { class: "button", key: "edit" }, "Edit"),
      verbs.filter(Boolean).map((verb) =>
        h("button", {
          key: verb,
          type: "button",
          class: verb === "delete" ? "danger" : null,
          "data-destructive": verb !== "retry",
          onclick: DO[verb],
        }, capital(verb))
      ),
      may("member") && link(`/${id}/jobs/new?like=${name}`, { class: "button", key: "copy" }, "Create a copy"),
    );
  }

  // The view

  function view() {
    const { job } = state;
    const { progress_percent: percent, progress_message: message, ...result } = job.status === "running"
      ? job.result || {}
      : { ...job.result };
    const left = job.status === "running" && !Object.keys(result).length ? null : job.result && result;
    return h(
      "article",
      { class: "job" },
      state.deleted &&
        h("p", { class: "problem", role: "status" }, "This job was deleted. ", link(`/${id}/jobs`, {}, "All jobs")),
      h("p", { class: "id" }, h("code", {}, name), " ", copyButton(name)),
      h(
        "div",
        { class: "toolbar" },
        h("div", { class: "status" }, badge(job.status), job.status === "running" && bar(percent, message)),
        !state.deleted && actions(),
      ),
      cause(job),
      explanation(job),
      facts(job),
      h(
        "div",
        { class: "pair" },
        json("Metadata", job.metadata, state.metadata, `${name}-metadata.json`),
        json("Result", left, state.result, `${name}-result.json`),
      ),
      log.view(),
      tries(),
      history(),
    );
  }

  // Why a job failed, once and above all else. While it is tried again, the error is that of the
  // last attempt.
  function cause(job) {
    if (!job.error) return null;
    const ended = job.status === "failed";
    return h(
      "section",
      { class: "cause" },
      h("h2", {}, ended ? "Error" : "Error of the last attempt"),
      h("p", { class: ended ? "error" : null, dir: "auto" }, state.row?.error_cause || lastLine(job.error)),
      ended && state.row?.error_group &&
        h(
          "p",
          {},
          link(
            `/${id}/jobs?status=failed&job_type=${
              encodeURIComponent(job.job_type)
            }&error_group=${state.row.error_group}`,
            {},
            "Jobs that failed in the same way",
          ),
        ),
      job.error.trim() !== state.row?.error_cause &&
        h(
          "details",
          {},
          h("summary", {}, "The whole error"),
          h("div", { class: "buttons" }, copyButton(job.error)),
          h("pre", { class: "error", tabindex: 0, dir: "auto" }, job.error),
        ),
    );
  }

  // What the service says about the status: why the job waits, how it runs, how it ended.
  function explanation({ status }) {
    const found = state.explained;
    if (!found || found.status !== status) return null;
    const pending = status === "pending";
    const ended = ENDED.includes(status);
    const facts = /** @type {[string, any][]} */ ([
      pending && found.ahead !== null &&
      ["Jobs ahead", `${found.ahead_is_capped ? "more than " : ""}${number(found.ahead)}`],
      !ended && found.live_workers !== null &&
      ["Live workers of this type", link(`/${id}/workers?state=live`, {}, number(found.live_workers))],
      pending && found.estimated_start_at && ["Estimated start", wholeTime(found.estimated_start_at)],
      !ended && found.estimated_completion_at && ["Estimated end", wholeTime(found.estimated_completion_at)],
    ].filter(Boolean));
    return h(
      "section",
      { class: "explained", key: "explained" },
      h("h2", {}, pending ? "Why is it waiting?" : ended ? "How it ended" : "How it is running"),
      h("ul", {}, found.reasons.map((reason) => h("li", { key: reason.code, dir: "auto" }, sentence(reason)))),
      facts.length > 0 &&
        h("dl", {}, facts.map(([term, value]) => h("div", { key: term }, h("dt", {}, term), h("dd", {}, value)))),
      !ended && found.estimate_basis && h("p", { class: "hint" }, `Estimate: ${found.estimate_basis}`),
    );
  }

  // The sentence of a reason, with the reader's time zone and the names of users and API keys.
  function sentence({ code, detail, actor, reason }) {
    const [kind, n] = (actor || "").split(":");
    const by = n && who({ worker: null, user_id: null, key_id: null, [`${kind}_id`]: Number(n) }, names(id));
    // The error of a failed job is shown above.
    const shown = state.job.status === "failed" && reason ? detail.replace(`: ${reason}`, () => ".") : detail;
    const text = shown
      .replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ/g, (time) => moment(time))
      .replace(new RegExp(`^${kind} ${n}\\b`, "i"), (id) => by || id);
    const flow = ["type-paused", "at-capacity", "key-at-capacity", "rate-limited"].includes(code);
    return [text, flow && [" ", link(`/${id}/job-types`, {}, "Go to job types")]];
  }

  function facts(job) {
    const known = names(id);
    const withKey = (name) =>
      link(
        `/${id}/jobs?job_type=${encodeURIComponent(job.job_type)}&${name}=${encodeURIComponent(job[name])}`,
        {},
        job[name],
      );
    const estimate = job.estimated_duration ?? state.usual;
    const left = job.status === "running" && estimate
      ? estimate - (Date.now() - Date.parse(job.started_at)) / 1000
      : null;
    const items = /** @type {[string, any][]} */ ([
      ["Priority", job.priority],
      ["Created", [
        wholeTime(job.created_at),
        ` by ${who({ worker: null, user_id: job.created_by, key_id: null }, known)}`,
      ]],
      job.scheduled_at && ["Scheduled for", wholeTime(job.scheduled_at)],
      job.status === "pending" && ["Due", wholeTime(job.due_at)],
      job.started_at && ["Started", wholeTime(job.started_at)],
      job.status === "running" && job.started_at &&
      ["Running for", [
        running(job.started_at),
        left !== null &&
        h(
          "span",
          { class: "hint" },
          left > 0 ? `, about ${duration(Math.round(left))} left` : `, longer than the usual ${duration(estimate)}`,
        ),
      ]],
      job.status === "running" && state.row?.worker && ["Worker", h("span", { dir: "auto" }, state.row.worker)],
      job.completed_at && ["Ended", wholeTime(job.completed_at)],
      job.completed_at && job.started_at && ["Ran for", ran(job.started_at, job.completed_at)],
      job.completed_at && ["Total, since due", duration(job.actual_duration)],
      job.estimated_duration !== null && ["Estimated duration", duration(job.estimated_duration)],
      job.timeout_seconds !== null && ["Timeout", duration(job.timeout_seconds)],
      job.expires_at && ["Expires", wholeTime(job.expires_at)],
      job.concurrency_key && ["Concurrency key", withKey("concurrency_key")],
      job.unique_key && ["Unique key", withKey("unique_key")],
      job.schedule_id &&
      [
        "Schedule",
        link(address(`/${id}/jobs`, new URLSearchParams({ schedule_id: job.schedule_id })), {}, "All of its jobs"),
      ],
      job.scheduled_for && ["Run of", wholeTime(job.scheduled_for)],
      ["Retries", `${job.retry_count} of ${job.max_retries}`],
      ["Changed", wholeTime(job.updated_at)],
    ].filter(Boolean));
    return h(
      "dl",
      { class: "facts" },
      items.map(([term, value]) => h("div", { key: term }, h("dt", {}, term), h("dd", { dir: "auto" }, value))),
    );
  }

  function tries() {
    // The error of the job itself is already shown above.
    const newest = [...state.attempts].reverse();
    return h(
      "section",
      {},
      h("h2", {}, "Attempts"),
      newest.length
        ? table(
          ["No.", "Worker", "Started", "Run time", "Outcome"],
          newest.map((each) =>
            h(
              "tr",
              { key: each.attempt, role: "row" },
              cell("No.", String(each.attempt)),
              cell("Worker", h("span", { dir: "auto" }, each.worker || "–")),
              cell("Started", each.started_at ? wholeTime(each.started_at) : "not begun"),
              cell(
                "Run time",
                each.ended_at && each.started_at
                  ? ran(each.started_at, each.ended_at)
                  : each.started_at
                  ? running(each.started_at)
                  : "–",
              ),
              cell(
                "Outcome",
                badge((each.outcome || "running").replaceAll("_", " ")),
                each.error && each.error !== state.job.error &&
                  h(
                    "details",
                    {},
                    h("summary", { dir: "auto" }, lastLine(each.error)),
                    h("pre", { class: "error", tabindex: 0, dir: "auto" }, each.error),
                  ),
              ),
            )
          ),
          { class: "attempts" },
        )
        : empty("No attempts yet. An attempt begins when a worker claims the job."),
    );
  }

  function history() {
    return h(
      "section",
      {},
      h("h2", {}, "History"),
      state.events.length
        ? h("ol", { class: "timeline", reversed: true }, state.events.map(entry))
        : empty("No events: they were deleted after the retention time."),
      state.cursor && h("button", { type: "button", onclick: older }, "Show older events"),
    );
  }

  const whole = (event) => state.attempts.find((each) => each.attempt === event.attempt)?.error;

  function entry(event) {
    const by = who(event, names(id));
    const { progress_percent: percent, progress_message: message, error, ...data } = event.data || {};
    return h(
      "li",
      { key: event.event_id, class: event.to_status || null },
      h(
        "span",
        { class: "what" },
        EVENTS[event.kind] || event.kind.replaceAll("_", " "),
        percent !== undefined && percent !== null && `: ${percent} %`,
      ),
      event.attempt && h("span", { class: "hint" }, ` attempt ${event.attempt}`),
      by && h("span", { class: "hint", dir: "auto" }, ` by ${by}`),
      message && h("p", { class: "detail", dir: "auto" }, message),
      // Whole errors are with the attempts; an event has the begin of a long one.
      error && h("p", { class: "detail error", dir: "auto" }, lastLine(whole(event) || String(error))),
      Object.keys(data).length > 0 &&
        h(
          "p",
          { class: "detail", dir: "auto" },
          Object.entries(data).map(([key, value]) =>
            `${key}: ${typeof value === "string" ? value : JSON.stringify(value)}`
          ).join(", "),
        ),
      h("time", { datetime: event.at }, moment(event.at)),
    );
  }

  return {
    get title() {
      return `${state.job.status} · ${state.job.job_type}`;
    },
    heading: first.job_type,
    watched: true,
    view,
    live,
  };
}

/** The last line of an error that is not indented: of a traceback, the one that says why. */
function lastLine(error) {
  const lines = error.trimEnd().split("\n").filter((line) => line.trim() && !/^\s/.test(line));
  return (lines.at(-1) || error).slice(0, 300);
}
