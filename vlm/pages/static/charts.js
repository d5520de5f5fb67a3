for (const svg of document.querySelectorAll("svg[data-series]")) {
  const series = JSON.parse(svg.dataset.series), cross = svg.querySelector(".cross");
  const tip = svg.parentElement.querySelector(".tip");
  const show = (value) => Math.abs(value) >= 1e-3 || value === 0 ? +value.toPrecision(5) : value.toExponential(3);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const closest = (points) => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
    const near = series.map((s) => [s.name, closest(s.points)]);
    const at = near[0][1];
    cross.setAttribute("x1", at[0]); cross.setAttribute("x2", at[0]); cross.setAttribute("visibility", "visible");
    const values = near.map(([name, p]) => name + " " + show(p[3]));
    tip.textContent = ["step " + Math.round(at[2]), ...values].join(" \u00b7 ");
    tip.style.visibility = "visible";
    const left = at[0] / svg.viewBox.baseVal.width * box.width;
    tip.style.left = Math.max(0, Math.min(left + 10, box.width - tip.offsetWidth)) + "px";
  });
  svg.addEventListener("pointerleave", () => {
    cross.setAttribute("visibility", "hidden");
    tip.style.visibility = "hidden";
  });
}
