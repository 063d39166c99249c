// The API keys of a workspace.

import { call, get, post, workspacePath } from "../api.js";
import { ago, time, toUtc, zone } from "../format.js";
import {
  cell,
  closeButton,
  confirm,
  copyButton,
  dialog,
  empty,
  field,
  form,
  formState,
  input,
  pager,
  ROLES,
  select,
  table,
  unseen,
} from "../parts.js";
import { forgetNames } from "../names.js";
import { h } from "../render.js";

/** @param {import("../state.js").Context} context */
export default async function keys({ id, query, signal, reload, may }) {
  if (!may("owner")) return { title: "API keys", view: () => h("p", {}, "API keys require the role owner.") };
  const path = workspacePath(id, "/keys");
  const found = await get(`${path}?limit=50&page=${Number(query.get("page")) || 1}`, { signal });
  const state = { form: formState() };

  const status = (
    key,
  ) => (key.revoked_at
    ? `revoked ${ago(key.revoked_at)}`
    : key.expires_at
    ? `${Date.parse(key.expires_at) < Date.now() ? "expired" : "expires"} ${ago(key.expires_at)}`
    : "active");

  const revoke = (key) =>
    confirm({
      title: `Revoke the key ${key.name}?`,
      text: "The key stops working immediately. This cannot be undone.",
      label: "Revoke",
      run: async () => {
        await call("DELETE", `${path}/${key.key_id}`);
        await reload();
      },
    });

  async function create(fields) {
    const body = { name: fields.name.value, role: fields.role.value };
    const types = fields.job_types.value.split(/[\s,]+/).filter(Boolean);
    if (types.length) body.job_types = types;
    if (fields.expires_at.value) body.expires_at = toUtc(fields.expires_at.value);
    const made = await post(path, body);
    forgetNames(id);
    dialog(
      `The key ${made.name}`,
      (close) => [
        h("p", {}, "Copy the key now. It will not be shown again."),
        h("input", {
          readonly: true,
          value: made.key,
          "aria-label": "The key",
          class: "secret",
          spellcheck: "false",
          autofocus: true,
          mounted: (node) => node.select(),
        }),
        h("div", { class: "buttons" }, copyButton(made.key), closeButton(close)),
      ],
      { closed: reload },
    );
  }

  return {
    title: "API keys",
    view: () => [
      found.data.length
        ? table(
          [
            "Name",
            "Role",
            "Job types",
            ["Last used ", h("span", { class: "zone" }, zone())],
            "State",
            unseen("Action"),
          ],
          found.data.map((key) =>
            h(
              "tr",
              { key: key.key_id, role: "row", class: key.revoked_at ? "gone" : null },
              cell("Name", h("span", { dir: "auto" }, key.name)),
              cell("Role", key.role),
              cell("Job types", key.job_types ? key.job_types.join(" ") : "all"),
              cell("Last used", time(key.last_used_at)),
              cell("State", status(key)),
              cell(
                "",
                !key.revoked_at &&
                  h("button", {
                    type: "button",
                    class: "small",
                    "data-destructive": true,
                    onclick: () => revoke(key),
                  }, "Revoke"),
              ),
            )
          ),
        )
        : empty("No API keys yet. Create one for a worker or a program that calls the API."),
      pager(`/${id}/keys`, query, found.pagination),
      h(
        "section",
        {},
        h("h2", {}, "Create a key"),
        form(
          state.form,
          { class: "card inline" },
          [
            field(state.form, "Name", input("name", { maxlength: 200 })),
            field(state.form, "Role", select("role", ROLES.slice(0, 3), "worker")),
            field(
              state.form,
              "Job types (optional)",
              input("job_types"),
              "Limits the key to these job types. Separate them with spaces.",
            ),
            field(state.form, "Expires (optional)", input("expires_at", { type: "datetime-local" })),
          ],
          "Create key",
          create,
        ),
      ),
    ],
  };
}
