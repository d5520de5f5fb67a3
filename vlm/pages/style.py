"""The one style sheet of all pages; it is inside each file, so that a page opens without a network."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #16191f; --soft: #5b6472; --rule: #e1e5eb;
  --fill: #f0f2f5; --one: #2a63c9; --two: #b04e1a; --good: #1e7d4f; --bad: #a32121; --on-one: #ffffff;
  --target: #d8f3dc; --on-target: #0b4f26; --medium: #dbe9fb; --on-medium: #174a8b; }
@media (prefers-color-scheme: dark) { :root { --page: #111418; --card: #1a1f26; --ink: #e7eaee; --soft: #98a2b0;
  --rule: #2d343e; --fill: #22282f; --one: #7aa7f7; --two: #f0a267; --good: #62c493; --bad: #f29a9a;
  --on-one: #10151c; --target: #17402a; --on-target: #b5ebc8; --medium: #1d3557; --on-medium: #bcd7fb; } }
* { box-sizing: border-box; } [hidden] { display: none !important; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; } main.wide { max-width: 1480px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; line-height: 1.4; margin: 40px 0 12px; overflow-wrap: anywhere; }
h3 { font-size: 14px; margin: 0 0 8px; font-weight: 600; } h2 + h3, .scroll + h3, .samples + h3, .sub + h3,
.none + h3 { margin-top: 20px; }
.sub, .none, .meta { color: var(--soft); } .sub { margin: 0; overflow-wrap: anywhere; }
.pill { display: inline-block; padding: 0 10px; border-radius: 999px; border: 1px solid currentColor; font-size: 13px; }
.finished, .early_stop { color: var(--good); } .stopped { color: var(--two); }
.tile, .card, article { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.tile, .card { padding: 14px 16px; min-width: 0; }
.tiles, .columns, .charts, .samples, .sheets, .answers { display: grid; gap: 16px; }
.tiles { gap: 12px; margin-top: 24px; grid-template-columns: repeat(auto-fit, minmax(max(150px, 22%), 1fr)); }
.tile b { display: block; font-size: 24px; font-weight: 600; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.columns { grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); align-items: start;
  margin-top: 20px; } section > .columns { margin-top: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: 4px 20px 4px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 500; } .facts td { overflow-wrap: anywhere; } tr:last-child > * { border: 0; }
.scores th, .scores td { white-space: nowrap; }
pre { background: var(--fill); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px; margin: 0;
  overflow-x: auto; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
summary { cursor: pointer; color: var(--soft); margin-bottom: 8px; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); }
.charts .wide { grid-column: 1 / -1; } .charts h3 span { color: var(--soft); font-weight: 400; }
.legend { float: right; font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin: 0 5px 3px 12px; }
.legend .line { background: var(--one); } .legend .second { background: var(--two); }
.chart { position: relative; } svg { display: block; width: 100%; height: auto; overflow: visible; }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--soft); stroke-opacity: 0.6; }
svg .tick { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
path { fill: none; stroke-width: 2; stroke-linejoin: round; } path.line { stroke: var(--one); }
path.second { stroke: var(--two); } path.faint { stroke: var(--one); stroke-opacity: 0.28; stroke-width: 1; }
circle { stroke: var(--card); stroke-width: 1.5; } circle.line { fill: var(--one); } circle.second { fill: var(--two); }
.cross { stroke: var(--soft); stroke-dasharray: 3 3; }
.tip { position: absolute; pointer-events: none; background: var(--card); border: 1px solid var(--rule);
  border-radius: 6px; padding: 4px 8px; font-size: 12px; white-space: nowrap; visibility: hidden; top: 4px;
  box-shadow: 0 2px 8px rgb(0 0 0 / 0.15); font-variant-numeric: tabular-nums; }
.samples { grid-template-columns: repeat(auto-fill, minmax(min(255px, 100%), 1fr)); }
.sample img { width: 100%; height: 190px; object-fit: contain; background: var(--fill); border-radius: 6px;
  margin-bottom: 8px; display: block; }
dl { margin: 0; } dt { color: var(--soft); font-size: 12px; } dd { margin: 0 0 8px; overflow-wrap: anywhere; }
dd.answer { font-weight: 500; }
.sheets { grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); align-items: start; }
.sheets article { overflow: hidden; }
.images { display: flex; flex-wrap: wrap; gap: 8px; padding: 14px 14px 0; }
.images img { border-radius: 6px; display: block; max-width: 100%; border: 1px solid var(--rule); }
.images.frames img { width: 70px; height: auto; }
.meta { font-size: 13px; display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: center; }
.meta b { color: var(--ink); font-weight: 600; overflow-wrap: anywhere; } .sheets .meta { padding: 12px 14px 0; }
.text { padding: 10px 14px 16px; overflow-wrap: anywhere; white-space: pre-wrap; max-height: 420px; overflow-y: auto; }
.t { background: var(--target); color: var(--on-target); border-radius: 3px; padding: 1px 0; }
.m { background: var(--medium); color: var(--on-medium); border-radius: 4px; padding: 1px 6px; font-size: 13px; }
.error { padding: 10px 14px 16px; color: var(--bad); white-space: pre-wrap; overflow-wrap: anywhere; }
nav { position: sticky; top: 0; z-index: 2; background: var(--page); padding: 10px 0; display: flex; flex-wrap: wrap;
  gap: 8px; align-items: center; border-bottom: 1px solid var(--rule); margin: 16px 0 18px; }
nav button, nav input { font: inherit; font-size: 14px; padding: 4px 13px; border: 1px solid var(--rule);
  background: var(--card); color: var(--soft); border-radius: 999px; cursor: pointer; }
nav button[aria-pressed=true] { background: var(--one); border-color: var(--one); color: var(--on-one); }
nav input { border-radius: 8px; color: var(--ink); margin-left: auto; width: 240px; cursor: text; }
.pair { margin-bottom: 18px; display: grid; grid-template-columns: minmax(180px, 300px) minmax(0, 1fr); }
figure { margin: 0; padding: 18px; background: var(--fill); border-radius: 10px 0 0 10px; }
figure > div { position: sticky; top: 66px; }
figure img { width: 100%; max-height: 460px; object-fit: contain; border-radius: 8px; display: block; }
figcaption { font-size: 13px; color: var(--soft); margin-top: 8px; overflow-wrap: anywhere; }
.lost { border: 1px dashed var(--soft); border-radius: 8px; padding: 44px 12px; text-align: center;
  color: var(--soft); font-size: 14px; }
.pair section { padding: 16px 22px 20px; } .pair section + section { border-top: 1px solid var(--rule); }
.pair h2 { font-size: 16px; margin: 6px 0 12px; font-weight: 600; }
.answers { gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); }
.answers div { background: var(--fill); border-radius: 8px; padding: 9px 14px 12px; min-width: 0; }
.answers b { display: block; font-size: 13px; font-weight: 600; color: var(--one); margin-bottom: 2px; }
.answers p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; } .answers .none { font-style: italic; }
@media (max-width: 760px) { main { padding: 20px 14px 40px; } .pair { grid-template-columns: minmax(0, 1fr); }
  figure { border-radius: 10px 10px 0 0; padding: 14px; } figure > div { position: static; } figure img {
  max-height: 300px; } .pair section { padding: 14px 16px 16px; } nav { position: static; }
  nav input { margin-left: 0; width: 100%; } .wide .chart { overflow-x: auto; } .wide svg { width: 760px; }
  td, th { padding-right: 14px; } }
@media print { nav { display: none; } article, .card { break-inside: avoid; } }
"""
