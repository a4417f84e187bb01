// Elements from values; texts are never read as HTML.

/** The element of an id. */
export function byId(id) {
  return document.getElementById(id);
}

/** A new element: its properties, its children (elements or texts). */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role" || name === "for") made.setAttribute(name, value);
    else if (name === "style") Object.assign(made.style, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Put children in place of an element's own. */
export function fill(element, ...children) {
  element.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
}

/** Options of a select, and the chosen one. */
export function options(select, names, chosen) {
  fill(select, ...names.map((name) => el("option", { value: name, selected: name === chosen }, name)));
}

/** Seconds for a person. */
export function seconds(value) {
  return `${value.toFixed(1)} s`;
}

/** Seconds of waiting for a person. */
export function duration(value) {
  if (value < 90) return `${Math.ceil(value)} s`;
  return `${Math.round(value / 60)} min`;
}

/** Bytes for a person. */
export function bytes(value) {
  if (value < 1e6) return `${(value / 1e3).toFixed(0)} kB`;
  if (value < 1e9) return `${(value / 1e6).toFixed(1)} MB`;
  return `${(value / 1e9).toFixed(2)} GB`;
}
