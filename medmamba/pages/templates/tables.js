// Sorts a table by the column whose heading is pressed: numbers as numbers, names as people order them, dashes last.
(function () {
  "use strict";
  const names = new Intl.Collator(undefined, { numeric: true });
  const key = (row, column) => {
    const text = row.cells[column].textContent.trim();
    if (text === "" || text === "–") return null;
    const found = /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?/i.exec(text);
    return { text, number: text.startsWith("∞") ? Infinity : found ? Number(found[0]) : NaN };
  };
  function sort(table, column, descending) {
    const rows = [...table.tBodies[0].rows].map((row) => ({ row, key: key(row, column) }));
    const numbers = rows.every((one) => one.key === null || !Number.isNaN(one.key.number));
    rows.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      const order = numbers && a.key.number !== b.key.number
        ? (a.key.number < b.key.number ? -1 : 1) : names.compare(a.key.text, b.key.text);
      return descending ? -order : order;
    });
    table.tBodies[0].append(...rows.map((one) => one.row));
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, column, descending);
      });
    });
  }
})();
