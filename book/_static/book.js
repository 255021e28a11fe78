/* Small repairs that need the page: landmarks, names, keyboard access, printing. */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const sidebar = document.querySelector(".bd-sidebar-primary");
  if (sidebar) {
    sidebar.setAttribute("role", "complementary");
    sidebar.setAttribute("aria-label", "Book");
  }
  // The theme's script looks for this element on every page and fails on pages without it.
  if (!document.querySelector(".bd-sidebar-secondary")) {
    const empty = document.createElement("div");
    empty.className = "bd-sidebar-secondary";
    empty.hidden = true;
    empty.style.display = "none";
    document.body.append(empty);
  }
});

/* The icons of the theme switch carry names that differ from the button's own: take them off,
   before Font Awesome turns each <i title> into an <svg> with a <title>, or after. */
function namelessIcons() {
  for (const icon of document.querySelectorAll(".theme-switch-button > *")) {
    icon.setAttribute("aria-hidden", "true");
    icon.removeAttribute("title");
    icon.removeAttribute("aria-labelledby");
    icon.querySelector("title")?.remove();
  }
}
document.addEventListener("DOMContentLoaded", namelessIcons);
window.addEventListener("load", namelessIcons);

/* Names that hold what a button shows, for people who speak to it (WCAG 2.5.3). */
window.addEventListener("load", () => {
  for (const button of document.querySelectorAll(".search-button-field")) {
    button.setAttribute("aria-label", button.textContent.replace(/\s+/g, " ").trim());
  }
  for (const button of document.querySelectorAll(".theme-switch-button")) {
    // The new icon takes the focus away from the keyboard: give it back.
    button.addEventListener("click", () => setTimeout(() => button.focus({preventScroll: true})));
  }
});

/* On paper the page is a light one, whatever the screen shows. */
{
  const root = document.documentElement;
  let shown;
  addEventListener("beforeprint", () => {
    shown = root.dataset.theme;
    root.dataset.theme = "light";
  });
  addEventListener("afterprint", () => {
    root.dataset.theme = shown;
  });
}

/* What is wider than its column scrolls: show it, and let the keyboard reach it, and only it. */
const WIDE = {
  ".bd-article :is(mjx-container, span.math)": "Formula, scrolls sideways",
  ".bd-article .pst-scrollable-table-container": "Table, scrolls sideways",
  ".bd-article .cell_output .output": "Output, scrolls sideways",
};
function showSides(box) {
  const rest = box.scrollWidth - box.clientWidth - box.scrollLeft;
  box.classList.toggle("goes-left", box.scrollLeft > 1);
  box.classList.toggle("goes-right", rest > 1);
}
/* In a sentence only: MathJax leaves invisible parts beside short formulas too. */
function markWideFormulas() {
  const spans = [...document.querySelectorAll(".bd-article span.math:has(mjx-container)")];
  const right = (box) => box.getBoundingClientRect().right;
  const wide = spans.map((span) => right(span.querySelector("mjx-container")) > right(span) + 1);
  spans.forEach((span, place) => span.classList.toggle("wide", wide[place]));
}
function reachWideBoxes() {
  markWideFormulas();
  for (const [query, label] of Object.entries(WIDE)) {
    for (const box of document.querySelectorAll(query)) {
      const wide = box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX === "auto";
      if (wide === box.classList.contains("scrolls")) continue;
      box.classList.toggle("scrolls", wide);
      if (wide) {
        box.tabIndex = 0;
        box.setAttribute("role", "group");
        box.setAttribute("aria-label", label);
        box.onscroll = () => showSides(box);
        showSides(box);
      } else {
        for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
        box.onscroll = null;
      }
    }
  }
}
window.addEventListener("load", () => {
  const typeset = window.MathJax?.startup?.promise ?? Promise.resolve();
  typeset.then(reachWideBoxes);
});
window.addEventListener("resize", reachWideBoxes);
document.addEventListener("click", (event) => {
  // What unfolds may hold wide boxes.
  if (event.target.closest?.(".toggle-button, .admonition-title, summary")) setTimeout(reachWideBoxes, 400);
});

/* A definition stays on the screen, and Escape puts it away (WCAG 1.4.13). */
function placeHint(event) {
  const hint = event.target.closest?.(".hint");
  if (!hint) return;
  hint.classList.remove("dismissed");
  const text = hint.querySelector(".hint-text");
  text.style.setProperty("--shift", "0px");
  const beyond = text.getBoundingClientRect().right - document.documentElement.clientWidth + 8;
  if (beyond > 0) text.style.setProperty("--shift", `${-beyond}px`);
}
document.addEventListener("mouseover", placeHint);
document.addEventListener("focusin", placeHint);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const hint of document.querySelectorAll(".hint")) hint.classList.add("dismissed");
});

/* A narrow screen has no margin: the letters of a chapter, a screen of them, wait folded. */
document.addEventListener("DOMContentLoaded", () => {
  if (!matchMedia("(max-width: 991.98px)").matches) return;
  for (const title of document.querySelectorAll("aside.margin > .sidebar-title")) {
    const [box, summary] = ["details", "summary"].map((name) => document.createElement(name));
    summary.append(...title.childNodes);
    box.append(summary);
    while (title.nextSibling) box.append(title.nextSibling);
    title.replaceWith(box);
  }
});

/* Paper cannot be unfolded: print with everything open, then fold again. */
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const box of opened) box.open = true;
});
window.addEventListener("afterprint", () => {
  for (const box of opened) box.open = false;
  opened = [];
});
