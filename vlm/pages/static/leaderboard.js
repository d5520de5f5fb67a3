const table = document.querySelector(".board"), models = document.getElementById("models"), benchmarks = document.getElementById("benchmarks");
if (table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, k) => k ? parseFloat(row.cells[k].dataset.value ?? "NaN") : row.cells[0].textContent.toLowerCase();
  heads.forEach((head, k) => head.querySelector("button").addEventListener("click", () => {
    const down = head.ariaSort === (k ? "descending" : "ascending") ? !k : Boolean(k);
    for (const other of heads) other.ariaSort = "none";
    head.ariaSort = down ? "descending" : "ascending";
    const order = (a, b) => {
      const [x, y] = [key(a, k), key(b, k)];
      if (k && (isNaN(x) || isNaN(y))) return isNaN(x) - isNaN(y);
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
    };
    body.append(...[...body.rows].sort(order));
  }));
  const show = () => {
    const model = models.value.trim().toLowerCase(), benchmark = benchmarks.value.trim().toLowerCase();
    const shown = heads.map((head, k) => !k || head.textContent.toLowerCase().includes(benchmark));
    let left = 0;
    for (const row of table.rows) {
      [...row.cells].forEach((cell, k) => { cell.hidden = !shown[k]; });
      if (row.parentNode !== body) continue;
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(model);
      left += !row.hidden;
    }
    document.getElementById("empty").hidden = left > 0;
  };
  for (const input of [models, benchmarks]) input.addEventListener("input", show);
}
