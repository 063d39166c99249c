// The login form: a page of its own at first, and a dialog over the page when the login session
// ends, so that nothing typed there is lost.

import { HOST_LOGIN, logIn, logInByKey } from "./api.js";
import { field, form, formState, input } from "./parts.js";
import { h } from "./render.js";

/**
 * @param {() => Promise<void>} done called after the login
 * @returns {(message: string) => import("./render.js").Tree} the view
 */
export function login(done) {
  const named = formState();
  const keyed = formState();
  if (HOST_LOGIN) {
    return (message) => [
      h("p", { class: "problem", role: "alert" }, message || "You are not logged in."),
      h(
        "p",
        {},
        "Log in to the application that this dashboard belongs to, in another tab if you like. Then continue here.",
      ),
      h("div", { class: "buttons" }, h("button", { type: "button", class: "primary", onclick: done }, "Continue")),
    ];
  }
  return (message) =>
    h(
      "div",
      { class: "login" },
      message && h("p", { class: "problem", role: "alert" }, message),
      form(
        named,
        {},
        [
          field(
            named,
            "Username",
            input("username", { autocomplete: "username", autocapitalize: "none", required: true, autofocus: true }),
          ),
          field(
            named,
            "Password",
            input("password", { type: "password", autocomplete: "current-password", required: true }),
          ),
        ],
        "Log in",
        async (fields) => {
          await logIn(fields.username.value, fields.password.value);
          await done();
        },
      ),
      h(
        "details",
        {},
        h("summary", {}, "Use an API key instead"),
        form(
          keyed,
          {},
          field(
            keyed,
            "API key",
            input("key", { type: "password", placeholder: "jk_…" }),
            "Gives access to one workspace, without its members and keys.",
          ),
          "Log in with the key",
          async (fields) => {
            await logInByKey(fields.key.value.trim());
            await done();
          },
        ),
      ),
    );
}
