/* Small repairs that need the page: landmarks, keyboard access to wide formulas, printing. */
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

/* A formula wider than its column scrolls: let the keyboard reach it, and only it. */
function reachWideFormulas() {
  for (const box of document.querySelectorAll(".bd-article div.math")) {
    if (box.scrollWidth > box.clientWidth) {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", "Formula, scrolls sideways");
    } else {
      box.removeAttribute("tabindex");
      box.removeAttribute("role");
      box.removeAttribute("aria-label");
    }
  }
}
window.addEventListener("load", () => {
  const typeset = window.MathJax?.startup?.promise ?? Promise.resolve();
  typeset.then(reachWideFormulas);
});
window.addEventListener("resize", reachWideFormulas);

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
