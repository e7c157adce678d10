/* No dependencies. Works without a server. */

/* Tables that can be filtered by text and chip, and sorted by column. */
function filterTable(root) {
  const table = root.querySelector("table"), body = table.tBodies[0];
  const rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const bar = document.createElement("div");
  bar.className = "filter-bar";
  const label = document.createElement("label");
  const input = document.createElement("input");
  input.type = "search";
  input.placeholder = root.dataset.filter;
  input.setAttribute("aria-label", root.dataset.filter);
  label.append(input);
  bar.append(label);

  const column = Number(root.dataset.chips) - 1;
  const chips = column < 0 || Number.isNaN(column) ? [] :
    [...new Set(rows.map(row => row.cells[column].textContent.trim()))].map(text => {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.textContent = text;
      chip.setAttribute("aria-pressed", "false");
      chip.addEventListener("click", () => {
        chip.setAttribute("aria-pressed", String(chip.ariaPressed !== "true"));
        apply();
      });
      return chip;
    });
  if (chips.length) {
    const group = document.createElement("div");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", "Filter by chapter");
    group.append(...chips);
    bar.append(group);
  }
  const status = document.createElement("p");
  status.className = "filter-status";
  status.setAttribute("role", "status");

  function apply() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = chips.filter(c => c.ariaPressed === "true").map(c => c.textContent);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const chip = wanted.length ? row.cells[column].textContent.trim() : null;
      row.hidden = !words.every(word => text.includes(word))
        || (chip !== null && !wanted.includes(chip));
      shown += !row.hidden;
    }
    const all = shown === rows.length;
    status.textContent = all ? "" : shown ? `${shown} of ${rows.length} rows` :
      "No row matches. Clear the filter to see all.";
  }
  input.addEventListener("input", apply);

  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const text = row => row.cells[i].textContent.trim();
      const order = { numeric: true, sensitivity: "base" };
      rows.sort((a, b) => sign * text(a).localeCompare(text(b), "en", order));
      body.append(...rows);
    });
  });
  rows.forEach(row => [...row.cells].forEach((cell, i) => {
    cell.dataset.label = heads[i].textContent;
  }));
  root.prepend(bar);
  root.append(status);
}

/* Remarks: `# (1)!` becomes a numbered mark that is no text, so that copied code is
   clean. The same number on both sides is the same point and lights up together. */
function markRemarks(pair, index) {
  pair.querySelectorAll(".tabbed-block").forEach((block, side) => {
    const items = block.querySelectorAll(":scope > ol > li");
    items.forEach((item, i) => {
      item.id = `remark-${index}-${side}-${i + 1}`;
      item.dataset.remark = i + 1;
    });
    for (const comment of block.querySelectorAll(".highlight code .c1")) {
      const number = (comment.textContent.match(/^# \((\d+)\)!$/) || [])[1];
      if (!number) continue;
      const line = comment.closest("[id^=__span]");
      const before = comment.previousSibling;
      if (before && !before.textContent.trim()) before.remove();
      else if (before) before.textContent = before.textContent.trimEnd();
      const mark = document.createElement("a");
      mark.className = "remark";
      mark.href = `#remark-${index}-${side}-${number}`;
      mark.dataset.number = number;
      mark.setAttribute("aria-label", `Remark ${number}`);
      comment.replaceWith(mark);
      if (line) line.dataset.remark = number;
    }
  });
  const light = () => {
    const at = pair.querySelector("[data-remark]:hover")
      || pair.querySelector("[data-remark]:focus-within");
    for (const each of pair.querySelectorAll("[data-remark]"))
      each.classList.toggle("lit", Boolean(at) && each.dataset.remark === at.dataset.remark);
  };
  for (const name of ["mouseover", "mouseout", "mouseleave", "focusin", "focusout"])
    pair.addEventListener(name, () => requestAnimationFrame(light));
}

/* What scrolls sideways by itself can be reached with the keyboard. */
function reachable(element) {
  new ResizeObserver(() => {
    if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
    else element.removeAttribute("tabindex");
  }).observe(element);
}

document.querySelectorAll("[data-filter]").forEach(filterTable);
document.querySelectorAll(".cmp").forEach(markRemarks);
addEventListener("load", () => { // the theme has put its wraps around tables by then
  document.querySelectorAll("pre > code, .md-typeset table, .md-typeset__scrollwrap")
    .forEach(reachable);
});
const search = document.querySelector(".md-search[role=dialog]");
if (search) search.setAttribute("aria-label", "Search");
