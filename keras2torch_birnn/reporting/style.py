"""Style sheet of the report, for light and dark screens and for paper."""

STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --page: #ffffff; --line: #d4d4d4;
  --ok: #1a7f37; --wrong: #b00020; --unknown: #8a6d00; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --page: #16181c; --line: #3c4048;
  --ok: #4ac26b; --wrong: #ff6b81; --unknown: #e0b83c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } h3 { font-size: 1rem; }
.verdict { font-size: 1.1rem; padding: .7rem 1rem; border-left: .4rem solid; }
.verdict.ok { border-color: var(--ok); } .verdict.wrong { border-color: var(--wrong); }
.verdict.unknown { border-color: var(--unknown); }
section { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.number { white-space: nowrap; } .scale { min-width: 12rem; }
.bar { height: .8rem; min-width: 1px; margin-top: .3rem; }
.bar.ok { background: var(--ok); } .bar.wrong { background: var(--wrong); }
.maps { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; }
img { image-rendering: pixelated; min-width: 16rem; width: 20rem; min-height: 4rem; height: 8rem;
  border: 1px solid var(--line); }
figcaption { font-size: .8rem; max-width: 20rem; }
"""
