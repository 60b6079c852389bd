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

/** A number of three digits or so. */
function short(value) {
  if (value === null) return "∞";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

/** The value of a colour of page.css. */
function colour(name, alpha = 1) {
  const value = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  return value.includes("#") ? value : `rgb(${value} / ${alpha})`;
}
