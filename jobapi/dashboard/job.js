// One job: its fields, progress, attempts and history, and the actions on it.

import { HOME, ask, get, jobPath, names, post, call, problemOf, parse } from "./api.js";
import { JOB_EVENTS, badge, bar, cell, confirm, duration, h, json, moment, ran, rows, say, since } from "./dom.js";
import { every, follow, seldom } from "./live.js";

const PROGRESS = 2000;

export default async function job({ id, rest: name, signal, go, may }) {
  const path = (more = "") => jobPath(id, name, more);
  const [first, attempts, events, people] = await Promise.all([
    get(path(), { signal }),
    get(path("/attempts"), { signal }),
    get(path("/events"), { signal }),
    names(id),
  ]);
  let now = first;
  let etag = null;
  const user = (number) => people.get(number) || `user ${number}`;

  const status = h("div", { class: "status" });
  const actions = h("div", { class: "buttons" });
  const facts = h("dl", { class: "facts" });
  const error = h("section", {});
  const metadata = section("Metadata", json(first.metadata, `${name}-metadata.json`));
  const result = h("section", {});
  const tries = h("section", {});
  const history = h("section", {});

  function showStatus(percent, message) {
    status.replaceChildren(badge(now.status), ...(now.status === "running" || percent ? [bar(percent, message)] : []));
  }

  function showJob() {
    const progress = now.status === "running" ? now.result || {} : {};
    showStatus(progress.progress_percent, progress.progress_message);
    const buttons = {
      cancel: ["pending", "running"].includes(now.status) && may("member"),
      retry: ["failed", "cancelled"].includes(now.status) && may("member"),
      delete: !["pending", "running"].includes(now.status) && may("owner"),
    };
    const wanted = Object.keys(buttons).filter((verb) => buttons[verb]);
    if (actions.dataset.verbs !== wanted.join()) {
      actions.dataset.verbs = wanted.join();
      actions.replaceChildren(
        ...wanted.map((verb) => h("button", { type: "button", class: verb === "delete" ? "danger" : "", onclick: () => DO[verb]() }, `${verb[0].toUpperCase()}${verb.slice(1)}`)),
        ...(may("member") ? [h("a", { class: "button", href: `${HOME}/${id}/jobs/new?like=${name}` }, "Create a copy")] : []),
      );
    }
    facts.replaceChildren(
      ...[
        ["Priority", now.priority],
        ["Created", [since(now.created_at), ` by ${user(now.created_by)}`]],
        now.scheduled_at && ["Scheduled for", since(now.scheduled_at)],
        now.status === "pending" && ["Due", since(now.due_at)],
        ["Started", since(now.started_at)],
        now.completed_at && ["Ended", since(now.completed_at)],
        now.completed_at && now.started_at && ["Ran for", ran(now.started_at, now.completed_at)],
        now.completed_at && ["Total, since due", duration(now.actual_duration)],
        now.estimated_duration !== null && ["Estimated duration", duration(now.estimated_duration)],
        now.timeout_seconds !== null && ["Timeout", duration(now.timeout_seconds)],
        ["Retries", `${now.retry_count} of ${now.max_retries}`],
        ["Changed", since(now.updated_at)],
      ]
        .filter(Boolean)
        .map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", { dir: "auto" }, value))),
    );
    error.replaceChildren(...(now.error ? [h("h2", {}, "Error"), h("pre", { class: "error", tabindex: 0, dir: "auto" }, now.error)] : []));
    const { progress_percent: _p, progress_message: _m, ...left } = now.status === "running" ? now.result || {} : {};
    const shown = now.status === "running" ? (Object.keys(left).length ? left : null) : now.result;
    replaceWhereOther(result, [h("h2", {}, "Result"), json(shown, `${name}-result.json`)]);
  }

  function showAttempts({ data }) {
    replaceWhereOther(tries, [
      h("h2", {}, "Attempts"),
      data.length
        ? rows(
            ["No.", "Worker", "Started", "Took", "Outcome"],
            data.flatMap((each) => [
              h(
                "tr",
                { role: "row" },
                cell("No.", String(each.attempt)),
                cell("Worker", h("span", { dir: "auto" }, each.worker || "–")),
                cell("Started", since(each.started_at)),
                cell("Took", each.ended_at ? ran(each.started_at, each.ended_at) : "–"),
                cell("Outcome", badge((each.outcome || "running").replaceAll("_", " ")), each.error && h("pre", { class: "error", tabindex: 0, dir: "auto" }, each.error)),
              ),
            ]),
          )
        : h("p", { class: "none" }, "No attempts yet."),
    ]);
  }

  const seen = [];
  let cursor = null;
  function showEvents(found) {
    for (const event of found.data) {
      if (!seen.some((other) => other.event_id === event.event_id)) seen.push(event);
    }
    cursor = found.pagination.next_cursor;
    const more = h("button", { type: "button", onclick: async () => showEvents(await get(path(`/events?cursor=${encodeURIComponent(cursor)}`), { signal })) }, "Show more");
    replaceWhereOther(history, [h("h2", {}, "History"), seen.length ? h("ol", { class: "timeline" }, seen.map((event) => entry(event, user))) : h("p", { class: "none" }, "No events: they were deleted after the retention time."), ...(cursor ? [more] : [])]);
  }

  // Read the job again and, if it has changed, its attempts and events.
  async function reread() {
    const response = await ask("GET", path(), { signal, headers: etag ? { "If-None-Match": etag } : {} });
    if (response.status === 304) return;
    if (!response.ok) throw await problemOf(response);
    etag = response.headers.get("ETag");
    const before = now.status;
    now = parse(await response.text());
    showJob();
    const [tries, events] = await Promise.all([get(path("/attempts"), { signal }), cursor ? null : get(path(`/events?order=desc`), { signal })]);
    showAttempts(tries);
    // The newest events are at the end. While older ones are still to be loaded, keep the list.
    if (events) showEvents({ data: events.data.reverse(), pagination: { next_cursor: null } });
    if (now.status !== before) {
      say(`The job is ${now.status}`);
      document.title = `${now.status} · ${now.job_type} · Jobs`;
    }
  }

  async function progress() {
    if (now.status !== "running") return null;
    const found = await get(path("/status"), { signal });
    if (found.status !== now.status) return void (await reread());
    showStatus(found.progress_percent, found.progress_message);
  }

  const DO = {
    cancel: () =>
      confirm("Cancel this job?", "The result so far is kept. A worker that runs the job learns of it from its next report.", "Cancel the job", async (reason) => {
        await post(path("/cancel"), reason ? { reason } : undefined);
        await reread();
      }, { reason: true }),
    retry: () =>
      confirm("Retry this job?", "The job becomes pending and due now. Its result will be replaced.", "Retry the job", async (reason) => {
        await post(path("/retry"), reason ? { reason } : undefined);
        await reread();
      }, { reason: true }),
    delete: () =>
      confirm("Delete this job?", "Its result, attempts and history are deleted too. This cannot be undone.", "Delete the job", async () => {
        await call("DELETE", path());
        await go(`/${id}/jobs`);
      }),
  };

  showJob();
  showAttempts(attempts);
  showEvents(events);
  const idLine = h("p", { class: "id" }, h("code", {}, name), " ", navigator.clipboard && h("button", { type: "button", class: "small", onclick: () => navigator.clipboard.writeText(name).then(() => say("Copied")) }, "Copy"));

  return {
    title: `${first.status} · ${first.job_type}`,
    heading: first.job_type,
    node: h("article", { class: "job" }, idLine, h("div", { class: "toolbar" }, status, actions), error, facts, h("div", { class: "pair" }, metadata, result), tries, history),
    live(signal) {
      const again = follow(id, `?job_id=${name}`, signal, {
        read: reread,
        events: (found) => {
          const last = found.at(-1);
          if (last.kind === "progressed" && now.status === "running") showStatus(last.data?.progress_percent, last.data?.progress_message);
          soon();
        },
      });
      const soon = seldom(700, signal, again);
      every(PROGRESS, signal, progress);
    },
  };
}

