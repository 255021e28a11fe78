/* A filter for the claims ledger, by verdict and by words. Without it the table is complete. */
"use strict";

(() => {
  const table = document.querySelector("table.claims-ledger");
  if (!table) return;
  const rows = [...table.tBodies[0].rows];
  const shownText = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const wordOf = (row) => row.querySelector(".verdict").textContent.trim();
  const words = [...new Set(rows.map(wordOf))];
  const ORDER = ["holds", "holds if", "not supported", "refuted", "untestable here", "waits"];
  words.sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b));
  let chosen = "";

  // A table that is shown as cards keeps its roles only if they are written down.
  for (const ledger of document.querySelectorAll("table.ledger")) {
    ledger.setAttribute("role", "table");
    const falsifiers = ledger.classList.contains("falsifiers");
    ledger.setAttribute("aria-label", falsifiers ? "Falsifiers F1 to F6" : "Claims C1 to C38");
    for (const part of ledger.querySelectorAll("thead, tbody")) part.setAttribute("role", "rowgroup");
    for (const row of ledger.rows) row.setAttribute("role", "row");
    for (const cell of ledger.querySelectorAll("td")) cell.setAttribute("role", "cell");
    for (const cell of ledger.querySelectorAll("thead th")) cell.setAttribute("role", "columnheader");
    for (const cell of ledger.querySelectorAll("tbody th")) cell.setAttribute("role", "rowheader");
  }

  const make = (tag, properties, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const buttons = ["", ...words].map((word) => {
    const count = word ? rows.filter((row) => wordOf(row) === word).length : rows.length;
    const button = make("button", {type: "button", textContent: `${word || "all"} (${count})`});
    button.addEventListener("click", () => { chosen = word; filter(); });
    button.dataset.word = word;
    return button;
  });
  const input = make("input", {type: "text", id: "ledger-words", autocomplete: "off", spellcheck: false});
  const status = make("p", {});
  status.setAttribute("role", "status");
  const group = make("div", {}, ...buttons);
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", "Show claims by verdict");
  const label = make("label", {htmlFor: "ledger-words", textContent: "Show claims that contain these words"});
  const box = make("div", {className: "ledger-filter"}, group, label, input, status);
  const place = table.closest(".pst-scrollable-table-container") ?? table;
  place.before(box);
  table.closest("section").querySelector(".verdict-counts")?.classList.add("on-buttons");

  let telling = 0;
  function filter() {
    const asked = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const fits = (!chosen || wordOf(row) === chosen)
        && asked.every((word) => shownText.get(row).includes(word));
      row.hidden = !fits;
      count += fits;
    }
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(button.dataset.word === chosen));
    }
    clearTimeout(telling);  // one sentence after the last key, not one for each
    telling = setTimeout(() => {
      status.textContent = count ? `${count} of ${rows.length} claims shown.`
        : "No claim fits: choose all, or other words.";
    }, 250);
  }

  // A link to a claim shows it, whatever is filtered.
  function showTarget() {
    const row = rows.find((r) => `#${r.id}` === location.hash);
    if (!row) return;
    if (row.hidden) {
      chosen = "";
      input.value = "";
      filter();
    }
    row.scrollIntoView();
  }
  input.addEventListener("input", filter);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { input.value = ""; filter(); }
  });
  window.addEventListener("hashchange", showTarget);
  filter();
  showTarget();
})();
