// Time to verdict of the checker against SPIN's compiled verifier on the exported model, in one run; and the whole table.
// Usage: node scripts/bench-check.mjs [--table]   (build first)
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  cellsOf,
  check,
  checkCell,
  compile,
  nmiOneWord,
  promelaOf,
  tableRows,
  twoSites,
} from '../dist/core.js';

const seconds = (began) => (performance.now() - began) / 1000;
const machine = { cpus: 3, nmis: 2, memory: 'tso', overlap: 'any' };
console.log('nmi-one-word, two-sites, tso, 3 CPUs, 2 NMIs each, overlapping');

const directory = mkdtempSync(join(tmpdir(), 'safepoke-bench-'));
let spin;
try {
  writeFileSync(join(directory, 'model.pml'), promelaOf(compile(nmiOneWord, machine, twoSites)));
  const run = (command, ...args) =>
    execFileSync(command, args, { cwd: directory, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  const began = performance.now();
  run('spin', '-a', 'model.pml');
  run('gcc', '-O2', '-DSAFETY', '-DVECTORSZ=2048', '-o', 'pan', 'pan.c');
  const compiled = seconds(began);
  const output = run('./pan', '-m200000', '-w24');
  const total = seconds(began);
  const states = Number(/(\d+) states, stored/.exec(output)?.[1]);
  const searched = total - compiled;
  spin = { total, states };
  console.log(
    `SPIN:     ${total.toFixed(2)} s (spin and gcc ${compiled.toFixed(2)} s, pan ${searched.toFixed(2)} s), ` +
      `${states} states, ${Math.round(states / searched)} states/s, ${/errors: \d+/.exec(output)?.[0]}`,
  );
} finally {
  rmSync(directory, { recursive: true });
}

for (const [name, options] of [['safepoke', {}]]) {
  const began = performance.now();
  const result = check(nmiOneWord, machine, twoSites, options);
  const total = seconds(began);
  console.log(
    `${name}: ${total.toFixed(2)} s, ${result.states} states, ${Math.round(result.states / total)} states/s, ` +
      `${result.verdict}, ${(spin.total / total).toFixed(1)} times as fast as SPIN`,
  );
}

if (process.argv.includes('--table')) {
  const began = performance.now();
  const cpu = process.cpuUsage();
  let states = 0;
  const cells = tableRows.flatMap((row) => cellsOf(row));
  for (const cell of cells) states += checkCell(cell).states;
  const used = process.cpuUsage(cpu);
  console.log(
    `the whole table: ${cells.length} verdicts, ${states} states, ${seconds(began).toFixed(1)} s ` +
      `(${((used.user + used.system) / 1e6).toFixed(1)} s of one processor), ` +
      `${Math.round(process.resourceUsage().maxRSS / 1024)} MiB at most`,
  );
}
