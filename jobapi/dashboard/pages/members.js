// The members of a workspace and their roles.

import { call, get, post, workspacePath } from "../api.js";
import { time, zone } from "../format.js";
import { cell, confirm, field, form, formState, input, pager, ROLES, select, table, unseen } from "../parts.js";
import { forgetNames } from "../names.js";
import { h } from "../render.js";
import { say, update } from "../state.js";

/** @param {import("../state.js").Context} context */
export default async function members({ id, query, me, signal, may, reload, go }) {
  const path = workspacePath(id, "/members");
  const found = await get(`${path}?limit=50&page=${Number(query.get("page")) || 1}`, { signal });
  const state = { chosen: new Map(), problem: "", form: formState() };

  // The choice of a role changes nothing until it is saved: arrow keys pass through all of them.
  function role(member) {
    if (!may("owner")) return member.role;
    const chosen = state.chosen.get(member.user_id) ?? member.role;
    const choose = (event) => (state.chosen.set(member.user_id, event.target.value), update());
    return h(
      "span",
      { class: "role" },
      select("role", ROLES, chosen, {
        "aria-label": `Role of ${member.username}`,
        id: `role-${member.user_id}`,
        onchange: choose,
        oninput: choose,
      }),
      chosen !== member.role &&
        h("button", { type: "button", class: "primary small", onclick: () => save(member, chosen) }, "Save"),
    );
  }

  async function save(member, role) {
    const own = member.user_id === me.user_id;
    const put = async () => {
      await call("PATCH", `${path}/${member.user_id}`, { body: { role } });
      say(`${member.username} is now ${role}`);
      // One's own role decides what the page shows. Reading it again would reset the choices in other rows.
      if (own) await reload();
      else member.role = role;
    };
    if (own) {
      confirm({
        title: "Change your own role?",
        text: `You will be ${role} of this workspace. Only another owner can undo this.`,
        label: `Become ${role}`,
        run: put,
      });
      return;
    }
    state.problem = "";
    try {
      await put();
    } catch (error) {
      state.problem = error.message;
    }
    update();
  }

  function remove(member) {
    const own = member.user_id === me.user_id;
    if (!own && !may("owner")) return null;
    const label = own ? "Leave" : "Remove";
    const ask = () =>
      confirm({
        title: own ? "Leave this workspace?" : `Remove ${member.username}?`,
        text: own ? "Your API keys for it stop working too." : "Their API keys stop working too.",
        label,
        run: async () => {
          await call("DELETE", `${path}/${member.user_id}`);
          await (own ? go("") : reload());
        },
      });
    return h("button", { type: "button", class: "small", "data-destructive": true, onclick: ask }, label);
  }

  async function add(fields) {
    await post(path, { username: fields.username.value.trim(), role: fields.role.value });
    forgetNames(id);
    await reload();
  }

  return {
    title: "Members",
    view: () => [
      state.problem && h("p", { class: "problem", role: "alert" }, state.problem),
      table(
        ["Name", "Role", ["Since ", h("span", { class: "zone" }, zone())], unseen("Action")],
        found.data.map((member) =>
          h(
            "tr",
            { key: member.user_id, role: "row" },
            cell(
              "Name",
              h("span", { dir: "auto" }, member.username),
              member.user_id === me.user_id && h("span", { class: "hint" }, " you"),
            ),
            cell("Role", role(member)),
            cell("Since", time(member.created_at)),
            cell("", remove(member)),
          )
        ),
      ),
      pager(`/${id}/members`, query, found.pagination),
      may("owner") &&
      h(
        "section",
        {},
        h("h2", {}, "Add a member"),
        form(
          state.form,
          { class: "card inline" },
          [
            field(state.form, "Username", input("username", { autocapitalize: "none" })),
            field(state.form, "Role", select("role", ROLES, "member", { id: "new-role" })),
          ],
          "Add member",
          add,
        ),
      ),
    ],
  };
}
