// The webhooks of a workspace.

import { get, post, workspacePath } from "../api.js";
import { time, zone } from "../format.js";
import { cell, closeButton, copyButton, dialog, empty, field, form, formState, input, link, table } from "../parts.js";
import { h } from "../render.js";

/** @param {import("../state.js").Context} context */
export default async function webhooks({ id, signal, reload, may }) {
  if (!may("owner")) return { title: "Webhooks", view: () => h("p", {}, "Webhooks require the role owner.") };
  const path = workspacePath(id, "/webhooks");
  const found = await get(`${path}?limit=100`, { signal });
  const state = formState();

  async function create(fields) {
    const made = await post(path, { url: fields.url.value.trim(), ...settings(fields) });
    showSecret(made, reload);
  }

  return {
    title: "Webhooks",
    view: () => [
      h(
        "p",
        { class: "hint" },
        "A webhook sends the events of this workspace to an HTTP server, signed as Standard Webhooks says.",
      ),
      found.data.length
        ? table(
          ["URL", "Events", "Job types", "State", ["Created ", h("span", { class: "zone" }, zone())]],
          found.data.map((webhook) =>
            h(
              "tr",
              { key: webhook.webhook_id, role: "row", class: webhook.enabled ? null : "gone" },
              cell(
                "URL",
                link(`/${id}/webhooks/${webhook.webhook_id}`, { class: "row" }, webhook.url),
                webhook.description && h("p", { class: "hint", dir: "auto" }, webhook.description),
              ),
              cell("Events", webhook.events ? webhook.events.join(" ") : "ends of jobs"),
              cell("Job types", webhook.job_types ? webhook.job_types.join(" ") : "all"),
              cell("State", stateOf(webhook)),
              cell("Created", time(webhook.created_at)),
            )
          ),
          { class: "webhooks" },
        )
        : empty("No webhooks yet. Create one to get a message whenever a job ends."),
      h(
        "section",
        {},
        h("h2", {}, "Create a webhook"),
        form(
          state,
          { class: "card" },
          [
            field(
              state,
              "URL",
              input("url", { maxlength: 2000, inputmode: "url" }),
              "https, at a globally routable address.",
            ),
            settingFields(state, {}),
          ],
          "Create webhook",
          create,
        ),
      ),
    ],
  };
}

/** What a webhook does at the moment. */
export function stateOf({ enabled, disabled_reason: reason, failing_since: since }) {
  if (!enabled) {
    return reason === "gone"
      ? "disabled: the receiver answered 410"
      : reason === "failing"
      ? "disabled after five days of failures"
      : "disabled";
  }
  return since ? ["failing since ", time(since)] : "enabled";
}

/**
 * The fields of the settings besides the URL.
 * @param {ReturnType<typeof formState>} state
 * @param {any} webhook
 */
export const settingFields = (state, { events, job_types: types, include, description }) => [
  field(
    state,
    "Events (optional)",
    input("events", { value: (events || []).join(" ") }),
    "Kinds of events, separated by spaces, such as created failed. Empty: the ends of jobs.",
  ),
  field(
    state,
    "Job types (optional)",
    input("job_types", { value: (types || []).join(" ") }),
    "Only events about these job types. Separate them with spaces.",
  ),
  field(
    state,
    "Include (optional)",
    input("include", { value: (include || []).join(" ") }),
    "metadata, result or both: fields of the job that messages have, too.",
  ),
  field(state, "Description (optional)", input("description", { maxlength: 1000, value: description || "" })),
];

const words = (text) => {
  const found = text.split(/[\s,]+/).filter(Boolean);
  return found.length ? found : null;
};

/** The settings of a form with `settingFields`. */
export const settings = (fields) => ({
  events: words(fields.events.value),
  job_types: words(fields.job_types.value),
  include: words(fields.include.value),
  description: fields.description.value.trim() || null,
});

/** Show a new secret, once. */
export const showSecret = (webhook, closed) =>
  dialog(
    "The secret of the webhook",
    (close) => [
      h("p", {}, "Copy the secret now: the receiver verifies messages with it. It will not be shown again."),
      h("input", {
        readonly: true,
        value: webhook.secret,
        "aria-label": "The secret",
        class: "secret",
        spellcheck: "false",
        autofocus: true,
        mounted: (node) => node.select(),
      }),
      h("div", { class: "buttons" }, copyButton(webhook.secret), closeButton(close)),
    ],
    { closed },
  );
