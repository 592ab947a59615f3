/**
 * The whole verdict table: held to the golden text, and judged a second time by SPIN, which nobody here wrote, from the
 * exported Promela models.
 */
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { before, test } from 'node:test';
import assert from 'node:assert/strict';
import { promisify } from 'node:util';
import { compile } from '../model/index.js';
import { check } from './check.js';
import type { CheckResult, Verdict } from './check.js';
import { promelaOf } from './promela.js';
import type { JudgedRow, TableCell } from './table.js';
import { cellsOf, checkCell, machineOf, renderTable, tableRows } from './table.js';

const run = promisify(execFile);
const WORKERS = 2;
/** Deeper than any run of a table cell; SPIN says so if it is not. */
const SPIN_DEPTH = '200000';
const OUTPUT_BYTES = 16 * 2 ** 20;
/**
 * SPIN knows no symmetry and needs several times our states and ten times our bytes for each: a cell with more states
 * than this is put to both with one CPU, or if only two are left with one NMI, less.
 */
const STATES_FOR_SPIN = 40_000;

const results = new Map<TableCell, CheckResult>();
const judged: JudgedRow[] = [];

before(() => {
  for (const row of tableRows) {
    const verdicts: Verdict[] = [];
    for (const cell of cellsOf(row)) {
      const result = checkCell(cell);
      results.set(cell, result);
      verdicts.push(result.verdict);
    }
    judged.push({ row, verdicts });
  }
});

test('every verdict is the one of the golden table', async () => {
  const golden = await readFile(new URL('../../src/check/verdict-table.txt', import.meta.url), 'utf8');
  assert.equal(`${renderTable(judged, (_, text) => text).join('\n')}\n`, golden);
});

test('SPIN reaches the same verdict on every cell from the exported model', async () => {
  const cells = [...results.keys()];
  const disagreements: string[] = [];
  // A barrier that a memory model does not know leaves no trace in the model: such cells are put to SPIN once.
  const asked = new Map<string, Promise<string>>();
  let next = 0;
  const work = async (): Promise<void> => {
    const directory = await mkdtemp(join(tmpdir(), 'safepoke-spin-'));
    try {
      for (let at = next++; at < cells.length; at = next++) {
        const { row, scenario, memory } = cells[at];
        const { cell, verdict } = forSpin(cells[at]);
        const model = promelaOf(compile(cell.row.protocol, machineOf(cell), cell.scenario));
        const key = canonical(model);
        const asking = asked.get(key) ?? spinVerdict(directory, model, cell.scenario.storm);
        asked.set(key, asking);
        const theirs = await asking;
        if (theirs !== verdict)
          disagreements.push(`${row.label}, ${scenario.name}, ${memory}: SPIN ${theirs}, we ${verdict}`);
      }
    } finally {
      await rm(directory, { recursive: true });
    }
  };
  await Promise.all(Array.from({ length: WORKERS }, work));
  assert.deepEqual(disagreements, []);
});

function forSpin(cell: TableCell): { readonly cell: TableCell; readonly verdict: Verdict } {
  const result = results.get(cell);
  assert.ok(result);
  // A violation is found at once, however large the rest is.
  if (result.states <= STATES_FOR_SPIN || result.verdict !== 'safe') return { cell, verdict: result.verdict };
  const { cpus } = cell.row;
  const smaller = { ...cell, row: { ...cell.row, ...(cpus > 2 ? { cpus: cpus - 1 } : { nmis: 0 }) } };
  return {
    cell: smaller,
    verdict: check(smaller.row.protocol, machineOf(smaller), smaller.scenario).verdict,
  };
}

/** The model without its comments, its labels numbered as they come: equal texts, equal models. */
function canonical(model: string): string {
  const labels = new Map<string, string>();
  return model.replaceAll(/\/\*.*?\*\//gs, '').replaceAll(/\bL\d+\b/g, (label) => {
    const known = labels.get(label) ?? `L${labels.size}`;
    labels.set(label, known);
    return known;
  });
}

/** The verdict that SPIN reaches on one exported model. */
async function spinVerdict(directory: string, model: string, storm: boolean): Promise<string> {
  await writeFile(join(directory, 'model.pml'), model);
  const here = { cwd: directory, maxBuffer: OUTPUT_BYTES };
  await run('spin', ['-a', 'model.pml'], here);
  // Fairness needs room for every process; without a claim the smaller, faster verifier will do.
  const flags = storm ? ['-DNFAIR=3'] : ['-DSAFETY'];
  await run('gcc', ['-O0', '-w', ...flags, '-DVECTORSZ=2048', '-o', 'pan', 'pan.c'], here);
  const { stdout } = await run('./pan', [`-m${SPIN_DEPTH}`, ...(storm ? ['-a', '-f'] : [])], here);
  assert.doesNotMatch(stdout, /max search depth too small/);
  assert.doesNotMatch(stdout, /assertion violated \(b\[/, 'the exported store buffer is too small');
  if (/assertion violated/.test(stdout)) return 'unsafe';
  if (/invalid end state \(at/.test(stdout) || /acceptance cycle \(at/.test(stdout)) return 'livelock';
  assert.match(stdout, /errors: 0/);
  return 'safe';
}
