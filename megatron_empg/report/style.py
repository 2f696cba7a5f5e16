"""The report page's stylesheet and script, kept inside the page: it loads nothing from anywhere."""

COLOURS = """
:root{color-scheme:light dark;--page:#f6f5f1;--card:#fdfdfb;--ink:#16150f;--soft:#55534b;--muted:#8d8a7f;
  --grid:#e6e4dc;--edge:#e0ded5;--c0:#2a78d6;--c1:#e0622c;--c2:#129b72;--c3:#6250c4;--c4:#c99106;
  --c5:#d5619a;--c6:#8d8a7f;--c10:#0f4c99;--c11:#4f97e6;--c12:#a9c9ee;--warm:#f08a24;--good:#2a78d6;
  --bad:#e0622c}
@media(prefers-color-scheme:dark){:root{--page:#121210;--card:#1b1b18;--ink:#f3f2ec;--soft:#c2c0b5;
  --muted:#8f8c81;--grid:#2d2c28;--edge:#2d2c28;--c0:#4a93ea;--c1:#e0703d;--c2:#22a67c;--c3:#988bee;
  --c4:#cf9a1c;--c5:#d9699f;--c10:#a9c9ee;--c11:#4f97e6;--c12:#2a5c9c;--warm:#e8862a;--good:#4a93ea;
  --bad:#e0703d}}
"""

CHART = """
svg{display:block;width:100%;height:auto;font:11.5px system-ui,-apple-system,"Segoe UI",sans-serif}
svg .grid{stroke:var(--grid)}
svg .zero{stroke:var(--muted);stroke-dasharray:3 3}
svg .guide{stroke:var(--muted);stroke-dasharray:5 4}
svg .tick{fill:var(--muted);font-variant-numeric:tabular-nums}
svg .title{fill:var(--soft)}
svg .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
svg .dash{stroke-dasharray:6 4}
svg .faint{stroke-width:1.2;opacity:.35}
svg .mark{stroke:var(--card);stroke-width:1.5}
svg .dots{opacity:.55}
svg .span{stroke:var(--muted);stroke-width:2}
svg .hollow{fill:var(--card);stroke-width:2}
svg .cursor{stroke:var(--muted);stroke-width:1}
"""

PAGE = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:36px 24px 60px}
h1{font-size:30px;line-height:1.15;margin:0 0 6px;letter-spacing:-.02em;overflow-wrap:anywhere}
h2{font-size:19px;margin:40px 0 4px;letter-spacing:-.01em}
h2+p{margin:0 0 14px;color:var(--soft)}
h3{font-size:15px;margin:0 0 8px;font-weight:600}
.lead{color:var(--soft);margin:0}
.tiles{display:grid;gap:14px;margin:24px 0 0;grid-template-columns:repeat(auto-fill,minmax(min(100%,240px),1fr))}
.tile,.card{background:var(--card);border:1px solid var(--edge);border-radius:12px}
.tile{padding:14px 18px}
.tile span{color:var(--soft);font-size:13px}
.tile b{display:block;font-size:30px;line-height:1.2;letter-spacing:-.02em;font-weight:650}
.tile em{font-style:normal;color:var(--muted);font-size:13px}
.tile em b{display:inline;font-size:13px;letter-spacing:0}
.up{color:var(--c2)!important}
.down{color:var(--bad)!important}
.cards{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr))}
.cards.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr))}
.card{padding:16px 18px 14px;position:relative}
.wide{margin-top:14px}
.card p{color:var(--soft);font-size:13px;line-height:1.45;margin:8px 0 0}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:12.5px;color:var(--soft);margin:-2px 0 6px}
.legend span{display:inline-flex;align-items:center;gap:6px}
.legend i{width:18px;height:0;border-top:2.5px solid var(--s)}
.legend i.dash{border-top-style:dashed}
.legend i.band{opacity:.3}
.legend i.band,.legend i.box{height:11px;width:11px;border:0;border-radius:3px;background:var(--s)}
.legend i.dot,.legend i.ring{width:10px;height:10px;border-radius:50%;border:2px solid var(--s)}
.legend i.dot{background:var(--s)}
.tip{position:absolute;pointer-events:none;background:var(--ink);color:var(--page);border-radius:8px;
  padding:6px 10px;font-size:12.5px;line-height:1.5;white-space:nowrap;z-index:2;opacity:.95}
.tip i{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:6px}
.tip b{font-variant-numeric:tabular-nums;font-weight:600}
.none{color:var(--muted);background:none;border:1px dashed var(--edge);border-radius:12px;padding:18px}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;
  font:13px/1.5 ui-monospace,Menlo,Consolas,monospace}
details>summary{cursor:pointer}
details.more{margin-top:14px}
details.more>summary{color:var(--soft);padding:4px 0}
table{border-collapse:collapse;font-size:13px;margin:12px 0}
td{padding:3px 16px 3px 0;color:var(--soft);vertical-align:top;overflow-wrap:anywhere}
td:first-child{color:var(--muted);white-space:nowrap}
footer{margin-top:44px;color:var(--muted);font-size:13px}
"""

EPISODE = """
.episode{background:var(--card);border:1px solid var(--edge);border-radius:12px;padding:18px 20px;
  margin-top:14px}
