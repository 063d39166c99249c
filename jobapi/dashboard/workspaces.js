// The list of the workspaces that the user may read.

import { HOME, byKey, get, post } from "./api.js";
import { cell, count, field, form, h, rows, since } from "./dom.js";

export default async function workspaces({ query, signal, go }) {
  const page = Number(query.get("page")) || 1;
  const { data, pagination } = await get(`/workspace?limit=50&page=${page}`, { signal });
  const list = rows(
    ["Name", "Your role", "Created"],
    data.map((each) =>
      h(
        "tr",
        { role: "row" },
        cell("Name", h("a", { class: "row", href: `${HOME}/${each.workspace_id}/jobs`, dir: "auto" }, each.name)),
        cell("Your role", each.role),
        cell("Created", since(each.created_at)),
      ),
    ),
  );
  const name = h("input", { name: "name", maxlength: 200, autocomplete: "off" });
  const create = form({}, field("Name", name), "Create workspace", async () => {
    const made = await post("/workspace", { name: name.value });
    await go(`/${made.workspace_id}`);
  });
  return {
    title: "Workspaces",
    node: h(
      "div",
      {},
      data.length ? list : h("p", { class: "none" }, "No workspaces yet. Create one, or ask the owner of a workspace to add you."),
      pages(page, pagination),
      !byKey() && h("details", { class: "more" }, h("summary", {}, "New workspace"), create),
    ),
  };
}

function pages(page, { total, total_pages }) {
  if (total_pages < 2) return null;
  return h(
    "p",
    { class: "pages" },
    page > 1 && h("a", { href: `${HOME}?page=${page - 1}`, rel: "prev" }, "Previous"),
    h("span", {}, `Page ${page} of ${total_pages}, ${count(total, "workspace")}`),
    page < total_pages && h("a", { href: `${HOME}?page=${page + 1}`, rel: "next" }, "Next"),
  );
}
