/**
 * SPIN, which nobody here wrote, judges every cell of the verdict table from the exported Promela model. The verdicts that
 * it is compared with are those of verdict-table.txt, which verdict-table.test.ts holds to be ours.
 */
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { promisify } from 'node:util';
import { compile } from '../model/index.js';
import { promelaOf } from './promela.js';
import type { TableCell } from './table.js';
import { cellsOf, tableRows } from './table.js';

const run = promisify(execFile);
const WORKERS = 2;
/** Deeper than any run of a table cell; SPIN would say so if it were not. */
const SPIN_DEPTH = '200000';
const OUTPUT_BYTES = 16 * 2 ** 20;

/** The verdict that SPIN reaches on one exported model. */
async function spinVerdict(directory: string, cell: TableCell): Promise<string> {
  const { cpus, nmis, overlap, protocol } = cell.row;
  const model = promelaOf(compile(protocol, { cpus, nmis, overlap, memory: cell.memory }, cell.scenario));
  await writeFile(join(directory, 'model.pml'), model);
  const here = { cwd: directory, maxBuffer: OUTPUT_BYTES };
  await run('spin', ['-a', 'model.pml'], here);
  // Fairness needs room for every process; without a claim the smaller, faster verifier will do.
  const { storm } = cell.scenario;
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

test('SPIN reaches the verdict of every cell of the table from the exported model', async () => {
  const table = await readFile(new URL('../../src/check/verdict-table.txt', import.meta.url), 'utf8');
  const ours = table.match(/\b(safe|unsafe|livelock|unknown)\b/g) ?? [];
  const cells = tableRows.flatMap((row) => cellsOf(row));
  assert.equal(ours.length, cells.length);
  const disagreements: string[] = [];
  let next = 0;
  const work = async (): Promise<void> => {
    const directory = await mkdtemp(join(tmpdir(), 'safepoke-spin-'));
    try {
      for (let at = next++; at < cells.length; at = next++) {
        const cell = cells[at];
        const theirs = await spinVerdict(directory, cell);
        if (theirs !== ours[at])
          disagreements.push(
            `${cell.row.group}, ${cell.row.label}, ${cell.scenario.name}, ${cell.memory}: SPIN ${theirs}, we ${ours[at]}`,
          );
      }
    } finally {
      await rm(directory, { recursive: true });
    }
  };
  await Promise.all(Array.from({ length: WORKERS }, work));
  assert.deepEqual(disagreements, []);
});
