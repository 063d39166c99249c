"""The renderer of the dashboard, in a real Chromium: what stays when the tree changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page

from ..served import Service

SET_UP = """async () => {
  const script = document.querySelector('script[src$="/app.js"]').src;
  Object.assign(window, await import(script.replace("app.js", "render.js")));
  document.body.replaceChildren(window.root = document.createElement("div"));
  window.row = (id, ...more) => h("li", { key: id, id }, id, more);
  window.show = (...ids) => render(root, h("ul", {}, ids.map((id) => row(id))));
}"""


@pytest.fixture(scope="module")
def stage(browser: Any, tmp_path_factory: Any) -> Iterator[Page]:
    """A page in which the renderer draws into ``root``."""
    from ..served import environment, jobapi

    folder = tmp_path_factory.mktemp("renderer")
    env = environment(JOBAPI_ENV="development", JOBAPI_INSTANCE_PATH=str(folder / "instance"))
    assert jobapi("init", "--demo", env=env).returncode == 0
    service = Service(folder, env)
    page = browser.new_page()
    page.goto(f"{service.url}/dashboard")
    page.get_by_label("Username").wait_for()
    page.evaluate(SET_UP)
    yield page
    page.close()
    service.close()


@pytest.fixture
def draw(stage: Page) -> Page:
    """The stage, empty."""
    stage.evaluate("render(root, null)")
    return stage


def html(page: Page) -> str:
    text: str = page.evaluate("root.innerHTML")
    return text


def test_render_makes_text_of_values_and_leaves_out_empty_ones(draw: Page) -> None:
    draw.evaluate(
        """render(root, [h("p",
        { title: '"a"', hidden: false, lang: null, class: undefined, draggable: true },
        "<b>", 0, null, undefined, false, true, "", [1, ["x"]])])"""
    )
    assert html(draw) == '<p title="&quot;a&quot;" draggable="">&lt;b&gt;01x</p>'


def test_render_again_changes_only_what_differs(draw: Page) -> None:
    changes = draw.evaluate(
        """async () => {
        const tree = (n) => h("div", {}, h("p", { class: "a" }, "same"), h("p", {}, n));
        render(root, tree("1"));
        const seen = [];
        const note = (records) => seen.push(...records.map((record) => record.type));
        const all = { subtree: true, childList: true, attributes: true, characterData: true };
        new MutationObserver(note).observe(root, all);
        render(root, tree("1"));
        render(root, tree("2"));
        await null;
        return seen;
    }"""
    )
    assert changes == ["characterData"]


def test_rows_keep_their_elements_when_others_come_go_and_move(draw: Page) -> None:
    draw.evaluate("show('a', 'b', 'c')")
    draw.evaluate("window.kept = document.getElementById('b')")
    for ids in (["b"], ["x", "b", "y"], ["y", "x", "b"], ["b", "y"], ["c", "b", "a"]):
        draw.evaluate("(ids) => show(...ids)", ids)
        assert draw.locator("li").all_inner_texts() == ids
        assert draw.evaluate("kept === document.getElementById('b')")


def test_element_that_appears_does_not_change_its_siblings(draw: Page) -> None:
    draw.evaluate("render(root, [false, h('input', { id: 'name' }), h('p', {}, 'x')])")
    draw.locator("#name").fill("typed")
    draw.evaluate("render(root, [h('p', {}, 'new'), h('input', { id: 'name' }), h('p', {}, 'x')])")
    assert draw.locator("#name").input_value() == "typed"
    assert draw.locator("p").all_inner_texts() == ["new", "x"]


def test_input_keeps_what_is_typed_until_its_value_changes(draw: Page) -> None:
    tree = "(value) => render(root, h('input', { id: 'name', value }))"
    draw.evaluate(tree, "one")
    draw.locator("#name").fill("typed")
    draw.evaluate(tree, "one")
    assert draw.locator("#name").input_value() == "typed"
    draw.evaluate(tree, "two")
    assert draw.locator("#name").input_value() == "two"
    draw.evaluate(tree, None)
    assert draw.locator("#name").input_value() == ""


def test_another_page_gets_its_own_values_but_for_the_text_that_is_typed(draw: Page) -> None:
    tree = """(reset) => render(root, [h("input", { type: "text", id: "text", value: "one" }),
        h("input", { type: "checkbox", id: "box", checked: false }),
        h("select", { id: "select", value: "a" }, h("option", {}, "a"), h("option", {}, "b"))],
        { reset })"""
    values = """[document.getElementById("text").value, document.getElementById("box").checked,
        document.getElementById("select").value]"""
    draw.evaluate(tree, False)
    draw.locator("#box").check()
    draw.locator("#select").select_option("b")
    draw.locator("#text").fill("typed")
    draw.evaluate(tree, False)
    assert draw.evaluate(values) == ["typed", True, "b"]
    draw.evaluate(tree, True)
    assert draw.evaluate(values) == ["typed", False, "a"]
    draw.locator("#select").focus()
    draw.evaluate(tree, True)
    assert draw.evaluate(values) == ["one", False, "a"]


def test_select_gets_its_value_when_its_options_are_there(draw: Page) -> None:
    tree = """([value, ...options]) => render(root, h("select", { value },
        options.map((o) => h("option", { key: o, value: o }, o))))"""
    draw.evaluate(tree, ["b", "a", "b"])
    assert draw.locator("select").input_value() == "b"
    draw.evaluate(tree, ["c", "a", "b", "c"])
    assert draw.locator("select").input_value() == "c"


def test_focus_selection_scroll_and_open_details_stay(draw: Page) -> None:
    tree = """(n) => render(root, [
        h("details", {}, h("summary", {}, "more"), "text"),
        h("input", { id: "field" }),
        h("div", { id: "box", style: null, class: n % 2 ? "odd" : null },
          Array.from({ length: 200 }, (_, i) => h("p", { key: i }, `${i} of ${n}`)))])"""
    draw.evaluate(tree, 1)
    style = "document.getElementById('box').style"
    draw.evaluate(f"Object.assign({style}, {{ height: '100px', overflow: 'auto' }})")
    draw.locator("summary").click()
    draw.locator("#field").fill("some text")
    draw.evaluate(
        """document.getElementById('field').setSelectionRange(2, 6);
        document.getElementById('box').scrollTop = 900"""
    )
    draw.evaluate(tree, 2)
    assert draw.evaluate(
        """[document.activeElement.id, document.activeElement.selectionStart,
        document.activeElement.selectionEnd, document.getElementById("box").scrollTop,
        document.querySelector("details").open]"""
    ) == ["field", 2, 6, 900, True]


def test_focused_row_that_moves_keeps_the_focus(draw: Page) -> None:
    tree = """(...ids) => render(root, h("ul", {}, ids.map((id) => h("li", { key: id },
        h("button", { id, type: "button" }, id)))))"""
    draw.evaluate(f"({tree})('a', 'b', 'c')")
    draw.locator("#c").focus()
    draw.evaluate(f"({tree})('c', 'a', 'b')")
    assert draw.evaluate("document.activeElement.id") == "c"


def test_focus_goes_to_the_nearest_neighbor_but_not_to_a_destructive_button(draw: Page) -> None:
    tree = """(verb) => render(root, h("ul", {}, h("li", { key: 1 },
        h("a", { href: "#", id: "link" }, "job"),
        h("button", { key: verb, id: verb, "data-destructive": verb === "cancel" }, verb))))"""
    draw.evaluate(tree, "retry")
    draw.locator("#retry").focus()
    draw.evaluate(tree, "cancel")
    assert draw.evaluate("document.activeElement.id") == "link"
    draw.evaluate("render(root, h('h1', { tabindex: -1, id: 'title' }, 'x'))")
    assert draw.evaluate("document.activeElement.id") == "title"


def test_listeners_are_replaced_and_removed(draw: Page) -> None:
    tree = "(onclick) => render(root, h('button', { onclick }, 'go'))"
    draw.evaluate(f"window.calls = []; ({tree})(() => calls.push(1))")
    draw.locator("button").click()
    draw.evaluate(f"({tree})(() => calls.push(2))")
    draw.locator("button").click()
    draw.evaluate(f"({tree})(null)")
    draw.locator("button").click()
    assert draw.evaluate("calls") == [1, 2]


def test_mounted_is_called_once_in_the_document(draw: Page) -> None:
    tree = "() => render(root, h('p', { mounted: (node) => calls.push(node.isConnected) }, 'x'))"
    draw.evaluate("window.calls = []")
    draw.evaluate(tree)
    draw.evaluate(tree)
    assert draw.evaluate("calls") == [True]


def test_svg_has_its_namespace_and_what_is_beside_it_does_not(draw: Page) -> None:
    draw.evaluate("render(root, [h('svg', {}, h('g', {}, h('rect', { x: 1 }))), h('p', {}, 'x')])")
    assert draw.evaluate(
        """[root.querySelector("rect") instanceof SVGRectElement,
        root.lastChild instanceof HTMLElement]"""
    ) == [True, True]


def test_random_trees_equal_a_fresh_drawing(draw: Page) -> None:
    wrong = draw.evaluate(
        """() => {
        let seed = 7;
        const random = (n) => (seed = (seed * 1103515245 + 12345) % 2 ** 31) % n;
        const tree = (depth) => {
          if (depth === 0 || random(4) === 0) return ["", "text", null, 5, false][random(5)];
          const children = Array.from({ length: random(5) }, () => tree(depth - 1));
          if (random(4) === 0) return children;
          const keys = random(2) ? Array.from({ length: random(6) }, () => random(8)) : [];
          const keyed = [...new Set(keys)].map((key) =>
            h(["p", "i"][random(2)], { key, class: `k${random(3)}` }, String(key)));
          const properties = random(2) ? { title: `t${random(3)}` } : null;
          return h(["div", "p", "ul"][random(3)], properties, keyed, children);
        };
        for (let i = 0; i < 2000; i++) {
          const now = tree(4);
          render(root, now);
          const fresh = document.createElement("div");
          render(fresh, now);
          if (fresh.innerHTML !== root.innerHTML) return [i, root.innerHTML, fresh.innerHTML];
        }
        return null;
    }"""
    )
    assert wrong is None
