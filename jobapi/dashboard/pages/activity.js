// What happened in a workspace, newest first: jobs, members, keys and settings, and who did it.

import { get, workspacePath } from "../api.js";
import { time, zone } from "../format.js";
import { follow } from "../live.js";
import { address, badge, capital, cell, empty, field, formState, input, link, select, table, who } from "../parts.js";
import { names } from "../names.js";
import { h } from "../render.js";
import { update } from "../state.js";

const LIMIT = 50;
const PEOPLE = ["member_added", "member_changed", "member_removed", "key_created", "key_revoked", "workspace_changed"];
const PAUSES = ["workspace_paused", "workspace_resumed", "job_type_paused", "job_type_resumed"];
const SCHEDULES = ["created", "changed", "deleted", "paused", "resumed", "suspended", "skipped"].map((what) =>
  `schedule_${what}`
);
const BY_HAND = ["started", "edited", "cancelled", "retried", "deleted"];
const SHOWS = {
  "": { name: "Everything", kinds: [] },
  changes: { name: "Cancels, retries, edits and deletions", kinds: BY_HAND },
  failures: { name: "Failures", kinds: ["failed", "timed_out", "lease_expired"] },
  flow: { name: "Pauses and job types", kinds: [...PAUSES, "job_type_changed"] },
  schedules: { name: "Schedules", kinds: SCHEDULES },
  people: { name: "Members, keys and settings", kinds: PEOPLE },
};

/** @param {import("../state.js").Context} context */
export default async function activity({ id, query, signal, go, may, reload }) {
  const show = SHOWS[query.get("show")] ? query.get("show") : "";
  const types = query.getAll("job_type");
  const kinds = SHOWS[show].kinds;
  const wanted = new URLSearchParams([
    ["limit", String(LIMIT)],
    ...kinds.map((kind) => ["kind", kind]),
    ...types.map((type) => ["job_type", type]),
  ]);
  const path = (cursor) =>
    workspacePath(id, `/events?${wanted}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
  const first = await get(path(query.get("cursor")), { signal });
  const state = { events: first.data, cursor: first.pagination.next_cursor, fresh: 0, form: formState() };

  async function older() {
    const found = await get(path(state.cursor), { signal });
    state.events = [...state.events, ...found.data];
    state.cursor = found.pagination.next_cursor;
    update();
  }

  // New events are counted and shown on request, so that the table keeps its place.
  async function read() {
    const { data } = await get(path(null), { signal });
    const there = new Set(state.events.map((event) => event.event_id));
    state.fresh = data.filter((event) => !there.has(event.event_id)).length;
    if (!state.events.length && data.length) await reload();
    update();
  }

  function live(signal) {
    const again = follow(id, signal, {
      read,
      rest: 2000,
      events(found) {
        if (
          found.some((event) =>
            (!kinds.length || kinds.includes(event.kind)) && (!types.length || types.includes(event.job_type))
          )
        ) again();
      },
    });
  }

  function row(event) {
    const by = who(event, names(id));
    return h(
      "tr",
      { key: event.event_id, role: "row" },
      cell("When", time(event.at)),
      cell("What", capital(event.kind.replaceAll("_", " "))),
      cell(
        "On",
        event.job_id
          ? [
            link(
              `/${id}/jobs/${event.job_id}`,
              { class: "row", id: `row-${event.event_id}` },
              h("span", { class: "type" }, event.job_type),
              h("span", { class: "id", title: event.job_id }, event.job_id.slice(-8)),
            ),
          ]
          : subject(event, id),
      ),
      cell("By", h("span", { class: "name", dir: "auto", title: by }, by || "the service")),
      cell(
        "Details",
        event.to_status && event.to_status !== event.from_status && badge(event.to_status),
        " ",
        h("span", { class: "detail", dir: "auto", title: text(event) }, text(event)),
      ),
    );
  }

  function choose(event) {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    const there = new URLSearchParams();
    if (form.get("show")) there.set("show", String(form.get("show")));
    String(form.get("job_type")).split(/[\s,]+/).filter(Boolean).forEach((type) => there.append("job_type", type));
    if (String(there) !== location.search.slice(1)) go(address(`/${id}/activity`, there), { keep: true });
  }

  const shows = Object.entries(SHOWS).filter(([name]) =>
    !["flow", "schedules", "people"].includes(name) || may("owner")
  );
  return {
    title: "Activity",
    watched: true,
    live,
    view: () => [
      h(
        "form",
        { class: "filters", role: "search", "aria-label": "Filters", onsubmit: choose, onchange: choose },
        field(
          state.form,
          "Show",
          select("show", shows.map(([value, { name }]) => /** @type {[string, string]} */ ([value, name])), show),
        ),
        field(state.form, "Type", input("job_type", { id: "filter", type: "search", value: types.join(" ") })),
      ),
      h(
        "div",
        { class: "toolbar" },
        h(
          "p",
          {},
          state.fresh > 0 &&
            h(
              "button",
              { type: "button", class: "fresh", onclick: reload },
              `${state.fresh}${state.fresh === LIMIT ? " or more" : ""} new`,
            ),
        ),
      ),
      state.events.length
        ? table(
          [["When ", h("span", { class: "zone" }, zone())], "What", "On", "By", "Details"],
          state.events.map(row),
          { class: "activity" },
        )
        : empty("No events yet, or they were deleted after the retention time."),
      state.cursor && h("button", { type: "button", onclick: older }, "Show older events"),
    ],
  };
}

function subject({ data, kind, job_type: type }, id) {
  if (kind.startsWith("workspace_")) return "the workspace";
  if (kind.startsWith("schedule_")) {
    return link(`/${id}/schedules`, { class: "name", dir: "auto", title: data.name }, data.name);
  }
  if (type) {
    return link(`/${id}/jobs?job_type=${encodeURIComponent(type)}`, { class: "type", title: type }, type);
  }
  return h("span", { dir: "auto" }, data?.username || data?.name || "–");
}

/** The data of an event as text. */
function text({ data, kind }) {
  if (!data) return "";
  const { username: _username, user_id: _user, key_id: _key, ...rest } = data;
  if (kind.startsWith("key_")) delete rest.name;
  if (kind.startsWith("schedule_")) ["name", "schedule_id"].forEach((name) => delete rest[name]);
  if (/_(paused|resumed)$/.test(kind)) {
    rest.reason ??= rest.paused_reason;
    ["paused", "paused_reason"].forEach((name) => delete rest[name]);
  }
  // A setting that is null has returned to its default; elsewhere null says nothing.
  const settings = kind === "job_type_changed" || kind === "workspace_changed";
  return Object.entries(rest)
    .filter(([, value]) => value !== undefined && (value !== null || settings))
    .map(([name, value]) => `${name.replaceAll("_", " ")}: ${shown(value)}`)
    .join(", ");
}

function shown(value) {
  if (value === null) return "default";
  return typeof value === "string" ? oneLine(value) : JSON.stringify(value);
}

// Errors are cut at 1,000 characters, so the last line of a long one is not its cause.
const oneLine = (text) => (text.length < 1000 ? text.trimEnd().split("\n").at(-1) : `${text.split("\n", 1)[0]} …`);
