// The list of jobs. Filters, sort and page are in the address, with the names of the API's list.

import { ask as request, get, jobPath, parse, post, problemOf, workspacePath } from "../api.js";
import { bulk, filterOf } from "../bulk.js";
import { ago, brief, count, duration, moment, ran, running, time, zone } from "../format.js";
import { beginning, isFilter, jobFilters, TIMES } from "../job_filters.js";
import { every, follow, pause } from "../live.js";
import { address, badge, bar, capital, cell, confirm, empty, ENDED, formState, link, table, unseen } from "../parts.js";
import { h } from "../render.js";
import { say, update } from "../state.js";

const PAGED_BY_NUMBER = 100;
const PROGRESS = 3000;
const STATS = 10_000;
const VERBS = { cancel: ["pending", "running"], retry: ["failed", "cancelled"], delete: ENDED };

const first = (query) => !query.has("cursor") && (query.get("page") || "1") === "1";

/** @param {import("../state.js").Context} context */
export default async function jobs({ id, query, signal, go, may }) {
  const here = `/${id}/jobs`;
  const sort = query.get("sort") || "created_at";
  const statuses = query.getAll("status");
  const types = query.getAll("job_type");
  const filtered = [...query.keys()].some(isFilter);

  const state = {
    /** The jobs of the page, in their order; each as one answer of the service had it. */
    jobs: [],
    pagination: { total: 0, total_pages: 0, next_cursor: null, total_is_capped: false },
    /** An invalid filter. The message is shown at the filters, which stay editable. */
    problem: "",
    form: formState(),
    /** The ids of jobs that are on the page and no longer match its filters or are deleted. */
    left: new Set(),
    deleted: new Set(),
    /** How many jobs the list has that are not on the page: "2 new". */
    fresh: "",
    ticked: new Set(),
    stats: null,
  };

  // The query of the address is the query of the API's list.
  const path = (more = {}) => {
    const all = new URLSearchParams(query);
    for (const [name, value] of Object.entries({ light: "true", ...more })) all.set(name, value);
    return workspacePath(id, `/jobs?${all}`);
  };
  const byId = (ids) =>
    workspacePath(
      id,
      `/jobs?${new URLSearchParams([["light", "true"], ["limit", "100"], ...ids.map((job) => ["job_id", job])])}`,
    );

  let etag = null;
  async function readPage() {
    const response = await request("GET", path(), { signal, headers: etag ? { "If-None-Match": etag } : {} });
    if (response.status === 304) return null;
    if (!response.ok) throw await problemOf(response);
    etag = response.headers.get("ETag");
    return parse(await response.text());
  }

  try {
    const found = await readPage();
    state.jobs = found.data;
    state.pagination = found.pagination;
  } catch (error) {
    if (error.status !== 422 && error.status !== 400) throw error;
    state.problem = error.message;
    for (const [name, messages] of Object.entries(error.errors)) {
      if (!(name in TIMES) && !["job_type", "error", "created_by"].includes(name)) continue;
      state.form.wrong[name] = messages.join(" ");
    }
  }

  // Live updates. Each job on the page changes as a whole; jobs keep their places.

  const changed = new Set();
  let other = false; // whether the list may have changed besides the jobs on the page

  function put(found) {
    const by = new Map(found.map((job) => [job.job_id, job]));
    const ended = state.jobs.filter((job) => !ENDED.includes(job.status) && ENDED.includes(by.get(job.job_id)?.status))
      .map((job) => by.get(job.job_id));
    if (ended.length > 2) say(`${ended.length} jobs have ended`);
    else if (ended.length) say(ended.map((job) => `${job.job_type}: ${job.status}`).join(", "));
    state.jobs = state.jobs.map((job) => by.get(job.job_id) || job);
    update();
  }

  async function readChanged(ids) {
    const { data } = await get(byId(ids), { signal });
    const there = new Set(data.map((job) => job.job_id));
    ids.filter((job) => !there.has(job)).forEach((job) => state.deleted.add(job));
    put(data);
  }

  async function read() {
    if (state.problem) return;
    const ids = [...changed];
    const whole = other || !ids.length;
    changed.clear();
    other = false;
    try {
      if (!whole) return await readChanged(ids);
      const found = await readPage();
      // The list is as it was; jobs that are no longer in it may have changed.
      if (!found) return ids.length ? await readChanged(ids) : undefined;
      if (!state.jobs.length && found.data.length) {
        return void go(address(here, beginning(query)), { replace: true, keep: true });
      }
      state.pagination = found.pagination;
      const there = new Set(found.data.map((job) => job.job_id));
      const shown = new Set(state.jobs.map((job) => job.job_id));
      const fresh = first(query) ? found.data.filter((job) => !shown.has(job.job_id)).length : 0;
      state.fresh = fresh === 0 ? "" : `${fresh}${fresh === found.data.length ? " or more" : ""} new`;
      put(found.data);
      const missing = state.jobs.filter((job) => !there.has(job.job_id) && !state.deleted.has(job.job_id)).map((job) =>
        job.job_id
      );
      // A job that was pushed to another page still matches.
      if (missing.length) await readChanged(missing);
      state.left = new Set(missing.filter((job) => !matches(state.jobs.find((each) => each.job_id === job))));
      update();
    } catch (error) {
      ids.forEach((job) => changed.add(job));
      other ||= whole;
      throw error;
    }
  }

  // The filters that a change of a job can make it lose.
  const matches = (job) =>
    (!statuses.length || statuses.includes(job.status) ||
      (job.status === "success" && statuses.includes("completed"))) &&
    (!query.has("priority") || query.getAll("priority").includes(job.priority));

  const renew = () => go(address(here, beginning(query)), { replace: true, keep: true });

  function live(signal) {
    const again = follow(id, signal, {
      read,
      events(found) {
        let due = false;
        for (const event of found) {
          if (!event.job_id) continue;
          const job = state.jobs.find((each) => each.job_id === event.job_id);
          if (job && event.kind === "progressed") {
            if (job.status === "running") put([{ ...job, ...event.data }]);
            continue;
          }
          if (!job && (event.kind === "progressed" || (types.length && !types.includes(event.job_type)))) continue;
          if (job) changed.add(event.job_id);
          // A new job, or one that the filters by status let in or out.
          if (event.kind === "created" || event.kind === "deleted" || statuses.length || sort !== "created_at") {
            other = true;
          }
          due ||= Boolean(job) || other;
        }
        if (due) again();
      },
    });
    // Events tell of every ten percent only.
    every(PROGRESS, signal, async () => {
      const ids = state.jobs.filter((job) => job.status === "running").map((job) => job.job_id);
      if (!ids.length || state.problem) return null;
      const began = performance.now();
      await readChanged(ids);
      return Math.max(PROGRESS, 10 * (performance.now() - began));
    });
    const readStats = async () => {
      state.stats = await get(
        workspacePath(id, address("/stats", new URLSearchParams(types.map((type) => ["job_type", type])))),
        { signal },
      );
      update();
    };
    // After the jobs themselves are on the screen.
    pause(200, signal).then(() => readStats().catch(() => {}));
    every(STATS, signal, readStats);
  }

  // Actions

  function act(verb, job) {
    const texts = {
      cancel: "The result so far is kept. A worker that runs the job learns of it from its next report.",
      retry: "The job becomes pending and due now. Its result will be replaced.",
    };
    confirm({
      title: `${capital(verb)} this job?`,
      text: [h("strong", { dir: "auto" }, job.job_type), " ", h("code", {}, job.job_id), h("br"), texts[verb]],
      label: `${capital(verb)} the job`,
      danger: verb === "cancel",
      reason: true,
      run: async (reason) => {
        await post(jobPath(id, job.job_id, `/${verb}`), reason ? { reason } : undefined);
        await readChanged([job.job_id]);
        say(`The job is ${state.jobs.find((each) => each.job_id === job.job_id)?.status}`);
      },
    });
  }

  function actOn(verb) {
    const ids = ticked().filter((job) => VERBS[verb].includes(job.status)).map((job) => job.job_id);
    if (!ids.length) return bulk(id, verb, filterOf(query), renew);
    bulk(id, verb, { job_id: ids }, async () => {
      state.ticked.clear();
      await readChanged(ids);
    });
  }

  const ticked = () => state.jobs.filter((job) => state.ticked.has(job.job_id));

  const filters = jobFilters({ id, query, go, state });

  // The view

  const at = { updated_at: ["updated_at", "Changed"], started_at: ["started_at", "Started"] }[sort] ||
    ["created_at", "Created"];

  function row(job) {
    const gone = state.deleted.has(job.job_id);
    const verb = gone
      ? null
      : VERBS.cancel.includes(job.status)
      ? "cancel"
      : VERBS.retry.includes(job.status)
      ? "retry"
      : null;
    const name = h("span", { class: "type" }, job.job_type);
    const tick = (event) => {
      state.ticked[event.target.checked ? "add" : "delete"](job.job_id);
      update();
    };
    return h(
      "tr",
      { key: job.job_id, role: "row", class: gone || state.left.has(job.job_id) ? "gone" : null },
      may("member") &&
        h(
          "td",
          { class: "ticks", role: "cell" },
          h("input", {
            type: "checkbox",
            "aria-label": `Select ${job.job_type} ${job.job_id.slice(-8)}`,
            disabled: gone,
            checked: state.ticked.has(job.job_id),
            onchange: tick,
          }),
        ),
      cell(
        "Job",
        gone ? name : link(
          `${here}/${encodeURIComponent(job.job_id)}`,
          { class: "row", id: `row-${job.job_id}` },
          name,
          h("span", { class: "id", title: job.job_id }, job.job_id.slice(-8)),
        ),
      ),
      cell(
        "Status",
        gone
          ? h("span", { class: "badge" }, "deleted")
          : badge(job.status, job.retry_count > 0 && h("span", { class: "hint" }, ` retry ${job.retry_count}`)),
      ),
      cell("Details", details(job)),
      cell("Priority", h("span", { class: `priority ${job.priority}` }, job.priority)),
      cell(at[1], time(job[at[0]])),
      cell("Run time", took(job)),
      may("member") &&
        h(
          "td",
          { class: "acts", role: "cell" },
          verb &&
            h("button", {
              key: verb,
              type: "button",
              class: "small",
              "data-destructive": verb === "cancel",
              "aria-label": `${capital(verb)} ${job.job_type} ${job.job_id.slice(-8)}`,
              onclick: () => act(verb, job),
            }, capital(verb)),
        ),
    );
  }

  // A running job's time so far, and how long such jobs usually take.
  function took(job) {
    if (job.status === "running" && job.started_at) {
      const usual = job.estimated_duration ?? state.stats?.durations[job.job_type]?.median_seconds;
      return [
        running(job.started_at),
        usual >= 1
          ? h("span", {
            class: "hint",
            title: job.estimated_duration === null ? "The median of this type's jobs" : "The job's estimated duration",
          }, ` of ~${duration(usual)}`)
          : null,
      ];
    }
    if (job.status === "pending" || !job.started_at || !job.completed_at) return "–";
    return ran(job.started_at, job.completed_at);
  }

  function tickAll() {
    const here = state.jobs.filter((job) => !state.deleted.has(job.job_id));
    const all = here.length > 0 && here.every((job) => state.ticked.has(job.job_id));
    return h("input", {
      type: "checkbox",
      "aria-label": "Select all jobs on this page",
      checked: all,
      indeterminate: !all && state.ticked.size > 0,
      onchange: (event) => {
        state.ticked = new Set(event.target.checked ? here.map((job) => job.job_id) : []);
        update();
      },
    });
  }

  function toolbar() {
    const { total, total_is_capped: capped } = state.pagination;
    const chosen = ticked();
    const button = (verb) => {
      const n = chosen.filter((job) => VERBS[verb].includes(job.status)).length;
      return h("button", {
        key: verb,
        type: "button",
        class: "small",
        "data-destructive": verb !== "retry",
        disabled: Boolean(state.problem) || (chosen.length > 0 && !n),
        onclick: () => actOn(verb),
      }, chosen.length ? `${capital(verb)} ${n}` : `${capital(verb)} all…`);
    };
    const fresh = sort === "created_at" && query.get("order") !== "asc" ? state.fresh : "The list has changed";
    return h(
      "div",
      { class: "toolbar" },
      h(
        "p",
        {},
        h("strong", {}, capped ? `More than ${count(total, "job")}` : count(total, "job")),
        state.fresh && h("button", { type: "button", class: "fresh", onclick: renew }, fresh),
        chosen.length > 0 && h("span", { class: "hint" }, `${chosen.length} selected`),
      ),
      may("member") &&
        h(
          "div",
          { class: "buttons" },
          ["cancel", "retry", may("owner") && "delete"].filter(Boolean).map(button),
          chosen.length > 0 &&
            h("button", {
              key: "clear",
              type: "button",
              class: "small",
              onclick: () => (state.ticked.clear(), update()),
            }, "Clear selection"),
          link(`${here}/new`, { class: "button primary small", key: "new" }, "Create job"),
        ),
    );
  }

  function list() {
    if (state.jobs.length) {
      const heads = [
        may("member") && tickAll(),
        "Job",
        "Status",
        "Details",
        "Priority",
        [at[1], " ", h("span", { class: "zone" }, zone())],
        "Run time",
        may("member") && unseen("Action"),
      ];
      return table(heads.filter(Boolean), state.jobs.map(row), { class: `jobs ${may("member") ? "acting" : ""}` });
    }
    if (state.problem) return null;
    if (filtered || !first(query)) {
      return empty(
        state.pagination.next_cursor
          ? "No jobs on this page match the filters. Older jobs may: go to the next page."
          : "No jobs match the filters. ",
        !state.pagination.next_cursor && link(here, {}, "Clear filters"),
      );
    }
    return empty(
      "No jobs yet. ",
      may("member")
        ? [
          link(`${here}/new`, {}, "Create a job"),
          ", or send one to ",
          h("code", {}, `POST /workspace/${id}/jobs`),
          ".",
        ]
        : "Jobs appear here when a member creates them.",
    );
  }

  return {
    title: "Jobs",
    watched: true,
    live,
    view: () => [filters(), toolbar(), list(), pages(here, query, state.pagination)],
  };
}

