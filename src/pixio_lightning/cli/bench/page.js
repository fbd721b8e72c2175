for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const cell = button.parentElement, body = cell.closest("table").tBodies[0];
  const down = cell.getAttribute("aria-sort") !== "ascending";
  for (const other of cell.parentElement.cells) other.removeAttribute("aria-sort");
  cell.setAttribute("aria-sort", down ? "ascending" : "descending");
  const value = row => { const text = row.cells[cell.cellIndex].dataset.value;
    return text === undefined ? row.cells[cell.cellIndex].textContent : text === "" ? NaN : +text; };
  const rows = [...body.rows].sort((a, b) => { const [x, y] = [value(a), value(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return (x < y ? -1 : x > y ? 1 : 0) * (down ? 1 : -1); });
  body.append(...rows);
};
