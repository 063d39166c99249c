// The list of jobs. Filters, sort and page are in the address; rows are updated in place.

import { HOME, get, jobPath, workspacePath } from "./api.js";
import { JOB_EVENTS, PRIORITIES, STATUSES, badge, bar, cell, count, field, h, ran, rows, say, select, since, toLocal, toUtc } from "./dom.js";
import { every, follow, seldom } from "./live.js";

const SORTS = [
  ["created_at desc", "Newest first"],
  ["created_at asc", "Oldest first"],
  ["updated_at desc", "Last changed first"],
  ["updated_at asc", "Longest unchanged first"],
  ["priority desc", "Most urgent first"],
  ["priority asc", "Least urgent first"],
  ["status asc", "By status, pending first"],
  ["status desc", "By status, cancelled first"],
];
const PAGED_BY_NUMBER = 100;
const PROGRESS = 3000;
const ENDED = ["success", "failed", "cancelled"];

const alive = (job) => !ENDED.includes(job.status);

// The query of the address is the query of the API's list.
const path = (id, query, more) => {
  const all = new URLSearchParams(query);
  for (const [name, value] of Object.entries({ light: "true", ...more })) {
    if (value === null) all.delete(name);
    else all.set(name, value);
  }
  return workspacePath(id, `/jobs?${all}`);
};

export default async function jobs({ id, query, signal, go, may }) {
  let found = { data: [], pagination: { total: 0, total_pages: 0, next_cursor: null } };
  let problem = null;
  try {
    found = await get(path(id, query), { signal });
  } catch (error) {
    // An invalid filter: the message is shown at the filters, which stay editable.
    if (error.status !== 422 && error.status !== 400) throw error;
    problem = error;
  }
  const { data, pagination } = found;
  const shown = new Map(data.map((job) => [job.job_id, row(id, job)]));
  const total = h("strong", {});
  const fresh = h("button", { type: "button", class: "fresh", hidden: true, onclick: () => renew() });
  const sorted = query.get("sort") || "created_at";
  const newest = sorted === "created_at" && query.get("order") !== "asc" && first(query);

  const showTotal = ({ total: n, total_is_capped: capped }) => {
    total.textContent = capped ? `More than ${count(n, "job")}` : count(n, "job");
  };
  showTotal(pagination);

  function renew() {
    const first = new URLSearchParams(query);
    first.delete("page");
    first.delete("cursor");
    return go(address(id, first), { replace: true });
  }

  async function operate(action) {
    const { ask } = await import("./operations.js");
    ask(id, action, query, () => go(address(id, query), { replace: true }));
  }

  // One request for the whole page, however many jobs have changed. Rows keep their
  // positions; new jobs are only counted.
  async function reread() {
    if (problem) return;
    const answer = await get(path(id, query), { signal });
    if (!shown.size && answer.data.length) return void renew();
    showTotal(answer.pagination);
    const missing = update(answer.data);
    if (missing.some((each) => alive(each.job)) && sorted === "created_at" && !query.has("created_before")) {
      const around = { ...window_([...shown.values()].map((each) => each.job)), status: null };
      update((await get(path(id, query, around), { signal })).data, true);
    }
    const others = answer.data.filter((job) => !shown.has(job.job_id)).length;
    fresh.hidden = !others || !first(query);
    fresh.textContent = newest ? `${others}${others === answer.data.length ? " or more" : ""} new` : "The list has changed";
  }

  // Update the rows of these jobs. Returns the rows of all others.
  function update(jobs, whole) {
    const by = new Map(jobs.map((job) => [job.job_id, job]));
    const ended = [];
    const missing = [];
    for (const each of shown.values()) {
      const job = by.get(each.job.job_id);
      if (!job) {
        missing.push(each);
        each.node.classList.toggle("gone", Boolean(whole) || !first(query) || sorted !== "created_at");
        continue;
      }
      each.node.classList.remove("gone");
      if (alive(each.job) && !alive(job)) ended.push(job);
      each.update(job);
    }
    if (ended.length > 2) say(`${ended.length} jobs have ended`);
    else if (ended.length) say(ended.map((job) => `${job.job_type}: ${job.status}`).join(", "));
    return missing;
  }

  // The progress of the running jobs, in one request. The light list has no progress, so
  // this is the full one, which may be large; then it is polled less often.
  async function progress() {
    const running = [...shown.values()].map((each) => each.job).filter((job) => job.status === "running");
    if (!running.length || problem) return null;
    const began = performance.now();
    const answer = await get(path(id, query, { light: "false", status: "running", limit: 100, ...window_(running) }), { signal });
    for (const job of answer.data) shown.get(job.job_id)?.update(job);
    // A job that is no longer running: read its status from the list.
    const there = new Set(answer.data.map((job) => job.job_id));
    if (running.some((job) => !there.has(job.job_id)) && answer.data.length < 100) await reread();
    return Math.max(PROGRESS, 10 * (performance.now() - began));
  }

  const heads = ["Job", "Status", "Progress", "Priority", "Created", sorted === "updated_at" ? "Changed" : "Took"];
  const node = h(
    "div",
    {},
    h("details", { id: "filters", open: Boolean(problem) || [...query.keys()].some(isFilter) || matchMedia("(min-width: 641px)").matches }, h("summary", { id: "filters-open" }, "Filters and sorting"), filters(id, query, problem, go)),
    h(
      "div",
      { class: "toolbar" },
      h("p", {}, total, " ", fresh),
      h(
        "div",
        { class: "buttons" },
        may("member") && ["cancel", "retry", may("owner") && "delete"].filter(Boolean).map((action) =>
          h("button", { type: "button", onclick: () => operate(action), disabled: Boolean(problem) }, `${action[0].toUpperCase()}${action.slice(1)} all…`),
        ),
        may("member") && h("a", { class: "button primary", href: `${HOME}/${id}/jobs/new` }, "Create job"),
      ),
    ),
    shown.size
      ? rows(heads, [...shown.values()].map((each) => each.node), { class: "jobs" })
      : !problem && h("p", { class: "none" }, first(query) && ![...query.keys()].some(isFilter) ? "No jobs yet." : "No jobs match the filters."),
    pages(id, query, pagination),
  );

  function live(signal) {
    const again = follow(id, `?${new URLSearchParams(Object.keys(JOB_EVENTS).map((kind) => ["kind", kind]))}`, signal, {
      read: reread,
      events: (found) => {
        let reading = false;
        for (const event of found) {
          const each = shown.get(event.job_id);
          if (each && event.kind === "progressed") each.update({ ...each.job, result: event.data });
          else if (each && event.to_status && event.to_status !== each.job.status) {
            if (alive(each.job) && ENDED.includes(event.to_status)) say(`${each.job.job_type}: ${event.to_status}`);
            each.update({ ...each.job, status: event.to_status, result: null });
            reading = true;
          } else reading = true;
        }
        if (reading) soon();
      },
    });
    const soon = seldom(1000, signal, again);
    progress().catch(() => {});
    every(PROGRESS, signal, progress);
  }

  return { title: "Jobs", node, live };
}

