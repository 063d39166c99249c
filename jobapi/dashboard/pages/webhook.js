// One webhook: its settings, its actions, and its deliveries.

import { call, get, post, workspacePath } from "../api.js";
import { count, number, time, zone } from "../format.js";
import { every, heard } from "../live.js";
import {
  address,
  badge,
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
  select,
  table,
  unseen,
} from "../parts.js";
import { h } from "../render.js";
import { say, update } from "../state.js";
import { settingFields, settings, showSecret, stateOf } from "./webhooks.js";

const REFRESH = 3000;
const STATUSES = ["pending", "success", "failed", "cancelled"];

/** @param {import("../state.js").Context} context */
export default async function webhook({ id, rest, query, signal, may, go, reload }) {
  if (!may("owner")) return { title: "Webhook", view: () => h("p", {}, "Webhooks require the role owner.") };
  const here = `/${id}/webhooks/${rest}`;
  const path = workspacePath(id, `/webhooks/${encodeURIComponent(rest)}`);
  const status = query.get("status") || "";
  const list = new URLSearchParams({ limit: "25", page: String(Number(query.get("page")) || 1) });
  if (status) list.set("status", status);
  const state = { hook: null, found: null, problem: "" };

  async function read(signal) {
    [state.hook, state.found] = await Promise.all([
      get(path, { signal }),
      get(`${path}/deliveries?${list}`, { signal }),
    ]);
  }
  await read(signal);

  // Actions

  async function act(run, done) {
    state.problem = "";
    try {
      await run();
      await read();
      say(done);
    } catch (error) {
      state.problem = error.message;
    }
    update();
  }

  const test = () => act(() => post(`${path}/test`), "The test message is on its way");
  const redeliver = ({ delivery_id: delivery }) =>
    act(() => post(`${path}/deliveries/${delivery}/redeliver`), "The message is sent again");
  const enable = () => act(() => call("PATCH", path, { body: { enabled: true } }), "The webhook is enabled");

  const disable = () =>
    confirm({
      title: "Disable this webhook?",
      text: "Pending deliveries are cancelled. When it is enabled again, it gets the events from then on.",
      label: "Disable",
      run: () => act(() => call("PATCH", path, { body: { enabled: false } }), "The webhook is disabled"),
    });

  const rotate = () =>
    confirm({
      title: "Make a new secret?",
      text: "For 24 hours messages are signed with both secrets. Give the receiver the new one within this time.",
      label: "Make a new secret",
      danger: false,
      run: async () => {
        showSecret(await post(`${path}/rotate-secret`), reload);
      },
    });

  const remove = () =>
    confirm({
      title: "Delete this webhook?",
      text: "Its deliveries are deleted, and what is pending is not sent. This cannot be undone.",
      label: "Delete",
      run: async () => {
        await call("DELETE", path);
        go(`/${id}/webhooks`, { replace: true });
      },
    });

  function edit() {
    const editing = formState();
    dialog("Edit the webhook", (close) =>
      form(
        editing,
        {},
        [
          field(editing, "URL", input("url", { maxlength: 2000, inputmode: "url", value: state.hook.url })),
          settingFields(editing, state.hook),
        ],
        "Save",
        async (fields) => {
          await call("PATCH", path, { body: { url: fields.url.value.trim(), ...settings(fields) } });
          close();
          await reload();
        },
        closeButton(close, "Discard"),
      ));
  }

  const button = (label, onclick, properties) => h("button", { type: "button", onclick, ...properties }, label);

  const facts = ({ url, events, job_types: types, include, description, previous_secret_expires_at: until }) =>
    [
      ["URL", url],
      ["State", stateOf(state.hook)],
      ["Events", events ? events.join(", ") : "ends of jobs"],
      ["Job types", types ? types.join(", ") : "all"],
      include.length && ["Includes", include.join(", ")],
      description && ["Description", h("span", { dir: "auto" }, description)],
      until && Date.parse(until) > Date.now() && ["Previous secret valid until", time(until)],
    ].filter(Boolean);

  const row = (delivery) =>
    h(
      "tr",
      { key: delivery.delivery_id, role: "row" },
      cell("Type", delivery.type),
      cell("Job", delivery.job_id && link(`/${id}/jobs/${delivery.job_id}`, { class: "id" }, delivery.job_id)),
      cell("Status", badge(delivery.status)),
      cell("Attempts", number(delivery.attempts)),
      cell("Answer", answer(delivery)),
      cell("Event", time(delivery.created_at)),
      cell("Next attempt", delivery.next_attempt_at ? time(delivery.next_attempt_at) : ""),
      cell("", state.hook.enabled && button("Send again", () => redeliver(delivery), { class: "small" })),
    );

  return {
    title: "Webhook",
    watched: true,
    live: (signal) => {
      heard();
      every(REFRESH, signal, async () => {
        await read(signal);
        heard();
        update();
      });
    },
    view: () => [
      h("p", {}, link(`/${id}/webhooks`, {}, "All webhooks")),
      h(
        "dl",
        { class: "facts" },
        facts(state.hook).map(([name, value]) => h("div", { key: name }, h("dt", {}, name), h("dd", {}, value))),
      ),
      state.problem && h("p", { class: "problem", role: "alert" }, state.problem),
      h(
        "div",
        { class: "buttons" },
        state.hook.enabled && button("Send a test", test),
        button("Edit", edit),
        button("New secret", rotate),
        state.hook.enabled
          ? button("Disable", disable, { "data-destructive": true })
          : button("Enable", enable, { class: "primary" }),
        button("Delete", remove, { "data-destructive": true }),
      ),
      h("h2", {}, "Deliveries"),
      h(
        "p",
        { class: "field" },
        h("label", { for: "delivery-status" }, "Status"),
        select(
          "status",
          [["", "all"], ...STATUSES.map((each) => /** @type {[string, string]} */ ([each, each]))],
          status,
          {
            id: "delivery-status",
            onchange: (event) => {
              const chosen = event.target.value;
              go(address(here, chosen ? new URLSearchParams({ status: chosen }) : null), { keep: true });
            },
          },
        ),
      ),
      state.found.data.length
        ? [
          h("p", { class: "hint" }, count(state.found.pagination.total, "delivery", "deliveries")),
          table(
            [
              "Type",
              "Job",
              "Status",
              "Attempts",
              "Answer",
              ["Event ", h("span", { class: "zone" }, zone())],
              ["Next attempt ", h("span", { class: "zone" }, zone())],
              unseen("Action"),
            ],
            state.found.data.map(row),
            { class: "webhooks" },
          ),
        ]
        : empty("No deliveries. Those that ended are kept for 30 days, 1,000 at most."),
      pager(here, query, state.found.pagination),
    ],
  };
}

/** The last answer of the receiver. */
function answer({ error, response_status: status, response_body: body }) {
  if (error) return error;
  return status &&
    [String(status), body && h("span", { class: "hint", dir: "auto", title: body }, ` ${body.slice(0, 80)}`)];
}
