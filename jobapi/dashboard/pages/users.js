// The users of the service. Administrators create, disable and enable them.

import { call, get, post } from "../api.js";
import { time, zone } from "../format.js";
import { cell, confirm, field, form, formState, input, pager, table, unseen } from "../parts.js";
import { h } from "../render.js";

/** @param {import("../state.js").Context} context */
export default async function users({ me, query, signal, reload }) {
  if (!me.is_admin) return { title: "Users", view: () => h("p", {}, "Users are managed by administrators.") };
  const found = await get(`/users?limit=50&page=${Number(query.get("page")) || 1}`, { signal });
  const state = { form: formState() };

  function change(user, body, { title, text, label, danger = true }) {
    confirm({
      title,
      text,
      label,
      danger,
      run: async () => {
        await call("PATCH", `/users/${user.user_id}`, { body });
        await reload();
      },
    });
  }

  const actions = (user) => [
    !user.disabled
      ? h("button", {
        key: "off",
        type: "button",
        class: "small",
        "data-destructive": true,
        onclick: () =>
          change(user, { disabled: true }, {
            title: `Disable ${user.username}?`,
            text: "They are logged out, and their API keys stop working. Their jobs stay.",
            label: "Disable",
          }),
      }, "Disable")
      : h("button", {
        key: "on",
        type: "button",
        class: "small",
        onclick: () =>
          change(user, { disabled: false }, {
            title: `Enable ${user.username}?`,
            text: "They can log in again.",
            label: "Enable",
            danger: false,
          }),
      }, "Enable"),
    " ",
    h("button", {
      key: "admin",
      type: "button",
      class: "small",
      "data-destructive": true,
      onclick: () =>
        change(user, { is_admin: !user.is_admin }, {
          title: user.is_admin ? `Make ${user.username} an ordinary user?` : `Make ${user.username} an administrator?`,
          text: user.is_admin
            ? "They keep their roles in workspaces."
            : "Administrators own every workspace and manage all users.",
          label: user.is_admin ? "Remove administrator" : "Make administrator",
        }),
    }, user.is_admin ? "Remove administrator" : "Make administrator"),
  ];

  async function create(fields) {
    await post("/users", { username: fields.username.value.trim(), password: fields.password.value });
    await reload();
  }

  return {
    title: "Users",
    view: () => [
      table(
        ["Name", "Administrator", "State", ["Created ", h("span", { class: "zone" }, zone())], unseen("Action")],
        found.data.map((user) =>
          h(
            "tr",
            { key: user.user_id, role: "row", class: user.disabled ? "gone" : null },
            cell(
              "Name",
              h("span", { dir: "auto" }, user.username),
              user.user_id === me.user_id && h("span", { class: "hint" }, " you"),
            ),
            cell("Administrator", user.is_admin ? "yes" : "no"),
            cell("State", user.disabled ? "disabled" : "active"),
            cell("Created", time(user.created_at)),
            cell("", user.user_id !== me.user_id && actions(user)),
          )
        ),
      ),
      pager("/users", query, found.pagination),
      h(
        "section",
        {},
        h("h2", {}, "Create a user"),
        form(
          state.form,
          { class: "card inline" },
          [
            field(state.form, "Username", input("username", { autocapitalize: "none" })),
            field(
              state.form,
              "Password",
              input("password", { type: "password", autocomplete: "new-password" }),
              "8 to 128 characters. Ask them to change it.",
            ),
          ],
          "Create user",
          create,
        ),
      ),
    ],
  };
}
