// The state that all pages share, and the one function that shows a change of any state.

/**
 * @typedef {import("./render.js").Tree} Tree
 *
 * @typedef {object} Page
 * @property {string} title
 * @property {string} [heading] the heading, if it is not the title
 * @property {() => Tree} view the page as a function of its state; it changes nothing
 * @property {(signal: AbortSignal) => void} [live] keep the state up to date until the signal
 * @property {boolean} [watched] whether the page says when it was last updated
 *
 * @typedef {object} Context what a page is opened with
 * @property {string} id the workspace's id in the address
 * @property {string} rest what follows it
 * @property {any} workspace
 * @property {any} me the user; empty for an API key
 * @property {URLSearchParams} query
 * @property {AbortSignal} signal ends requests when the user leaves the page
 * @property {(role: string) => boolean} may whether the user's role includes this one
 * @property {(address: string, options?: {replace?: boolean, keep?: boolean}) => Promise<void>} go
 * @property {() => Promise<void>} reload open the page again
 */

/**
 * @type {{
 *   me: any, workspace: any, page: Page|null, busy: boolean, now: number, heard: number|null,
 *   trouble: string|null, said: string, dialogs: {key: number, view: () => Tree}[], login: {message: string, view: (message: string) => Tree}|null, menu: string|null,
 * }}
 */
export const app = {
  me: null,
  workspace: null,
  page: null,
  busy: true,
  // The time that relative times and run times count to.
  now: Date.now(),
  // When the page last heard from the service.
  heard: null,
  trouble: null,
  // What screen readers are told.
  said: "",
  dialogs: [],
  // Not null while the user has to log in again.
  login: null,
  // The menu that is open.
  menu: null,
};

let draw = () => {};
let scheduled = false;

/** @param {() => void} call */
export function drawWith(call) {
  draw = call;
}

// Show the state. Several changes within a frame are shown at once.
export function update() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    draw();
  });
}

/** @param {string} text */
export function say(text) {
  app.said = text;
  update();
}

setInterval(() => {
  if (document.hidden) return;
  app.now = Date.now();
  update();
}, 1000);
