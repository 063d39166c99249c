// The names of a workspace's members and API keys by their ids.

import { byKey, get, workspacePath } from "./api.js";
import { app, update } from "./state.js";

const AGAIN = 10_000;
const PAGES = 10;

/** @type {Map<string, {users: Map<number, string>, keys: Map<number, string>, read: number, first: boolean}>} */
const known = new Map();

async function all(id, what) {
  const found = [];
  let cursor = "";
  for (let page = 0; page < PAGES && cursor !== null; page++) {
    const answer = await get(
      workspacePath(id, `/${what}?limit=100${cursor && `&cursor=${encodeURIComponent(cursor)}`}`),
    );
    found.push(...answer.data);
    cursor = answer.pagination.next_cursor;
  }
  return found;
}

async function read(id, names) {
  names.read = Date.now();
  const [members, keys] = await Promise.allSettled([
    byKey() ? [] : all(id, "members"),
    app.workspace?.role === "owner" && !byKey() ? all(id, "keys") : [],
  ]);
  if (members.status === "fulfilled") members.value.forEach((each) => names.users.set(each.user_id, each.username));
  if (keys.status === "fulfilled") keys.value.forEach((each) => names.keys.set(each.key_id, each.name));
  names.first = false;
  update();
}

/**
 * The names that are known now, and "…" for those that are still to come, so that no id is shown
 * for a moment. They are read again for an id that is still unknown, which may be that of a new
 * member.
 * @param {string} id the workspace
 */
export function names(id) {
  if (!known.has(id)) {
    const made = { users: new Map(), keys: new Map(), read: 0, first: true };
    known.set(id, made);
    read(id, made);
  }
  const found = known.get(id);
  const lookup = (map) => ({
    get(number) {
      if (!map.has(number) && Date.now() - found.read > AGAIN) read(id, found);
      return map.get(number) ?? (found.first ? "…" : undefined);
    },
  });
  return { users: lookup(found.users), keys: lookup(found.keys) };
}

/** Forget names, which may have changed. */
export const forgetNames = (id) => known.delete(id);
