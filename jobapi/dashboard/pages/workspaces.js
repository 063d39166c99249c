// The workspaces that the user may read, with their counts.

import { byKey, get, post } from "../api.js";
import { time, zone } from "../format.js";
import { counts } from "../header.js";
import { every, heard } from "../live.js";
import { cell, empty, field, form, formState, input, link, pager, table } from "../parts.js";
import { h } from "../render.js";
import { update } from "../state.js";

const REFRESH = 10_000;

/** @param {import("../state.js").Context} context */
export default async function workspaces({ query, signal, go }) {
  const path = `/workspace?limit=50&counts=true&page=${Number(query.get("page")) || 1}`;
  const state = { found: await get(path, { signal }), form: formState() };
  const create = async (fields) => {
    const made = await post("/workspace", { name: fields.name.value });
    await go(`/${made.workspace_id}`);
  };
  return {
    title: "Workspaces",
    watched: true,
    live: (signal) => {
      heard();
      every(REFRESH, signal, async () => {
        state.found = await get(path, { signal });
        heard();
        update();
      });
    },
    view: () => [
      state.found.data.length
        ? table(
          ["Name", "Jobs", "Your role", ["Created ", h("span", { class: "zone" }, zone())]],
          state.found.data.map((each) =>
            h(
              "tr",
              { key: each.workspace_id, role: "row" },
              cell(
                "Name",
                link(
                  `/${each.workspace_id}/jobs`,
                  { class: "row", id: `row-${each.workspace_id}`, dir: "auto" },
                  each.name,
                ),
              ),
              cell("Jobs", counts(each.counts)),
              cell("Your role", each.role),
              cell("Created", time(each.created_at)),
            )
          ),
        )
        : empty("No workspaces yet. Create one, or ask the owner of a workspace to add you."),
      pager("", query, state.found.pagination),
      !byKey() &&
      h(
        "details",
        { class: "more" },
        h("summary", {}, "New workspace"),
        form(
          state.form,
          { class: "card" },
          field(state.form, "Name", input("name", { maxlength: 200 })),
          "Create workspace",
          create,
        ),
      ),
    ],
  };
}
