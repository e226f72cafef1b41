"""The page's style sheet but for its colours, which style.py puts before it. FONT and MONO are put in there too."""

from __future__ import annotations

RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 FONT}
main,header,footer{max-width:1240px;margin:0 auto;padding:0 28px}
header{padding-top:40px}
.brand{display:flex;justify-content:space-between;align-items:center;font-size:13px;color:var(--soft)}
.brand b{color:var(--ink);letter-spacing:.01em}
h1{font-size:clamp(28px,4.6vw,44px);line-height:1.12;letter-spacing:-.022em;font-weight:680;margin:26px 0 10px;
  overflow-wrap:anywhere}
h2{font-size:21px;letter-spacing:-.01em;font-weight:650;margin:58px 0 4px}
h3{font-size:14.5px;font-weight:620;margin:0 0 2px}
p{margin:0 0 10px}
a{color:var(--accent)}
.meta{color:var(--soft);font-size:14px;display:flex;flex-wrap:wrap;gap:2px 18px}
.verdict{font-size:clamp(17px,2vw,20px);line-height:1.5;max-width:50em;margin:22px 0 0}
.verdict span{color:var(--soft)}
.lead{color:var(--soft);font-size:14.5px;max-width:56em;margin:0 0 16px}
.banner{background:var(--warm);border:1px solid var(--warm-line);border-radius:8px;padding:10px 14px;margin:20px 0 0;
  font-size:15px}
button{font:inherit;font-size:13px;color:inherit;background:none;border:1px solid var(--line);border-radius:999px;
  padding:4px 12px;cursor:pointer}
button:hover{border-color:var(--faint)}
button:focus-visible,a:focus-visible,.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.badge{width:11px;height:11px;flex:none;display:inline-block}
.legend{position:sticky;top:0;z-index:5;background:var(--page);border-bottom:1px solid var(--line);padding:10px 0;
  margin:30px 0 0;display:flex;flex-wrap:wrap;gap:6px 8px;max-height:30vh;overflow:auto}
.chip{display:inline-flex;align-items:center;gap:7px;font-size:13px;max-width:260px;padding:3px 11px 3px 9px;
  background:var(--card)}
.chip span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.chip[aria-pressed=true]{border-color:var(--ink);box-shadow:inset 0 0 0 1px var(--ink)}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:12px;background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th{font-weight:550;color:var(--soft);font-size:12.5px;text-align:right;vertical-align:bottom;line-height:1.3;
  padding:12px 10px 9px;border-bottom:1px solid var(--line);white-space:nowrap}
th small{display:block;font-weight:400;color:var(--faint);font-size:11.5px}
td{text-align:right;padding:10px 10px;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child td{border-bottom:0}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--card);z-index:1;
  white-space:normal;min-width:215px;max-width:320px;padding-left:16px}
td.who{overflow-wrap:break-word;line-height:1.35}
.who span{min-width:0;overflow-wrap:anywhere}
.who div{display:flex;gap:9px;align-items:baseline}
.who i{font-style:normal;color:var(--faint);min-width:1.3em;font-size:13px;white-space:nowrap}
.who .badge{position:relative;top:1px}
tr.first .who,tr.first .score{font-weight:620}
tr.failed td{color:var(--soft)}
tr.failed .why{text-align:left;white-space:normal;min-width:260px}
td.left,th.left{text-align:left}
td.best{color:var(--ink);font-weight:650}
.dots{width:110px;height:16px;display:block;margin:1px 0 -3px auto}
.front{display:inline-block;font-size:11.5px;font-weight:500;border:1px solid var(--line);border-radius:5px;
  padding:0 6px;margin:1px 4px 1px 0;color:var(--soft)}
.map th,.map td{text-align:center;padding:9px 4px;white-space:normal}
.map th{vertical-align:bottom;min-width:76px;font-size:12.5px;color:var(--ink)}
.map th small{white-space:normal}
.map td.heat{background:color-mix(in srgb,var(--heat) calc(100%*var(--p)),var(--card));
  border-left:2px solid var(--card);border-bottom:2px solid var(--card);font-size:15px;line-height:1.25}