const first = (query) => !query.has("cursor") && (query.get("page") || "1") === "1";
const address = (id, query) => `/${id}/jobs${String(query) && `?${query}`}`;
const isFilter = (name) => !["sort", "order", "page", "limit", "cursor"].includes(name);

// Filters for the period in which these jobs were created. The API's times have whole seconds.
function window_(jobs) {
  const times = jobs.map((job) => Date.parse(job.created_at));
  const at = (ms) => new Date(ms).toISOString();
  return { created_after: at(Math.min(...times)), created_before: at(Math.max(...times) + 1000), page: null, cursor: null, limit: 100 };
}

function row(id, first) {
  const status = cell("Status");
  const progress = cell("Progress");
  const priority = cell("Priority");
  const last = cell("Took");
  const link = h(
    "a",
    { class: "row", href: HOME + jobPath(id, first.job_id).replace("/workspace", "") },
    h("span", { class: "type" }, first.job_type),
    h("span", { class: "id" }, first.job_id.slice(-8)),
  );
  const node = h("tr", { role: "row" }, cell("Job", link), status, progress, priority, cell("Created", since(first.created_at)), last);
  const each = { node, job: {}, update };
  let before = "";

  function update(job) {
    const result = job.result === undefined && job.status === "running" && each.job.status === "running" ? each.job.result : job.result;
    each.job = { ...job, result: result && { progress_percent: result.progress_percent, progress_message: result.progress_message } };
    const now = JSON.stringify(each.job);
    if (now === before) return;
    before = now;
    status.replaceChildren(badge(job.status), ...(job.retry_count ? [h("span", { class: "hint" }, ` retry ${job.retry_count}`)] : []));
    progress.replaceChildren(...said(each.job));
    priority.replaceChildren(h("span", { class: `priority ${job.priority}` }, job.priority));
    const changed = new URLSearchParams(location.search).get("sort") === "updated_at";
    last.dataset.label = changed ? "Changed" : "Took";
    last.replaceChildren(changed ? since(job.updated_at) : took(job));
  }

  update(first);
  return each;
}

// From the start of the last attempt. `actual_duration` also includes the waiting.
function took({ started_at, completed_at }) {
  if (!started_at || !completed_at) return "–";
  return ran(started_at, completed_at);
}

function said(job) {
  if (job.status === "running") return [bar(job.result?.progress_percent, job.result?.progress_message)];
  if (job.status === "pending" && Date.parse(job.due_at) > Date.now()) return [h("span", { class: "hint" }, "due "), since(job.due_at)];
  if (job.error) return [h("span", { class: "error", title: job.error.slice(0, 500), dir: "auto" }, job.error.split("\n", 1)[0].slice(0, 200))];
  return [];
}