const section = (title, ...content) => h("section", {}, h("h2", {}, title), content);

// Replace the children only if their text differs: that keeps scroll positions and selections.
function replaceWhereOther(node, children) {
  const made = h("div", {}, children);
  if (node.textContent !== made.textContent) node.replaceChildren(...made.childNodes);
}

function entry(event, user) {
  const who = [event.worker && `worker ${event.worker}`, event.key_id && `API key ${event.key_id}`, event.user_id && user(event.user_id)].filter(Boolean).join(", ");
  const { progress_percent: percent, progress_message: message, error, ...data } = event.data || {};
  return h(
    "li",
    { class: event.to_status || "" },
    h("span", { class: "what" }, JOB_EVENTS[event.kind] || event.kind.replaceAll("_", " "), percent !== undefined && percent !== null && `: ${percent} %`),
    event.attempt && h("span", { class: "hint" }, ` attempt ${event.attempt}`),
    who && h("span", { class: "hint", dir: "auto" }, ` by ${who}`),
    message && h("p", { class: "detail", dir: "auto" }, message),
    error && h("p", { class: "detail error", dir: "auto" }, String(error)),
    Object.keys(data).length > 0 && h("p", { class: "detail", dir: "auto" }, Object.entries(data).map(([key, value]) => `${key}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", ")),
    h("time", { datetime: event.at }, moment(event.at)),
  );
}
