// Text with ANSI colors as elements with classes. All else in it stays text: other control
// characters become visible symbols.

import { h } from "./render.js";

// A color sequence, such as ESC [ 1 ; 31 m.
// deno-lint-ignore no-control-regex
const SGR = /\x1b\[([0-9;:]*)m/g;
// deno-lint-ignore no-control-regex
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g;
const COLORS = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];
const STYLES = { 1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "reverse", 9: "strike" };
const ENDS = { 22: ["bold", "dim"], 23: ["italic"], 24: ["underline"], 27: ["reverse"], 29: ["strike"] };

/** @typedef {{fore: string, back: string, styles: Set<string>}} Look */

/**
 * The parts of a text: texts, and spans with the classes of their colors.
 * @param {string} text
 * @returns {import("./render.js").Tree[]}
 */
export function colored(text) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/\n$/, "");
  const look = { fore: "", back: "", styles: new Set() };
  const parts = [];
  let end = 0;
  const add = (part) => {
    if (!part) return;
    const shown = part.replace(CONTROL, picture);
    const name = classes(look);
    parts.push(name ? h("span", { class: name }, shown) : shown);
  };
  for (const found of lines.matchAll(SGR)) {
    add(lines.slice(end, found.index));
    apply(look, found[1]);
    end = found.index + found[0].length;
  }
  add(lines.slice(end));
  return parts;
}

/** The symbol of a control character, such as ␛. */
function picture(character) {
  const code = character.charCodeAt(0);
  return code < 0x20 ? String.fromCharCode(0x2400 + code) : code === 0x7f ? "\u2421" : "\ufffd";
}

/** @param {Look} look */
function classes({ fore, back, styles }) {
  return [fore && `fore-${fore}`, back && `back-${back}`, ...styles].filter(Boolean).map((name) => `ansi-${name}`)
    .join(" ");
}

/**
 * @param {Look} look
 * @param {string} sequence the numbers of a sequence
 */
function apply(look, sequence) {
  const codes = sequence.split(/[;:]/).map(Number);
  for (let i = 0; i < codes.length; i++) {
    const code = codes[i];
    if (code === 0) Object.assign(look, { fore: "", back: "", styles: new Set() });
    else if (STYLES[code]) look.styles.add(STYLES[code]);
    else if (ENDS[code]) ENDS[code].forEach((name) => look.styles.delete(name));
    else if (code === 39) look.fore = "";
    else if (code === 49) look.back = "";
    else if (code === 38 || code === 48) {
      const side = code === 38 ? "fore" : "back";
      if (codes[i + 1] === 5) look[side] = ofPalette(codes[i += 2]);
      else if (codes[i + 1] === 2) {
        look[side] = nearest(codes.slice(i + 2, i + 5));
        i += 4;
      }
    } else if (code >= 30 && code <= 37) look.fore = COLORS[code - 30];
    else if (code >= 90 && code <= 97) look.fore = COLORS[code - 90];
    else if (code >= 40 && code <= 47) look.back = COLORS[code - 40];
    else if (code >= 100 && code <= 107) look.back = COLORS[code - 100];
  }
}

/** One of the 256 colors of a terminal. */
function ofPalette(n) {
  if (n < 16) return COLORS[n % 8];
  if (n >= 232) return n < 244 ? "black" : "white";
  const levels = [Math.floor((n - 16) / 36), Math.floor((n - 16) / 6) % 6, (n - 16) % 6];
  return nearest(levels.map((level) => level * 51));
}

/** The name of the color that is most like red, green and blue from 0 to 255. */
function nearest(parts) {
  const most = Math.max(...parts, 1);
  if (most < 64) return "black";
  return COLORS[parts.reduce((sum, part, i) => sum + (part > most * 0.6 ? 1 << i : 0), 0)] || "";
}
