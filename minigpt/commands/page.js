"use strict";

// What the Python side wrote; the script below, of the command that made this page, draws it.
const data = JSON.parse(document.getElementById("data").textContent);

const at = (id) => document.getElementById(id);

/** A new element with a class and a text; texts are never read as HTML. */
function make(kind, className = "", text = "") {
  const element = document.createElement(kind);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

/** A new element of an SVG. */
function shape(kind, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", kind);
  Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
  element.textContent = text;
  return element;
}
