"""How the report looks, light and dark; nothing is loaded from elsewhere."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f4f5f7; --surface: #ffffff; --text: #16191d; --muted: #5d6673; --line: #e3e6ea;
  --series-1: #2264c8; --series-2: #c2570c; --series-3: #12805c; --good: #12805c; --bad: #c0362c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #111417; --surface: #1a1e23; --text: #e8eaed; --muted: #9aa4b0; --line: #2c323a;
    --series-1: #6ea8fe; --series-2: #f2a065; --series-3: #5cc8a1; --good: #5cc8a1; --bad: #ff8a80;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Hiragino Sans", "Noto Sans CJK JP",
    "Noto Sans JP", "Yu Gothic UI", Meiryo, sans-serif;
}
:lang(ja) {
  font-family: "Hiragino Sans", "Noto Sans CJK JP", "Noto Sans JP", "Yu Gothic", Meiryo, sans-serif;
}
main { max-width: 1060px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 34px 0 12px; }
.lead { color: var(--muted); margin: 4px 0 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; }
.tile, figure, .card, details {
  background: var(--surface); border: 1px solid var(--line); border-radius: 10px;
}
.tile { padding: 10px 14px; }
.tile b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; font-weight: 600; }
.tile span { color: var(--muted); font-size: 12.5px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr));
  gap: 12px; }
.charts.small { grid-template-columns: repeat(auto-fit, minmax(min(310px, 100%), 1fr)); }
figure { margin: 0; padding: 12px 14px 6px; min-width: 0; }
figcaption { font-weight: 600; font-size: 13.5px; margin-bottom: 6px; }
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--line); } .tick { fill: var(--muted); font-size: 11px; }
line.level { stroke: var(--muted); stroke-dasharray: 5 4; }
text.level { fill: var(--muted); font-size: 11px; }
.legend { float: right; font-weight: 400; color: var(--muted); }
.key { margin-left: 12px; white-space: nowrap; }
.key i { display: inline-block; width: 12px; height: 3px; border-radius: 2px; margin-right: 5px;
  vertical-align: middle; }
.key i.faint { opacity: 0.4; }
.heat rect { fill: color-mix(in oklab, var(--series-1) var(--v), var(--page)); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--muted); font-weight: 500; font-size: 13px; }
td.number, th.number { text-align: right; }
tr:last-child td { border-bottom: 0; }
.card { padding: 6px 16px; overflow-x: auto; }
.pair { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); align-items: start; }
.sample { padding: 12px 16px; margin-bottom: 10px; font-size: 16px; line-height: 1.9; }
.sample small { display: block; color: var(--muted); font-size: 12px; line-height: 1.4; }
.sample b { font-weight: 600; color: var(--series-1); }
.wrong { text-decoration: underline wavy var(--bad) 1px; text-underline-offset: 5px; }
.verdict { font-weight: 600; } .verdict.good { color: var(--good); }
.verdict.bad { color: var(--bad); }
details { padding: 10px 16px; margin-top: 12px; }
summary { cursor: pointer; font-weight: 600; font-size: 13.5px; }
pre { overflow-x: auto; font-size: 12.5px; line-height: 1.45; }
"""