function pages(id, query, { total_pages, next_cursor }) {
  const number = query.has("cursor") ? null : Number(query.get("page") || 1);
  if (number === 1 && !next_cursor) return null;
  const to = (changes, text, rel) => {
    const there = new URLSearchParams(query);
    ["page", "cursor"].forEach((name) => there.delete(name));
    Object.entries(changes).forEach(([name, value]) => there.set(name, value));
    return h("a", { href: HOME + address(id, there), rel }, text);
  };
  // Later pages are reached by cursor, which is faster and unaffected by new jobs.
  const next = number && number < PAGED_BY_NUMBER ? { page: number + 1 } : { cursor: next_cursor };
  return h(
    "nav",
    { class: "pages", "aria-label": "Pages" },
    number !== 1 && to({}, "First", "first"),
    number > 2 && to({ page: number - 1 }, "Previous", "prev"),
    number && h("span", {}, `Page ${number} of ${Math.max(number, total_pages)}`),
    next_cursor && to(next, "Next", "next"),
  );
}

function filters(id, query, problem, go) {
  const tick = (name, value) =>
    h("label", { class: "tick" }, h("input", { type: "checkbox", id: `${name}-${value}`, name, value, checked: query.getAll(name).includes(value) }), h("span", { class: name === "status" ? value : "" }, value));
  const metadata = [...query].filter(([name]) => name.startsWith("metadata.")).map(([name, value]) => `${name.slice(9)}=${value}`);
  const time = (name) => h("input", { type: "datetime-local", step: 1, name, id: name, value: query.has(name) ? toLocal(query.get(name)) : "" });
  const sort = `${query.get("sort") || "created_at"} ${query.get("order") || "desc"}`;
  const more = ["created_after", "created_before", "updated_after", "created_by"];
  const text = (name, properties) => h("input", { type: "text", name, id: name, autocomplete: "off", spellcheck: "false", ...properties });
  const node = h(
    "form",
    {
      class: "filters",
      role: "search",
      "aria-label": "Filters",
      novalidate: true,
      onsubmit: (event) => {
        event.preventDefault();
        apply();
      },
      onchange: () => apply(),
    },
    h("fieldset", {}, h("legend", {}, "Status"), STATUSES.map((status) => tick("status", status))),
    h("fieldset", {}, h("legend", {}, "Priority"), PRIORITIES.map((priority) => tick("priority", priority))),
    field("Type", text("job_type", { id: "filter", type: "search", value: query.getAll("job_type").join(" "), placeholder: "etl report" })),
    field("Metadata", text("metadata", { value: metadata.join(" & "), placeholder: "batch_id=3 & file.name=a.csv" })),
    field("Sort", select({ name: "sort", id: "sort" }, SORTS, sort)),
    h(
      "details",
      { open: more.some((name) => query.has(name)) },
      h("summary", {}, "More filters"),
      h(
        "div",
        { class: "filters" },
        field("Created at or after", time("created_after")),
        field("Created before", time("created_before")),
        field("Changed at or after", time("updated_after")),
        field("Created by (user id)", text("created_by", { inputmode: "numeric", value: query.get("created_by") || "" })),
        field("Jobs per page", select({ name: "limit", id: "limit" }, ["10", "25", "50", "100"], query.get("limit") || "50")),
      ),
    ),
    [...query.keys()].some((name) => isFilter(name)) && h("a", { href: `${HOME}/${id}/jobs`, onclick: clear }, "Clear filters"),
    h("p", { class: "problem", role: "alert" }, problem?.message),
    h("button", { class: "unseen" }, "Filter"),
  );

  // Immediately: the user may enter another filter before the next view is there.
  function clear() {
    for (const input of node.querySelectorAll("input")) {
      if (input.type === "checkbox") input.checked = false;
      else input.value = "";
    }
  }

  function apply() {
    const form = new FormData(node);
    const wanted = new URLSearchParams();
    for (const name of ["status", "priority"]) form.getAll(name).forEach((value) => wanted.append(name, value));
    form.get("job_type").split(/[\s,]+/).filter(Boolean).forEach((value) => wanted.append("job_type", value));
    for (const pair of form.get("metadata").split("&").map((part) => part.trim()).filter(Boolean)) {
      const [name, ...value] = pair.split("=");
      wanted.append(`metadata.${name.trim()}`, value.join("=").trim());
    }
    for (const name of more.slice(0, 3)) {
      // The input shows seconds. An untouched value keeps its fraction.
      const local = form.get(name);
      const old = query.get(name);
      if (local) wanted.set(name, old && toLocal(old) === local ? old : toUtc(local));
    }
    if (form.get("created_by")) wanted.set("created_by", form.get("created_by").trim());
    const [by, order] = form.get("sort").split(" ");
    if (by !== "created_at" || order !== "desc") {
      wanted.set("sort", by);
      wanted.set("order", order);
    }
    if (form.get("limit") !== "50") wanted.set("limit", form.get("limit"));
    // Enter triggers both change and submit, and the user may have left the view.
    if (location.pathname !== `${HOME}/${id}/jobs` || String(wanted) === String(new URLSearchParams(location.search))) return;
    go(address(id, wanted));
  }

  return node;
}
