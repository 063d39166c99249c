// The renderer. A view returns a tree of plain objects, and `render` changes the document until
// it equals that tree. Elements that stay keep their focus, scroll position, selected text, and
// what the user has typed or opened. Values of the API become text or attributes, never markup.

/**
 * @typedef {object} Element_ An element of the tree.
 * @property {string} tag
 * @property {string|number} [key] identifies the element among its siblings; without one it is
 *   identified by its position
 * @property {Record<string, any>} properties attributes; `on…` are event listeners; `mounted` is
 *   called with the element once it is in the document
 * @property {Tree[]} children
 *
 * @typedef {Element_|string|number|boolean|null|undefined|any[]} Tree an element or a text; booleans,
 *   null and undefined are empty; an array has trees
 *
 * @typedef {object} Made what a previous render has put into the document
 * @property {Element|Text} node
 * @property {Element_|string} leaf
 * @property {Map<string, Made>} children
 */

const SVG = "http://www.w3.org/2000/svg";

// Set as properties: their attributes are only the initial values.
const LIVE = new Set(["value", "checked", "open", "indeterminate"]);

/**
 * An element of the tree.
 * @param {string} tag
 * @param {Record<string, any>|null} [properties]
 * @param {...Tree} children
 * @returns {Element_}
 */
export const h = (tag, properties, ...children) => ({
  tag,
  key: properties?.key,
  properties: properties || {},
  children,
});

/** @type {WeakMap<Element, Map<string, Made>>} */
const roots = new WeakMap();

/** @type {[(node: Element) => void, Element][]} */
let mounted = [];

// Whether inputs get the values of the tree even if these are the same as before.
let resetting = false;

/**
 * Make the children of `root` equal to the tree.
 * @param {Element} root
 * @param {Tree} tree
 * @param {{reset?: boolean}} [options] `reset`: it is another page, so what the user has chosen in
 *   inputs gives way to the tree; only the text that is just being typed stays
 */
export function render(root, tree, { reset = false } = {}) {
  resetting = reset;
  const around = root.contains(document.activeElement) ? pathOf(document.activeElement) : [];
  if (!roots.has(root)) root.replaceChildren();
  roots.set(root, reconcile(root, roots.get(root) || new Map(), [tree]));
  const calls = mounted;
  mounted = [];
  for (const [call, node] of calls) call(node);
  // An element that was moved or removed loses the focus.
  if (around.length && document.activeElement === document.body) focusNear(around);
}

/**
 * Give the focus back to an element or, if it is gone, to its nearest neighbor: the first that can
 * have it in the innermost of the elements that were around it, but no destructive button.
 * @param {HTMLElement[]} around the element and those around it, from the inside to the outside
 */
export function focusNear(around) {
  if (around[0]?.isConnected) return around[0].focus({ preventScroll: true });
  const inputs = "button:enabled, a[href], input:enabled, select, textarea, [tabindex]";
  for (const node of around.filter((each) => each.isConnected)) {
    const next = /** @type {HTMLElement|undefined} */ ([node, ...node.querySelectorAll(inputs)].find((each) =>
      each.matches(inputs) && !each.matches("[data-destructive]")
    ));
    if (next) {
      return next.focus({ preventScroll: true });
    }
  }
}

/** An element and those around it, from the inside to the outside. */
export function pathOf(node) {
  const found = [];
  for (; node && node !== document.body; node = node.parentElement) found.push(node);
  return found;
}

/**
 * The leaves of a tree by key: its own, or its position. Positions of empty leaves stay free, so
 * that an element that appears or disappears does not change the identity of its siblings.
 * @param {Tree[]} children
 * @returns {Map<string, Element_|string>}
 */
function leaves(children, prefix = "", found = new Map()) {
  children.forEach((child, i) => {
    if (Array.isArray(child)) leaves(child, `${prefix}${i}.`, found);
    else if (typeof child === "number") found.set(prefix + i, String(child));
    else if (typeof child === "string") child && found.set(prefix + i, child);
    else if (child && typeof child === "object") {
      found.set(child.key === undefined ? prefix + i : `=${child.key}`, child);
    }
  });
  return found;
}

/**
 * @param {Element} parent
 * @param {Map<string, Made>} before
 * @param {Tree[]} children
 * @returns {Map<string, Made>}
 */
function reconcile(parent, before, children) {
  const after = leaves(children);
  const now = new Map();
  for (const [key, made] of before) {
    const leaf = after.get(key);
    if (leaf === undefined || kind(leaf) !== kind(made.leaf)) {
      made.node.remove();
      before.delete(key);
    }
  }
  let place = parent.firstChild;
  for (const [key, leaf] of after) {
    const made = before.get(key);
    const next = made ? change(made, leaf) : make(leaf, parent);
    now.set(key, next);
    if (next.node === place) place = place.nextSibling;
    else parent.insertBefore(next.node, place);
  }
  return now;
}

/** @param {Element_|string} leaf */
const kind = (leaf) => (typeof leaf === "string" ? "" : leaf.tag);

/** @returns {Made} */
function make(leaf, parent) {
  if (typeof leaf === "string") return { node: document.createTextNode(leaf), leaf, children: new Map() };
  const svg = leaf.tag === "svg" || (parent.namespaceURI === SVG && parent.tagName !== "foreignObject");
  const node = svg ? document.createElementNS(SVG, leaf.tag) : document.createElement(leaf.tag);
  const children = reconcile(node, new Map(), leaf.children);
  // After the children: the value of a select needs its options.
  assign(node, {}, leaf.properties);
  if (leaf.properties.mounted) mounted.push([leaf.properties.mounted, node]);
  return { node, leaf, children };
}

/** @returns {Made} */
function change(made, leaf) {
  const { node } = made;
  // A view that keeps a part of its tree, because nothing in it can change, need not pay for it.
  if (leaf === made.leaf && !resetting) return made;
  if (typeof leaf === "string") {
    if (made.leaf !== leaf) node.nodeValue = leaf;
    return { ...made, leaf };
  }
  const children = reconcile(node, made.children, leaf.children);
  assign(node, made.leaf.properties, leaf.properties);
  return { node, leaf, children };
}

// Only what differs between the trees is changed: an input keeps the text that the user has typed
// until its value in the tree changes, and details stay open.
function assign(node, before, after) {
  for (const name of new Set([...Object.keys(before), ...Object.keys(after)])) {
    if (name === "key" || name === "mounted" || (before[name] === after[name] && !isReset(node, name))) continue;
    if (name.startsWith("on")) listen(node, name.slice(2), after[name]);
    else if (LIVE.has(name) && name in node) node[name] = after[name] ?? (name === "value" ? "" : false);
    else if (after[name] === undefined || after[name] === null || after[name] === false) node.removeAttribute(name);
    else node.setAttribute(name, after[name] === true ? "" : String(after[name]));
  }
}

const isReset = (node, name) =>
  resetting && (name === "checked" || name === "value") && name in node &&
  !(node === document.activeElement && node.matches("textarea, input[type=text], input[type=search]"));

/** @type {WeakMap<Element, Record<string, ((event: Event) => void)|undefined>>} */
const listeners = new WeakMap();

function listen(node, name, call) {
  const calls = listeners.get(node) || {};
  listeners.set(node, calls);
  if (!(name in calls)) node.addEventListener(name, (event) => calls[name]?.(event));
  calls[name] = call || undefined;
}
