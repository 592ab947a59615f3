/**
 * A counterexample as one page that needs nothing else: it is read and stepped through in a browser, from a file.
 * Everything is in the page as a table, so that it can be read without scripts; a script adds stepping.
 */
import { plain } from '../text/index.js';
import type { SiteText, Timeline, TimelineRow } from './timeline.js';

export function pageOf(timeline: Timeline): string {
  const rows = timeline.rows.map((row) => rowHtml(timeline, row)).join('\n');
  const columns = timeline.columns.map((c) => `<th scope="col">${escape(c)}</th>`).join('');
  const initial = timeline.initialText.map((t, i) => siteHtml(timeline.sites[i], t)).join('');
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(timeline.heading)}</title>
<style>${CSS}</style>
</head>
<body>
<header>
<h1>${escape(timeline.heading)}</h1>
<p class="conclusion">${escape(timeline.conclusion.join(' '))}</p>
<nav aria-label="steps">
<button type="button" id="first" aria-label="first step">|&lt;</button>
<button type="button" id="back" aria-label="one step back">&lt;</button>
<input type="range" id="position" min="0" max="${timeline.rows.length}" value="0" aria-label="step">
<button type="button" id="forward" aria-label="one step on">&gt;</button>
<button type="button" id="last" aria-label="last step">&gt;|</button>
<output id="now">0 / ${timeline.rows.length}</output>
<span class="hint">arrow keys step, Home and End jump, a row goes there</span>
</nav>
</header>
<main>
<table>
<thead><tr><th scope="col">step</th>${columns}<th scope="col">text</th><th scope="col">shared memory</th><th scope="col">store buffers</th></tr></thead>
<tbody>
<tr data-step="0"><td class="step">0</td>${timeline.columns.map(() => '<td></td>').join('')}<td class="text">${initial}</td><td></td><td></td></tr>
${rows}
</tbody>
</table>
</main>
<script>${SCRIPT}</script>
</body>
</html>
`;
}

function rowHtml(timeline: Timeline, row: TimelineRow): string {
  const classes = [row.breaks ? 'breaks' : '', row.repeatsFrom ? 'repeats' : ''].filter(Boolean).join(' ');
  const cells = row.cells
    .map((lines) => `<td class="what">${lines.map((l) => `<div>${escape(l)}</div>`).join('')}</td>`)
    .join('');
  const text = row.text.map((t, i) => siteHtml(timeline.sites[i], t)).join('');
  const words = row.words
    .map((w, i) => `<div${row.changedWords[i] ? ' class="changed"' : ''}>${escape(w)}</div>`)
    .join('');
  const buffers = row.buffers.map((b) => `<div>${escape(b)}</div>`).join('');
  return `<tr data-step="${row.step}"${classes === '' ? '' : ` class="${classes}"`}><td class="step">${row.step}</td>${cells}<td class="text">${text}</td><td class="words">${words}</td><td class="words">${buffers}</td></tr>`;
}

function siteHtml(name: string, text: SiteText): string {
  const bytes = text.bytes.map((b, i) => (text.changed[i] ? `<b>${b}</b>` : b)).join(' ');
  return `<div>${escape(name)}: ${bytes}</div>`;
}

function escape(text: string): string {
  return plain(text)
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}

const CSS = `
:root { color-scheme: light dark; --line: #8886; --mark: #b45309; --bad: #c0262d; --here: #3b82f633; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 0; }
header { position: sticky; top: 0; background: Canvas; border-bottom: 1px solid var(--line); padding: .6rem 1rem; z-index: 1; }
h1 { font-size: 1.05rem; margin: 0 0 .2rem; }
.conclusion { color: var(--bad); font-weight: 600; margin: .2rem 0 .5rem; }
nav { display: flex; gap: .4rem; align-items: center; flex-wrap: wrap; }
nav input { flex: 1 1 12rem; max-width: 30rem; }
.hint { opacity: .7; font-size: .85em; }
main { overflow-x: auto; padding: 0 1rem 2rem; }
table { border-collapse: collapse; font: 12.5px/1.4 ui-monospace, monospace; }
th { text-align: left; padding: .3rem .6rem; border-bottom: 2px solid var(--line); white-space: nowrap; }
td { vertical-align: top; padding: .2rem .6rem; border-bottom: 1px solid var(--line); }
td.text, td.words { white-space: nowrap; }
td.step { text-align: right; opacity: .7; }
tr[data-step] { cursor: pointer; }
tr.later { opacity: .25; }
tr.here { background: var(--here); }
tr.breaks td.what, tr.breaks td.step { color: var(--bad); font-weight: 700; }
tr.repeats td { border-top: 3px double var(--mark); }
.text b, .changed { color: var(--mark); font-weight: 700; }
`;

const SCRIPT = `
const rows = [...document.querySelectorAll('tr[data-step]')];
const position = document.getElementById('position');
const now = document.getElementById('now');
const last = rows.length - 1;
function go(step) {
  const at = Math.max(0, Math.min(last, step));
  position.value = String(at);
  now.textContent = at + ' / ' + last;
  rows.forEach((row, i) => {
    row.classList.toggle('later', i > at);
    row.classList.toggle('here', i === at);
  });
  rows[at].scrollIntoView({ block: 'nearest' });
}
const at = () => Number(position.value);
document.getElementById('first').onclick = () => go(0);
document.getElementById('back').onclick = () => go(at() - 1);
document.getElementById('forward').onclick = () => go(at() + 1);
document.getElementById('last').onclick = () => go(last);
position.oninput = () => go(at());
rows.forEach((row, i) => { row.onclick = () => go(i); });
addEventListener('keydown', (event) => {
  const moves = { ArrowRight: at() + 1, ArrowDown: at() + 1, ArrowLeft: at() - 1, ArrowUp: at() - 1, Home: 0, End: last };
  if (!(event.key in moves)) return;
  event.preventDefault();
  go(moves[event.key]);
});
go(0);
`;
