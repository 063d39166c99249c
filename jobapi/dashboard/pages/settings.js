// The name of a workspace, its retention and the ageing of priorities; its pause and its deletion.

import { byKey, call, post, workspacePath } from "../api.js";
import { count } from "../format.js";
import { closeButton, confirm, dialog, field, form, formState, input, whole } from "../parts.js";
import { h } from "../render.js";
import { app, say, update } from "../state.js";

const KEPT = { success: "Succeeded jobs", failed: "Failed jobs", cancelled: "Cancelled jobs", events: "Events" };

/** @param {import("../state.js").Context} context */
export default async function settings({ id, workspace, reload, go, may }) {
  await null;
  if (!may("owner")) {
    return {
      title: "Settings",
      view: () => h("p", {}, "The settings of a workspace require the role owner."),
    };
  }
  const state = { form: formState() };
  const days = (name, label) =>
    field(
      state.form,
      label,
      input(`retention.${name}`, {
        id: `retention-${name}`,
        inputmode: "numeric",
        value: workspace.retention[name] ?? "",
      }),
    );

  async function save(fields) {
    const retention = {};
    for (const name of Object.keys(KEPT)) {
      const value = fields[`retention.${name}`].value.trim();
      retention[name] = value === "" ? null : whole(value);
    }
    const ageing = fields.priority_ageing_seconds.value.trim();
    const body = { name: fields.name.value, retention };
    if (ageing !== String(workspace.priority_ageing_seconds ?? "")) {
      body.priority_ageing_seconds = ageing === "" ? null : whole(ageing);
    }
    const send = async () => {
      await call("PATCH", workspacePath(id), { body });
      await reload();
      say("Saved");
    };
    const shorter = Object.keys(KEPT).filter((name) =>
      retention[name] !== null && !(workspace.retention[name] !== null && workspace.retention[name] <= retention[name])
    );
    if (!shorter.length) return await send();
    const text = shorter.map((name) =>
      `${KEPT[name]}: ${typeof retention[name] === "number" ? count(retention[name], "day") : retention[name]}`
    ).join(", ");
    // Older jobs and events are deleted within a minute.
    confirm({
      title: "Shorten the retention?",
      text: `${text}. Older data is deleted. This cannot be undone.`,
      label: "Save",
      run: send,
    });
  }

  const pause = () =>
    confirm({
      title: "Pause this workspace?",
      text: "Workers get no more jobs until it is resumed. Running jobs continue, and jobs can be created.",
      label: "Pause the workspace",
      danger: false,
      reason: true,
      run: async (reason) => {
        app.workspace = await post(workspacePath(id, "/pause"), reason ? { reason } : undefined);
      },
    });

  const resume = () =>
    confirm({
      title: "Resume this workspace?",
      text: "Workers get jobs again, except those of paused job types.",
      label: "Resume the workspace",
      danger: false,
      run: async () => {
        app.workspace = await post(workspacePath(id, "/resume"));
        say("The workspace is resumed");
      },
    });

  function askToDelete() {
    const form = formState();
    let typed = "";
    const remove = (close) => async () => {
      Object.assign(form, { busy: true, problem: "" });
      update();
      try {
        await call("DELETE", workspacePath(id));
        close();
        await go("");
        say("The workspace is being deleted");
      } catch (error) {
        form.problem = error.message;
      } finally {
        form.busy = false;
        update();
      }
    };
    dialog("Delete this workspace?", (close) => [
      h(
        "p",
        {},
        "All its jobs, events, members and API keys are deleted. Workers lose their leases. This cannot be undone.",
      ),
      field(
        form,
        `Enter the name “${workspace.name}” to confirm`,
        input("confirm", { oninput: (event) => ((typed = event.target.value), update()) }),
      ),
      form.problem && h("p", { class: "problem", role: "alert" }, form.problem),
      h(
        "div",
        { class: "buttons" },
        closeButton(close, "Keep it"),
        h("button", {
          type: "button",
          class: "danger",
          "data-destructive": true,
          disabled: form.busy || typed !== workspace.name,
          onclick: remove(close),
        }, "Delete the workspace"),
      ),
    ]);
  }

  return {
    title: "Settings",
    view: () => [
      form(
        state.form,
        { class: "card" },
        [
          field(state.form, "Name", input("name", { maxlength: 200, value: workspace.name })),
          h(
            "fieldset",
            { class: "fields" },
            h("legend", {}, "Retention in days. Empty: keep forever."),
            Object.entries(KEPT).map(([name, label]) => days(name, label)),
          ),
          field(
            state.form,
            "Priority ageing, in seconds",
            input("priority_ageing_seconds", {
              inputmode: "numeric",
              value: workspace.priority_ageing_seconds ?? "",
            }),
            "This many seconds of waiting are worth one level of priority. Empty: a job of a higher priority always comes first.",
          ),
        ],
        "Save",
        save,
      ),
      !byKey() &&
      h(
        "section",
        { class: "card" },
        h("h2", {}, "Pause"),
        app.workspace?.paused
          ? [
            h("p", {}, "The workspace is paused: workers get no jobs. Running jobs continue."),
            h("button", { type: "button", key: "resume", onclick: resume }, "Resume the workspace…"),
          ]
          : [
            h("p", {}, "Stop handing out jobs to workers. Running jobs continue, and jobs can be created."),
            h("button", { type: "button", key: "pause", onclick: pause }, "Pause the workspace…"),
          ],
      ),
      !byKey() &&
      h(
        "section",
        { class: "card" },
        h("h2", {}, "Delete the workspace"),
        h("p", {}, "Deletes the workspace with everything in it."),
        h(
          "button",
          { type: "button", class: "danger", "data-destructive": true, onclick: askToDelete },
          "Delete the workspace…",
        ),
      ),
    ],
  };
}
