// The members, API keys and settings of a workspace.

import { HOME, call, get, post, workspacePath } from "./api.js";
import { ROLES, cancelButton, cell, confirm, count, dialog, field, form, h, rows, say, select, since, toUtc } from "./dom.js";

const PAGE = 50;

export default async function people(context) {
  return { members, keys, settings }[context.rest](context);
}

const pages = (address, page, { total_pages }) =>
  total_pages > 1 &&
  h(
    "p",
    { class: "pages" },
    page > 1 && h("a", { href: `${HOME}${address}?page=${page - 1}` }, "Previous"),
    h("span", {}, `Page ${page} of ${total_pages}`),
    page < total_pages && h("a", { href: `${HOME}${address}?page=${page + 1}` }, "Next"),
  );

async function members({ id, query, me, signal, may, reload, go }) {
  const page = Number(query.get("page")) || 1;
  const path = workspacePath(id, "/members");
  const { data, pagination } = await get(`${path}?limit=${PAGE}&page=${page}`, { signal });
  const wrong = h("p", { class: "problem", role: "alert" });

  function role(member) {
    if (!may("owner")) return member.role;
    const choose = select({ "aria-label": `Role of ${member.username}`, id: `role-${member.user_id}` }, ROLES, member.role);
    choose.addEventListener("change", async () => {
      wrong.textContent = "";
      try {
        await call("PATCH", `${path}/${member.user_id}`, { body: { role: choose.value } });
        say(`${member.username} is now ${choose.value}`);
        member.role = choose.value;
      } catch (error) {
        choose.value = member.role;
        wrong.textContent = error.message;
      }
    });
    return choose;
  }

  function remove(member) {
    const own = member.user_id === me.user_id;
    if (!own && !may("owner")) return null;
    const label = own ? "Leave" : "Remove";
    return h("button", { type: "button", onclick: () => confirm(own ? "Leave this workspace?" : `Remove ${member.username}?`, own ? "Your API keys for it stop working too." : "Their API keys stop working too.", label, async () => {
      await call("DELETE", `${path}/${member.user_id}`);
      await (own ? go("") : reload());
    }) }, label);
  }

  const name = h("input", { name: "username", autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
  const add = form({ class: "inline" }, [field("Username", name), field("Role", select({ name: "role" }, ROLES, "member"))], "Add member", async (fields) => {
    await post(path, { username: fields.username.value.trim(), role: fields.role.value });
    await reload();
  });
  return {
    title: "Members",
    node: h(
      "div",
      {},
      wrong,
      rows(
        ["Name", "Role", "Since", ""],
        data.map((member) => h("tr", { role: "row" }, cell("Name", h("span", { dir: "auto" }, member.username), member.user_id === me.user_id && h("span", { class: "hint" }, " you")), cell("Role", role(member)), cell("Since", since(member.created_at)), cell("", remove(member)))),
      ),
      pages(`/${id}/members`, page, pagination),
      may("owner") && h("section", {}, h("h2", {}, "Add a member"), add),
    ),
  };
}

async function keys({ id, query, signal, reload }) {
  const page = Number(query.get("page")) || 1;
  const path = workspacePath(id, "/keys");
  const { data, pagination } = await get(`${path}?limit=${PAGE}&page=${page}`, { signal });
  const state = (key) => (key.revoked_at ? ["revoked ", since(key.revoked_at)] : key.expires_at ? [Date.parse(key.expires_at) < Date.now() ? "expired " : "expires ", since(key.expires_at)] : "active");
  const revoke = (key) =>
    h("button", { type: "button", onclick: () => confirm(`Revoke the key ${key.name}?`, "The key stops working immediately. This cannot be undone.", "Revoke", async () => {
      await call("DELETE", `${path}/${key.key_id}`);
      await reload();
    }) }, "Revoke");

  const create = form(
    { class: "inline" },
    [
      field("Name", h("input", { name: "name", maxlength: 200, autocomplete: "off" })),
      field("Role", select({ name: "role" }, ROLES.slice(0, 3), "worker")),
      field("Job types (optional)", h("input", { name: "job_types", autocomplete: "off", spellcheck: "false" }), "Limits the key to these job types. Separate them with spaces."),
      field("Expires (optional)", h("input", { name: "expires_at", type: "datetime-local" })),
    ],
    "Create key",
    async (fields) => {
      const body = { name: fields.name.value, role: fields.role.value };
      const types = fields.job_types.value.split(/[\s,]+/).filter(Boolean);
      if (types.length) body.job_types = types;
      if (fields.expires_at.value) body.expires_at = toUtc(fields.expires_at.value);
      show(await post(path, body));
    },
  );

  function show(made) {
    const text = h("input", { readonly: true, value: made.key, "aria-label": "The key", class: "secret", spellcheck: "false" });
    const copy = navigator.clipboard && h("button", { type: "button", class: "primary", onclick: () => navigator.clipboard.writeText(made.key).then(() => say("Copied")) }, "Copy");
    dialog(`The key ${made.name}`, [h("p", {}, "Copy the key now. It will not be shown again."), text, h("div", { class: "buttons" }, copy, cancelButton())], reload);
    text.select();
  }

  return {
    title: "API keys",
    node: h(
      "div",
      {},
      data.length
        ? rows(
            ["Name", "Role", "Job types", "Last used", "State", ""],
            data.map((key) =>
              h(
                "tr",
                { role: "row", class: key.revoked_at ? "gone" : "" },
                cell("Name", h("span", { dir: "auto" }, key.name)),
                cell("Role", key.role),
                cell("Job types", key.job_types ? key.job_types.join(" ") : "all"),
                cell("Last used", since(key.last_used_at)),
                cell("State", state(key)),
                cell("", !key.revoked_at && revoke(key)),
              ),
            ),
          )
        : h("p", { class: "none" }, "No API keys yet."),
      pages(`/${id}/keys`, page, pagination),
      h("section", {}, h("h2", {}, "Create a key"), create),
    ),
  };
}

async function settings({ id, workspace, reload }) {
  const days = (name, hint) => field(hint, h("input", { name: `retention.${name}`, inputmode: "numeric", autocomplete: "off", value: workspace.retention[name] ?? "" }));
  const kept = ["success", "failed", "cancelled", "events"];
  const node = form(
    { class: "create" },
    [
      field("Name", h("input", { name: "name", maxlength: 200, autocomplete: "off", value: workspace.name })),
      h("fieldset", {}, h("legend", {}, "Retention in days. Empty: keep forever."), days("success", "Succeeded jobs"), days("failed", "Failed jobs"), days("cancelled", "Cancelled jobs"), days("events", "Events")),
    ],
    "Save",
    async (fields) => {
      const retention = {};
      for (const name of kept) {
        const value = fields[`retention.${name}`].value.trim();
        retention[name] = value === "" ? null : /^\d+$/.test(value) ? Number(value) : value;
      }
      const shorter = kept.filter((name) => retention[name] !== null && !(workspace.retention[name] !== null && workspace.retention[name] <= retention[name]));
      const save = async () => {
        await call("PATCH", workspacePath(id), { body: { name: fields.name.value, retention } });
        await reload();
        say("Saved");
      };
      if (!shorter.length) return save();
      // Older jobs and events are deleted within a minute.
      confirm("Shorten the retention?", `${shorter.map((name) => `${name}: ${typeof retention[name] === "number" ? count(retention[name], "day") : retention[name]}`).join(", ")}. Older data is deleted. This cannot be undone.`, "Save", save);
    },
  );
  return { title: "Settings", node };
}
