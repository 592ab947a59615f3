/**
 * All benchmarks: `npm run bench`, or only some sections: `npm run bench -- calls peers many drain scale inside exits report`. Every ratio is of
 * figures measured in the same run, side by side, for machines differ and this one may be busy: read ratios, not figures.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Terminal } from '../cli/terminal.js';
import { lines } from '../text/index.js';
import { benchCalls, callsTable, type CallFigures } from './calls-bench.js';
import { benchDrain } from './drain-bench.js';
import { benchExits } from './exits-bench.js';
import { benchInside } from './inside-bench.js';
import { benchMany } from './many-bench.js';
import { measureUftrace, measureUprobes, measureXray, type PeerResult } from './peers.js';
import { buildCalls } from './programs.js';
import { benchReport } from './report-section.js';
import { benchScale } from './scale-bench.js';
import { ns, renderTable } from './table.js';

const SECTIONS = ['calls', 'peers', 'many', 'drain', 'scale', 'inside', 'exits', 'report'] as const;
const PEER_ROUNDS = { calls: 500_000, count: 7 };

const terminal = new Terminal();

async function peers(directory: string, plain: string, own: CallFigures | undefined): Promise<void> {
  for (const threads of [1, 2]) {
    const rounds = { ...PEER_ROUNDS, threads };
    const ours = own?.threads === threads ? own : await benchCalls(plain, directory, threads);
    const results: PeerResult[] = [
      ...(await measureUftrace(directory, rounds)),
      await measureXray(directory, rounds),
      await measureUprobes(directory, plain, rounds),
    ];
    const base = ours.traced.cpu - ours.before.cpu;
    const rows = results.map(({ name, round, note }) => {
      if (round === undefined) return [name, '', '', '', note];
      const added = round.cpu - ours.before.cpu;
      return [name, ns(round.wall), ns(round.cpu), `${(added / base).toFixed(1)} x`, note];
    });
    terminal.data(
      lines(
        renderTable(
          `Peers, entry and exit of one function, ${threads} thread${threads > 1 ? 's' : ''}: ns per call`,
          ['tracer', 'wall', 'processor', 'added, to safepoke', ''],
          [
            ['safepoke', ns(ours.traced.wall), ns(ours.traced.cpu), '1.0 x', `dropped ${ours.dropped}`],
            ...rows,
          ],
        ),
      ),
    );
  }
}

async function main(wanted: readonly string[]): Promise<void> {
  const is = (section: (typeof SECTIONS)[number]): boolean => wanted.length === 0 || wanted.includes(section);
  const unknown = wanted.find((name) => !(SECTIONS as readonly string[]).includes(name));
  if (unknown !== undefined) throw new Error(`no section "${unknown}"; there are ${SECTIONS.join(', ')}`);
  const directory = mkdtempSync(join(tmpdir(), 'safepoke-bench-'));
  try {
    terminal.data(lines(`${cpus()[0].model.trim()}, ${cpus().length} processors\n`));
    let own: CallFigures | undefined;
    if (is('calls') || is('peers')) {
      const plain = buildCalls(directory, 'plain', []);
      if (plain === undefined) throw new Error('gcc is missing: apt-get install gcc');
      if (is('calls')) {
        const one = await benchCalls(plain, directory, 1);
        const two = await benchCalls(plain, directory, 2);
        terminal.data(lines(callsTable([one, two])));
        own = one;
      }
      if (is('peers')) await peers(directory, plain, own);
    }
    if (is('many')) terminal.data(lines(await benchMany(directory)));
    if (is('drain')) terminal.data(lines(await benchDrain(directory)));
    if (is('scale')) terminal.data(lines(await benchScale(directory)));
    if (is('inside')) terminal.data(lines(await benchInside(directory)));
    if (is('exits')) terminal.data(lines(benchExits(directory)));
    if (is('report')) terminal.data(lines(benchReport()));
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  terminal.error(error instanceof Error ? error.message : String(error));
  process.exitCode = 1;
}
