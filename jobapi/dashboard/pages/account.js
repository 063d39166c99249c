// The user's own account: the password.

import { byKey, HOST_LOGIN, post } from "../api.js";
import { field, form, formState, input } from "../parts.js";
import { h } from "../render.js";
import { say } from "../state.js";

/** @param {import("../state.js").Context} context */
export default async function account({ me }) {
  await null;
  const state = { form: formState() };
  if (byKey() || HOST_LOGIN) return { title: "Account", view: () => h("p", {}, "This login has no password here.") };
  const password = (name, label, autocomplete, hint) =>
    field(state.form, label, input(name, { type: "password", autocomplete }), hint);

  async function change(fields) {
    if (fields.new_password.value !== fields.again.value) {
      state.form.wrong.again = "The two passwords differ.";
      return;
    }
    await post("/auth/password", {
      current_password: fields.current_password.value,
      new_password: fields.new_password.value,
    });
    for (const name of ["current_password", "new_password", "again"]) fields[name].value = "";
    state.form.problem = "";
    say("Password changed");
  }

  return {
    title: "Account",
    view: () => [
      h("p", {}, "You are ", h("strong", { dir: "auto" }, me.username), me.is_admin && ", an administrator", "."),
      form(
        state.form,
        { class: "card" },
        [
          h("h2", {}, "Change the password"),
          h("input", {
            type: "text",
            name: "username",
            class: "unseen",
            autocomplete: "username",
            value: me.username,
            readonly: true,
            tabindex: -1,
            "aria-hidden": "true",
          }),
          password("current_password", "Current password", "current-password"),
          password("new_password", "New password", "new-password", "8 to 128 characters."),
          password("again", "New password again", "new-password"),
        ],
        "Change the password",
        change,
      ),
    ],
  };
}
