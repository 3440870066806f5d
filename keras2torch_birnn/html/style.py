"""Style sheets of the report, for screens and for paper, and of a cell of a notebook."""

_LIGHT = """color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --page: #ffffff;
  --panel: #f6f8fa; --line: #d1d9e0; --ok: #1a7f37; --wrong: #b00020; --unknown: #8a6d00;"""
_DARK = """--text: #e6e9ee; --soft: #9ba5b1; --page: #14171c;
  --panel: #1d2229; --line: #39414b; --ok: #4ac26b; --wrong: #ff6b81; --unknown: #e0b83c;"""


def _colours(where: str) -> str:
    dark = f"@media (prefers-color-scheme: dark) {{ {where} {{ {_DARK} }} }}"
    return f"{where} {{ {_LIGHT} }}\n{dark}\n"


# Of verdicts and tables.
_PARTS = """
* { box-sizing: border-box; }
p { margin: .4rem 0; }
.verdict { display: flex; gap: 1rem; align-items: center; padding: .8rem 1rem; border-radius: .4rem;
  background: var(--panel); border-left: .4rem solid var(--tone); }
.verdict p { margin: 0; font-size: 1.05rem; overflow-wrap: anywhere; }
.badge { color: var(--page); background: var(--tone); padding: .15rem .6rem; border-radius: .3rem;
  white-space: nowrap; }
.ok { --tone: var(--ok); } .wrong { --tone: var(--wrong); } .unknown { --tone: var(--unknown); }
code, .code { font-family: ui-monospace, monospace; font-size: .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0;
  border-bottom: 1px solid var(--line); }
table th { color: var(--soft); font: 600 .8rem system-ui, sans-serif; white-space: nowrap; }
.code { white-space: nowrap; } .bad { color: var(--wrong); font-weight: 600; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
@media (max-width: 68rem) { .code { white-space: normal; overflow-wrap: anywhere; min-width: 3rem; }
  table th, table th.number { white-space: normal; } }
@media (max-width: 34rem) { table { font-size: .75rem; } th, td { padding-right: .4rem; } }
"""

# Browsers of 2023 and later know rules inside rules; others show the cell without colours.
CELL_STYLE = f"""
{_colours(".k2t")}.k2t {{ font: 14px/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--page); padding: .6rem; border-radius: .4rem; {_PARTS} }}
"""

STYLE = (
    f"""
{_colours(":root")}{_PARTS}"""
    + """
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
h3 { font: 600 .95rem ui-monospace, monospace; margin: 1.4rem 0 .5rem; overflow-wrap: anywhere; }
dl { margin: 0; } dd { margin: 0; }
.kicker, .small, footer, dt, figcaption, .ticks, .marks { color: var(--soft); font-size: .85rem; }
.kicker { margin: 0; } footer { margin-top: 2.5rem; }
.figures { display: flex; flex-wrap: wrap; gap: .8rem 2.5rem; margin: 1.2rem 0; }
.figures div { display: flex; flex-direction: column-reverse; }
.figures dd { font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; }
.facts code { display: block; overflow-wrap: anywhere; } .hash { color: var(--soft); }
td.scale { width: 35%; min-width: 10rem; }
.track { position: relative; height: .8rem; margin-top: .3rem; background: var(--panel); }
.bar { height: 100%; min-width: 2px; background: var(--tone); }
.limit { position: absolute; top: -.2rem; bottom: -.2rem; border-left: 1px solid var(--text); }
img { display: block; width: 100%; image-rendering: pixelated; border: 1px solid var(--line); }
.legend { max-width: 34rem; margin-top: .8rem; } .legend img { height: 1rem; }
.ticks { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 .6rem; }
.key { padding-left: .4rem; line-height: 1; }
.marks { position: relative; height: 1.4rem; }
.marks span { position: absolute; translate: -50%; }
.marks span:first-child { translate: 0; } .marks span:last-child { translate: -100%; }
.patterns { margin-top: 1rem; }
.patterns div { display: grid; grid-template-columns: minmax(8rem, 22rem) 1fr; gap: 0 1rem; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.2rem; }
figure { display: grid; grid-template-columns: 1.4rem 1fr; margin: 0; align-content: end; }
figure img { height: 9rem; } figcaption, .right { grid-column: 2; }
.down, .right { color: var(--soft); font-size: .75rem; text-align: center; }
.down { writing-mode: vertical-rl; rotate: 180deg; }
@media (max-width: 68rem) { td.scale { width: 20%; min-width: 5rem; } }
@media (max-width: 34rem) { .facts { grid-template-columns: 1fr; }
  .verdict { flex-direction: column; align-items: flex-start; }
  .patterns div { grid-template-columns: 1fr; margin-bottom: .4rem; }
  .marks span:nth-last-child(2) { display: none; } }
@media print { :root { color-scheme: light; --text: #000000; --soft: #444444; --page: #ffffff;
  --panel: #f2f2f2; --line: #bbbbbb; --ok: #1a7f37; --wrong: #b00020; --unknown: #8a6d00; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 11px; max-width: none; padding: 0; } .scroll { overflow: visible; }
  h2, h3 { break-after: avoid; } tr, figure, .verdict, .legend { break-inside: avoid; }
  .code { white-space: normal; overflow-wrap: anywhere; }
  .maps { grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }
  figure img { height: 7rem; } }
@page { margin: 15mm; }
"""
)
