// Tables are sorted by the column whose title is pressed, and filtered by the words that are typed.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => title.firstElementChild.addEventListener("click", () => {
    const down = title.getAttribute("aria-sort") === "ascending";
    titles.forEach((other) => other.removeAttribute("aria-sort"));
    title.setAttribute("aria-sort", down ? "descending" : "ascending");
    const place = (row) => {
      const cell = row.cells[column], number = cell.dataset.number;
      return number === undefined ? cell.textContent : Number(number);
    };
    const order = (first, second) => {
      const [a, b] = [place(first), place(second)];
      if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;  // what is no number comes last
      const sign = down ? -1 : 1;
      return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    };
    body.append(...[...body.rows].sort(order));
  }));
  const filter = table.closest("section").querySelector("input");
  if (filter) filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
}
// Long names are broken into lines between their parts, but numbers are not.
for (const place of document.querySelectorAll("td:first-child, dd, h1, h2")) {
  const parts = place.textContent.split(/(?<=[/_.-])(?<!\d\.(?=\d))(?=\w)/);
  place.replaceChildren(...parts.flatMap((part, index) => index ? [document.createElement("wbr"), part] : [part]));
}
