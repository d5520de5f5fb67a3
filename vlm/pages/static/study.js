const table = document.querySelector("table.study");
if (table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, k) => {
    const cell = row.cells[k];
    return cell.dataset.value === undefined ? cell.dataset.text.toLowerCase() : parseFloat(cell.dataset.value);
  };
  heads.forEach((head, k) => head.querySelector("button").addEventListener("click", () => {
    const numbers = body.rows[0].cells[k].dataset.value !== undefined, first = numbers ? "descending" : "ascending";
    const now = head.ariaSort === first ? (numbers ? "ascending" : "descending") : first;
    for (const other of heads) other.ariaSort = "none";
    head.ariaSort = now;
    body.append(...[...body.rows].sort((a, b) => {
      const [x, y] = [key(a, k), key(b, k)];
      if (numbers && (isNaN(x) || isNaN(y))) return isNaN(x) - isNaN(y);
      return (x < y ? -1 : x > y ? 1 : 0) * (now === "ascending" ? 1 : -1);
    }));
  }));
}
const show = (value) => Math.abs(value) >= 1e-3 || value === 0 ? +value.toPrecision(4) : value.toExponential(2);
const tell = (svg, event, text, at) => {
  const tip = svg.parentElement.querySelector(".tip"), box = svg.getBoundingClientRect();
  tip.textContent = text;
  tip.style.visibility = "visible";
  const left = at / svg.viewBox.baseVal.width * box.width;
  tip.style.left = Math.max(0, Math.min(left + 12, box.width - tip.offsetWidth)) + "px";
};
const place = (svg, event) => {
  const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
};
const leave = (svg) => {
  svg.parentElement.querySelector(".tip").style.visibility = "hidden";
  for (const near of svg.querySelectorAll(".near")) near.classList.remove("near");
  const cross = svg.querySelector(".cross");
  if (cross) cross.setAttribute("visibility", "hidden");
};
for (const svg of document.querySelectorAll("svg.curves")) {
  const axes = JSON.parse(svg.dataset.axes), [left, right, top_, base] = svg.dataset.frame.split(" ").map(Number);
  const groups = [...svg.querySelectorAll("g[data-name]")];
  const lines = groups.map((g) => g.querySelector(".mean").getAttribute("d").slice(1).split("L").map((p) => p.split(" ").map(Number)));
  svg.addEventListener("pointermove", (event) => {
    const [x, y] = place(svg, event);
    let best = null;
    lines.forEach((points, k) => {
      if (groups[k].classList.contains("off")) return;
      const point = points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
      const far = Math.hypot(point[0] - x, point[1] - y);
      if (!best || far < best.far) best = {far, point, k};
    });
    leave(svg);
    if (!best) return;
    groups[best.k].classList.add("near");
    const cross = svg.querySelector(".cross"), step = axes.x0 + (best.point[0] - left) / (right - left) * (axes.x1 - axes.x0);
    const value = axes.y0 + (base - best.point[1]) / (base - top_) * (axes.y1 - axes.y0);
    cross.setAttribute("cx", best.point[0]); cross.setAttribute("cy", best.point[1]); cross.setAttribute("visibility", "visible");
    tell(svg, event, groups[best.k].dataset.name + " \u00b7 step " + Math.round(step) + " \u00b7 " + show(value), best.point[0]);
  });
  svg.addEventListener("pointerleave", () => leave(svg));
  for (const button of svg.closest(".plot").querySelectorAll(".keys button")) button.addEventListener("click", () => {
    const on = button.ariaPressed !== "true";
    button.ariaPressed = String(on);
    for (const g of groups) if (g.dataset.name === button.dataset.name) g.classList.toggle("off", !on);
  });
}
for (const svg of document.querySelectorAll("svg.scatter")) {
  const groups = [...svg.querySelectorAll("g[data-name]")].map((g) => {
    const dot = g.querySelector("circle"), box = g.querySelector("rect");
    return [g, dot ? +dot.getAttribute("cx") : +box.getAttribute("x") + 5, dot ? +dot.getAttribute("cy") : +box.getAttribute("y") + 5];
  });
  svg.addEventListener("pointermove", (event) => {
    const [x, y] = place(svg, event), far = ([, a, b]) => Math.hypot(a - x, b - y);
    const near = groups.reduce((a, b) => far(b) < far(a) ? b : a);
    leave(svg);
    if (far(near) > 60) return;
    near[0].classList.add("near");
    tell(svg, event, near[0].dataset.name + " \u00b7 " + near[0].dataset.about, near[1]);
  });
  svg.addEventListener("pointerleave", () => leave(svg));
}
