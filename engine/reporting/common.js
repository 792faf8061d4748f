/* What the report and the index share: theme, sortable tables, copy buttons. */
"use strict";
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const readBlock = (id) => JSON.parse(document.getElementById(id).textContent);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made && key !== "list" && key !== "style") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const remembered = {
  get(key) { try { return localStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(key, value); } catch { /* private windows */ } },
};

function setUpTheme() {
  const button = $("#theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    const chosen = remembered.get("segwright-theme");
    const dark = chosen ? chosen === "dark" : prefersDark.matches;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(dark));
  };
  button.addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme === "dark";
    remembered.set("segwright-theme", dark ? "light" : "dark");
    show();
  });
  prefersDark.addEventListener("change", show);
  show();
}

function cellValue(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
  return cell.textContent.trim().toLowerCase();
}

function setUpSorting(root = document) {
  for (const head of $$("table.sortable thead th button", root)) {
    head.addEventListener("click", () => {
      const th = head.closest("th"), table = th.closest("table");
      const column = [...th.parentNode.cells].indexOf(th);
      const numeric = th.classList.contains("num");
      const now = th.getAttribute("aria-sort");
      const order = now === "none" ? (numeric ? "descending" : "ascending") : now === "descending" ? "ascending" : "descending";
      for (const other of th.parentNode.cells) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      th.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const x = cellValue(a, column), y = cellValue(b, column);
        return sign * (x < y ? -1 : x > y ? 1 : 0);
      });
      table.tBodies[0].append(...rows);
    });
  }
}

function setUpCopying() {
  for (const button of $$("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = button.previousElementSibling.textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        const range = document.createRange();
        range.selectNodeContents(button.previousElementSibling);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
}

const format = (value, digits = 3) => value === null || value === undefined ? "–"
  : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
  : Math.abs(value) > 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : Number(value).toFixed(digits);