.question{font-size:17px;font-weight:600;margin:0;white-space:pre-wrap}
.facts{color:var(--soft);font-size:13px;margin:4px 0 14px}
.scale{display:inline-block;width:120px;height:10px;border-radius:5px;vertical-align:middle;margin:0 8px;
  border:1px solid var(--edge);
  background:linear-gradient(90deg,transparent,color-mix(in srgb,var(--warm) 60%,transparent))}
.turn{display:grid;grid-template-columns:30px minmax(0,1fr) 236px;gap:14px;padding:12px 0;
  border-top:1px solid var(--grid)}
.number{width:26px;height:26px;border-radius:50%;text-align:center;line-height:26px;font-size:13px;
  font-weight:600;background:color-mix(in srgb,var(--warm) calc(var(--h)*75%),var(--grid))}
.said>pre{padding:9px 12px;border-radius:8px;
  background:color-mix(in srgb,var(--warm) calc(var(--h)*60%),transparent);
  box-shadow:inset 0 0 0 1px var(--edge)}
.observation{margin:8px 0 0 12px;padding-left:12px;border-left:2px solid var(--grid);color:var(--soft)}
.observation b{font-size:11.5px;font-weight:500;color:var(--muted)}
.observation pre{font-size:12px}
.observation summary{list-style:none}
.observation details[open] summary{margin-bottom:0}
.final{display:flex;justify-content:space-between;font-size:13px;color:var(--soft)}
.final b{color:var(--ink);font-size:16px;line-height:1.2;font-variant-numeric:tabular-nums}
.bar{position:relative;height:9px;border-radius:5px;background:var(--grid);margin:5px 0 9px}
.bar::after{content:"";position:absolute;left:50%;top:-2px;height:13px;border-left:1px solid var(--muted)}
.bar i{position:absolute;top:0;height:9px;border-radius:4px}
.bar .good{background:var(--good)}
.bar .bad{background:var(--bad)}
.bar s{position:absolute;top:-3px;height:15px;border-left:2px solid var(--ink)}
dl{display:grid;grid-template-columns:1fr 1fr;gap:1px 14px;margin:0;font-size:12.5px}
dl div{display:flex;justify-content:space-between;cursor:help}
dt{color:var(--muted)}
dd{margin:0;font-variant-numeric:tabular-nums}
@media(max-width:760px){.turn{grid-template-columns:30px minmax(0,1fr)}.numbers{grid-column:2}}
@media print{.card,.tile,.turn{break-inside:avoid}}
"""

SCRIPT = """
document.querySelectorAll('svg[data-hover]').forEach(function(svg){
  var data=JSON.parse(svg.dataset.hover),card=svg.closest('.card'),tip=null,line=null,ends=data.x;
  var steps=[];
  data.series.forEach(function(s){s.points.forEach(function(p){if(steps.indexOf(p[0])<0)steps.push(p[0])})});
  function place(step){return ends[2]+(step-ends[0])/((ends[1]-ends[0])||1)*(ends[3]-ends[2])}
  function clear(){if(tip)tip.remove();if(line)line.remove();tip=line=null}
  svg.addEventListener('pointerleave',clear);
  svg.addEventListener('pointermove',function(event){
    var box=svg.getBoundingClientRect(),view=svg.viewBox.baseVal;
    var at=(event.clientX-box.left)/box.width*view.width;
    var step=steps.reduce(function(a,b){return Math.abs(place(b)-at)<Math.abs(place(a)-at)?b:a});
    clear();
    line=document.createElementNS(svg.namespaceURI,'line');
    line.setAttribute('class','cursor');line.setAttribute('x1',place(step));line.setAttribute('x2',place(step));
    line.setAttribute('y1',12);line.setAttribute('y2',view.height-34);svg.appendChild(line);
    tip=document.createElement('div');tip.className='tip';
    tip.appendChild(document.createTextNode('step '+(Math.round(step*10)/10)));
    data.series.forEach(function(s){
      var hit=s.points.find(function(p){return p[0]===step});if(!hit)return;
      var row=document.createElement('div'),dot=document.createElement('i'),value=document.createElement('b');
      dot.style.background='var(--c'+s.colour+')';value.textContent=hit[1];
      row.appendChild(dot);row.appendChild(document.createTextNode(s.label+' '));row.appendChild(value);
      tip.appendChild(row)});
    card.appendChild(tip);
    var frame=card.getBoundingClientRect(),left=event.clientX-frame.left+16;
    if(left+tip.offsetWidth>frame.width)left=event.clientX-frame.left-tip.offsetWidth-16;
    tip.style.left=left+'px';tip.style.top=(event.clientY-frame.top+12)+'px';
  });
});
"""
