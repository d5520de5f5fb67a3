"""Style and script of the report page. Both are inside the file: a report opens without a network."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #16191f; --soft: #5b6472; --rule: #e1e5eb;
  --one: #2a63c9; --two: #c05621; --good: #1e7d4f; --code: #f0f2f5; }
@media (prefers-color-scheme: dark) { :root { --page: #111418; --card: #1a1f26; --ink: #e7eaee; --soft: #98a2b0;
  --rule: #2d343e; --one: #7aa7f7; --two: #f0a267; --good: #62c493; --code: #12161b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 40px 0 12px; }
h3 { font-size: 14px; margin: 0 0 8px; font-weight: 600; }
.sub { color: var(--soft); margin: 0; overflow-wrap: anywhere; }
.status { display: inline-block; padding: 1px 10px; border-radius: 999px; border: 1px solid currentColor;
  font-size: 13px; margin-right: 8px; }
.status.finished, .status.early_stop { color: var(--good); } .status.stopped { color: var(--two); }
.tiles { display: grid; gap: 12px; margin-top: 24px;
  grid-template-columns: repeat(auto-fit, minmax(max(150px, 22%), 1fr)); }
.tile, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; }
.tile b { display: block; font-size: 24px; font-weight: 600; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 16px; }
.charts .wide { grid-column: 1 / -1; }
.charts h3 span { color: var(--soft); font-weight: 400; }
.legend { float: right; font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin: 0 5px 3px 12px; }
.legend .line { background: var(--one); } .legend .second { background: var(--two); }
.chart { position: relative; } svg { display: block; width: 100%; height: auto; overflow: visible; }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); stroke-opacity: 0.6; }
.tick { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
path { fill: none; stroke-width: 2; stroke-linejoin: round; } path.line { stroke: var(--one); }
path.second { stroke: var(--two); } path.faint { stroke: var(--one); stroke-opacity: 0.28; stroke-width: 1; }
circle.line { fill: var(--one); } circle.second { fill: var(--two); } circle { stroke: var(--card); stroke-width: 1.5; }
.cross { stroke: var(--soft); stroke-dasharray: 3 3; }
.tip { position: absolute; pointer-events: none; background: var(--card); border: 1px solid var(--rule);
  border-radius: 6px; padding: 4px 8px; font-size: 12px; white-space: nowrap; visibility: hidden; top: 4px;
  box-shadow: 0 2px 8px rgb(0 0 0 / 0.15); font-variant-numeric: tabular-nums; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(255px, 100%), 1fr)); gap: 16px; }
.sample img { width: 100%; height: 190px; object-fit: contain; background: var(--code); border-radius: 6px;
  margin-bottom: 8px; image-rendering: auto; }
.sample dt { color: var(--soft); font-size: 12px; } .sample dd { margin: 0 0 8px; overflow-wrap: anywhere; }
.sample dd.answer { font-weight: 500; } dl { margin: 0; }
table { border-collapse: collapse; font-size: 14px; } td, th { text-align: left; padding: 4px 20px 4px 0;
  border-bottom: 1px solid var(--rule); vertical-align: top; overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 500; }
pre { background: var(--code); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px; margin: 0;
  overflow-x: auto; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
summary { cursor: pointer; color: var(--soft); margin-bottom: 8px; } .none { color: var(--soft); }
@media (max-width: 700px) { .wide .chart { overflow-x: auto; } .wide svg { width: 760px; } }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 16px; }
"""

SCRIPT = """
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
    tip.textContent = ["step " + Math.round(at[2]), ...values].join(" \\u00b7 ");
    tip.style.visibility = "visible";
    const left = at[0] / svg.viewBox.baseVal.width * box.width;
    tip.style.left = Math.max(0, Math.min(left + 10, box.width - tip.offsetWidth)) + "px";
  });
  svg.addEventListener("pointerleave", () => {
    cross.setAttribute("visibility", "hidden");
    tip.style.visibility = "hidden";
  });
}
"""