.map td.heat small{display:block;font-size:11.5px;color:var(--ink);opacity:.78}
.map td.solved{font-weight:680}
.map td.cannot,.map td.failed,.map td.waiting{color:var(--soft)}
.map tr.beside td{color:var(--soft);font-size:13px}
.map tr.beside td small{display:block;font-size:11px;line-height:1.25}
.map th:first-child,.map td:first-child{min-width:140px;max-width:200px;text-align:left;padding-left:14px}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:18px}
.grid.three{grid-template-columns:repeat(3,minmax(0,1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px 18px 10px;min-width:0;
  break-inside:avoid}
.card>p{color:var(--soft);font-size:13px;margin:0 0 6px;min-height:1.5em}
.chart text{paint-order:stroke}
.chart{width:100%;min-height:120px}
.chart svg{display:block;max-width:100%;overflow:visible}
.vega-embed{width:100%;display:block}
.pre{font:13px/1.55 MONO;white-space:pre-wrap;overflow-wrap:anywhere;max-height:310px;overflow:auto;margin:8px 0 6px;
  color:var(--ink)}
.pre b{font-weight:400;color:var(--faint)}
.name{display:flex;gap:8px;align-items:baseline;font-weight:600;font-size:14px;overflow-wrap:anywhere}
.images{display:grid;grid-template-columns:repeat(auto-fill,minmax(76px,1fr));gap:12px;margin:10px 0 8px}
figure{margin:0;font-size:12px;line-height:1.35;color:var(--soft);text-align:center;overflow-wrap:anywhere}
figure img{width:100%;aspect-ratio:1;object-fit:contain;image-rendering:pixelated;border-radius:6px;
  background:var(--code);display:block;margin-bottom:4px}
figure b{color:var(--ink);font-weight:600}
.command{display:flex;gap:12px;align-items:flex-start;background:var(--code);border:1px solid var(--line);
  border-radius:10px;padding:12px 14px;margin:0 0 18px}
.command code{flex:1;white-space:pre-wrap;overflow-wrap:anywhere}
code{font:13px/1.6 MONO}
dl{display:grid;grid-template-columns:minmax(110px,max-content) minmax(0,1fr);gap:5px 18px;margin:8px 0 6px;
  font-size:14px}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
ul{margin:6px 0;padding-left:1.1em;font-size:14.5px}
li{margin:3px 0;overflow-wrap:anywhere}
footer{color:var(--faint);font-size:13px;padding-top:46px;padding-bottom:44px}
#vg-tooltip-element{background:var(--card)!important;color:var(--ink)!important;
  border:1px solid var(--line)!important;border-radius:8px!important;font:12.5px/1.45 FONT!important;
  box-shadow:0 4px 16px #0003!important;max-width:320px}
#vg-tooltip-element table{font-size:12.5px;width:auto}
#vg-tooltip-element td,#vg-tooltip-element td:first-child{border:0;padding:1px 5px;white-space:normal;text-align:left;
  position:static;min-width:0;background:none;overflow-wrap:anywhere}
#vg-tooltip-element td.key{color:var(--soft)}
@media (max-width:900px){.grid.three{grid-template-columns:repeat(2,minmax(0,1fr))}}
@media (max-width:720px){
main,header,footer{padding-left:16px;padding-right:16px}
header{padding-top:22px}
h2{margin-top:44px}
.grid,.grid.three{grid-template-columns:minmax(0,1fr)}
.legend{flex-wrap:nowrap;overflow-x:auto;margin-left:-16px;margin-right:-16px;padding:8px 16px}
.chip{flex:none;max-width:200px}
.card{padding:13px 13px 8px}
th:first-child,td:first-child{min-width:172px;max-width:190px;padding-left:12px;font-size:13px}
.who div{gap:6px}
dl{grid-template-columns:minmax(0,1fr);gap:0}
dd{margin-bottom:7px}
}
@media print{
@page{size:landscape;margin:12mm}
body{font-size:11pt;background:#fff}
.legend{position:static;background:none;max-height:none;overflow:visible}
button.act{display:none}
.pre{max-height:none;overflow:visible}
.scroll{overflow:visible}
table{font-size:8pt}
th,th small{font-size:7pt}
th,td{padding:4px 5px}
tr,.lead{break-inside:avoid}
header{padding-top:0}
h2{margin-top:30px}
h2,h3,.lead{break-after:avoid}
th:first-child,td:first-child{position:static;min-width:190px}
.dots{width:80px}
.front{border:0;padding:0}
.chart svg{width:100%;height:auto}
}
"""