/** What the list says of a job besides its status. */
function details(job) {
  if (job.status === "running") {
    return h(
      "span",
      { class: "going" },
      bar(job.progress_percent, job.progress_message),
      job.worker && h("span", { class: "hint worker", dir: "auto", title: `Worker ${job.worker}` }, job.worker),
    );
  }
  if (job.status === "pending" && Date.parse(job.due_at) > Date.now()) {
    return h("span", { class: "hint", title: moment(job.due_at) }, `due ${ago(job.due_at)}, ${brief(job.due_at)}`);
  }
  const cause = job.error_cause || job.error;
  return cause && h("span", { class: "error", dir: "auto", title: cause }, cause);
}

function pages(here, query, { total_pages, next_cursor }) {
  const page = query.has("cursor") ? null : Number(query.get("page") || 1);
  if (page === 1 && !next_cursor) return null;
  const to = (changes, text, rel) => {
    const there = new URLSearchParams(query);
    ["page", "cursor"].forEach((name) => there.delete(name));
    Object.entries(changes).forEach(([name, value]) => there.set(name, value));
    return link(address(here, there), { rel, key: rel }, text);
  };
  // Later pages are reached by cursor, which is faster and unaffected by new jobs.
  const next = page && page < PAGED_BY_NUMBER ? { page: page + 1 } : { cursor: next_cursor };
  return h(
    "nav",
    { class: "pages", "aria-label": "Pages" },
    page !== 1 && to({}, "First", "first"),
    page > 2 && to({ page: page - 1 }, "Previous", "prev"),
    page && h("span", {}, `Page ${page} of ${Math.max(page, total_pages)}`),
    next_cursor && to(next, "Next", "next"),
  );
}
