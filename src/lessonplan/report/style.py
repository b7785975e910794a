"""The look of the page and its one script, both inline."""

CSS = """
:root{--paper:#fbfbf9;--card:#fff;--ink:#1f2933;--muted:#5c6875;--rule:#d3d9e0;--soft:#eef1f4;
--accent:#1a62b8;--good:#00754f;--bad:#b34700;--warn:#8a5a00;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--paper:#14171a;--card:#1b1f23;--ink:#e6e9ec;
--muted:#a3adb8;--rule:#363d45;--soft:#242a30;--accent:#7db4f5;--good:#4ccfa0;--bad:#ff9a5c;
--warn:#e6b450}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);line-height:1.55;
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header,footer{max-width:60rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2.25rem}
h1{font-size:1.05rem;font-weight:600;margin:0;color:var(--muted);letter-spacing:.01em;
overflow-wrap:anywhere}
h2{font-size:1.35rem;line-height:1.25;margin:3rem 0 .5rem;letter-spacing:-.01em}
h3{font-size:1.02rem;margin:2rem 0 .35rem}
p{margin:.5rem 0 .9rem;max-width:46rem}
.facts{color:var(--muted);font-size:.92rem;margin:.1rem 0 1.4rem}
.verdict{margin:0;padding:0}
.verdict p.first{font-size:clamp(1.2rem,1rem + 1.3vw,1.55rem);line-height:1.3;font-weight:650;
letter-spacing:-.015em;margin:0 0 .7rem;max-width:none;text-wrap:pretty}
.verdict p.second{font-size:1.08rem;color:var(--ink);margin:0 0 1rem}
.badge{display:inline-block;font-size:.78rem;font-weight:600;padding:.12rem .6rem;
border:1px solid currentColor;border-radius:1rem;margin:0 0 .7rem}
.badge.winner{color:var(--good)}.badge.no-difference{color:var(--accent)}
.badge.too-few-seeds,.badge.floor,.badge.ceiling,.badge.no-runs{color:var(--warn)}
.caveats{list-style:none;margin:0 0 1rem;padding:0}
.caveats li{border-left:3px solid var(--warn);padding:.15rem 0 .15rem .8rem;margin:.5rem 0;
max-width:46rem;font-size:.96rem}
figure{margin:1.2rem 0;padding:1rem;background:var(--card);border:1px solid var(--rule);
border-radius:10px}
figure svg{display:block;width:100%;height:auto}
figure svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,
sans-serif!important}
figcaption{font-size:.9rem;color:var(--muted);margin-top:.7rem;max-width:50rem}
.narrow{display:none}
@media (max-width:640px){.wide{display:none}.narrow{display:block}figure{padding:.6rem}
header{padding-top:1.25rem}main,header,footer{padding-left:.9rem;padding-right:.9rem}
h2{margin-top:2.25rem}table{font-size:.86rem}
tbody th{position:sticky;left:0;background:var(--card);min-width:8.5rem;overflow-wrap:break-word}}
.scroll{overflow-x:auto;margin:1rem 0;border:1px solid var(--rule);border-radius:10px;
background:var(--card)}
.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
table{border-collapse:collapse;width:100%;font-size:.93rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.75rem .9rem .5rem;color:var(--muted);font-size:.9rem}
th,td{padding:.42rem .7rem;border-top:1px solid var(--rule);vertical-align:top}
thead th{vertical-align:bottom;border-top:0;border-bottom:1px solid var(--rule);padding:0}
th button{font:inherit;font-weight:600;font-size:.88em;color:var(--muted);background:none;border:0;
padding:.5rem .7rem;width:100%;text-align:inherit;cursor:pointer}
th button:hover,th button:focus-visible{color:var(--accent)}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
tbody th{font-weight:500}
.w{text-align:left}.n{text-align:right}td.n{white-space:nowrap}
.dense table{font-size:.84rem}.dense td,.dense tbody th{padding:.3rem .55rem}
.dense th button{padding:.45rem .55rem}
.quiet,.quiet~td{color:var(--muted)}
.good{color:var(--good);font-weight:650}.bad{color:var(--bad);font-weight:650}
details{border-top:1px solid var(--rule);padding:.7rem 0}
details:last-of-type{border-bottom:1px solid var(--rule)}
summary{cursor:pointer;font-weight:600}
dl{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.3rem 1.2rem;margin:.8rem 0}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--soft);padding:.9rem;border-radius:8px;overflow-x:auto;font-size:.85rem}
code{font-size:.92em}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;padding:0;margin:.4rem 0 0}
a{color:var(--accent)}
footer{color:var(--muted);font-size:.88rem;padding-top:2rem;padding-bottom:3rem}
@media print{:root{--paper:#fff;--card:#fff;--ink:#1f2933;--muted:#5c6875;--rule:#ccc;
--soft:#f2f2f2}figure,.scroll{break-inside:avoid;}
.wide{display:block!important}.narrow{display:none!important}nav{display:none}}
"""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[column].dataset.key;
    const compare = (a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = x - y;
      const found = Number.isNaN(order) ? x.localeCompare(y) : order;
      return down ? -found : found;
    };
    body.append(...[...body.rows].sort(compare));
  }));
}
"""
