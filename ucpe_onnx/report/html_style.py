"""Style sheet of the HTML report, light and dark."""

from __future__ import annotations

from ucpe_onnx.lowerings import LOWERINGS

_STYLE = """\
:root { color-scheme: light dark; --bg: #f6f7f9; --card: #fff; --text: #1c2430; --dim: #5d6878; --line: #dde2e9;
  --empty: #e8ecf1; --emit: #4c86d9; --freeze: #27405f; --kept: #4c86d9; --zero: #b9cfee; --good: #1a7f4b;
  --bad: #c2342c; --warn: #9a6200; --fast: #e6f4ec; @light@ --other: #5d6878; }
@media (prefers-color-scheme: dark) { :root { --bg: #14181e; --card: #1d232b; --text: #e3e8ef; --dim: #99a5b5;
  --line: #333c48; --empty: #2b333e; --emit: #5b95e6; --freeze: #c5d6ee; --kept: #5b95e6; --zero: #34507a;
  --good: #55c98b; --bad: #f1807a; --warn: #e0ae55; --fast: #1c3328; @dark@ --other: #99a5b5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--text);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 24px 20px 40px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 32px 0 8px; }
h3 { font-size: 13px; font-weight: 600; color: var(--dim); margin: 0; }
p { margin: 6px 0; }
code { font: 12.5px ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; unicode-bidi: isolate; }
a { color: var(--union); }
.dim { color: var(--dim); } .small { font-size: 13px; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; min-width: 0; }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin-top: 12px; }
.big { font-size: 28px; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
.speed { display: grid; grid-template-columns: minmax(220px, 1fr) 2.4fr; gap: 8px 24px; margin-top: 16px;
  align-items: center; }
.warnings { margin-top: 12px; } .warnings ul { margin: 4px 0; padding-left: 20px; }
.warnings code { white-space: nowrap; }
.interval { display: block; width: 100%; overflow: visible; }
.interval text { font-size: 12px; fill: var(--dim); }
.interval .value { fill: var(--text); font-weight: 600; }
.interval .fast { fill: var(--fast); }
.interval line { stroke: var(--line); }
.interval .tick { fill: var(--dim); stroke-width: 1; } .interval text.tick { stroke: none; }
.interval .one { stroke: var(--text); stroke-width: 1.5; stroke-dasharray: 4 3; }
.interval .range, .interval .end { stroke: currentColor; stroke-width: 3; } .interval .end { stroke-width: 2; }
.interval circle { fill: currentColor; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 5px 10px 5px 0; border-top: 1px solid var(--line); vertical-align: top; }
tr:first-child > * { border-top: 0; }
th { font-weight: 600; } thead th { color: var(--dim); font-size: 13px; }
td.n, th.n { text-align: right; padding-right: 18px; font-variant-numeric: tabular-nums; white-space: nowrap; }
td { overflow-wrap: anywhere; } td.words { overflow-wrap: normal; }
details.small { margin: 6px 0; }
summary { cursor: pointer; }
.tag { display: inline-block; border: 1px solid currentColor; border-radius: 4px; padding: 0 5px; font-size: 11.5px;
  line-height: 17px; white-space: nowrap; }
@names@ .other { color: var(--other); }
.segments { padding: 4px 16px; } .segments > .segment:first-child { border-top: 0; }
.segment { border-top: 1px solid var(--line); padding: 5px 0; }
.segment > summary { display: grid; align-items: center; gap: 2px 12px; list-style: none;
  grid-template-columns: 12px 34px minmax(0, 3fr) minmax(80px, 2fr) 110px 54px minmax(0, 2fr); }
.segment > summary::-webkit-details-marker { display: none; }
.segment > summary::before { content: "▸"; color: var(--dim); font-size: 11px; }
.segment[open] > summary::before { content: "▾"; }
.segment > summary > * { min-width: 0; } .segment > summary code { white-space: nowrap; overflow: hidden; }
.segment .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.segment .tag + .tag { margin-left: 4px; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.body { padding: 6px 0 10px 24px; }
.strip, .bar, .blocks { display: block; width: 100%; height: 14px; background: none; }
.bar { background: var(--empty); border-radius: 2px; height: 12px; }
.blocks { height: 5px; }
.strip path, .bar path, .blocks path { fill: none; stroke-width: 1; }
.emit { stroke: var(--emit); } .freeze { stroke: var(--freeze); }
.kept { stroke: var(--kept); } .zero { stroke: var(--zero); } .skip { stroke: var(--empty); }
.odd { stroke: var(--dim); } .even { stroke: var(--line); }
.rows { display: grid; align-items: center; gap: 3px 10px; margin: 8px 0;
  grid-template-columns: minmax(0, 300px) 54px minmax(0, 1fr) auto; }
.rows > * { min-width: 0; } .rows .tag { justify-self: start; } .rows .wide { grid-column: 1 / -1; }
.rows code { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--dim); margin: 8px 0; }
.key { display: inline-block; width: 18px; height: 11px; border-radius: 2px; margin-right: 5px; vertical-align: -1px; }
footer { margin-top: 32px; }
@media (max-width: 800px) {
  main { padding: 16px 12px 32px; }
  .cards { grid-template-columns: repeat(2, 1fr); } .speed { grid-template-columns: 1fr; }
  .segment > summary { grid-template-columns: 12px 34px minmax(0, 1fr) 110px 54px; }
  .segment > summary .bar { grid-column: 3; grid-row: 2; }
  .segment > summary .tags { grid-column: 4 / -1; grid-row: 2; text-align: right;
    white-space: nowrap; overflow: hidden; }
  .body { padding-left: 0; } .rows { grid-template-columns: 54px minmax(0, 1fr) auto; }
  .rows .who { grid-column: 1 / -1; margin-top: 4px; } .card { padding: 10px 12px; }
}
@media print { body { background: none; } .card { break-inside: avoid; } }
"""


def _style() -> str:
    """The sheet with the colours of every lowering."""
    light, dark = (" ".join(f"--{x.name}: {x.colours[at]};" for x in LOWERINGS.values()) for at in (0, 1))
    names = " ".join(f".{name} {{ color: var(--{name}); }}" for name in LOWERINGS)
    return _STYLE.replace("@light@", light).replace("@dark@", dark).replace("@names@", names)


STYLE = _style()
