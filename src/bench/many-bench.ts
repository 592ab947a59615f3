// Attaching to a program of twenty thousand functions.
import { spawn, spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { Attached } from './attached.js';
import { hasCommand } from './peers.js';
import { buildMany } from './programs.js';
import { renderTable } from './table.js';
import { median, pause } from './timed-target.js';

const FUNCTIONS = 20_000;
const RUNS = 3;
const STARTUP_MS = 200;
/** The program's traced functions make some records; they must not be what is waited for. */
const SETTLE_MS = 100;

export async function benchMany(directory: string): Promise<string> {
  const rows: string[][] = [];
  for (const [variant, flags] of [
    ['plain', []],
    ['patchable', ['-fpatchable-function-entry=5']],
  ] as const) {
    const program = buildMany(directory, FUNCTIONS, variant, flags);
    if (program === undefined) throw new Error('gcc is missing: apt-get install gcc');
    const child = spawn(program, { stdio: 'ignore' });
    try {
      await pause(STARTUP_MS);
      const attach: number[] = [];
      const held: number[] = [];
      let patched = 0;
      for (let i = 0; i < RUNS; i++) {
        const session = await Attached.start(child.pid ?? 0, ['-F', 'function_*'], directory);
        await pause(SETTLE_MS);
        const summary = await session.stop();
        attach.push(summary.attach_ms);
        held.push(summary.held_us / 1000);
        patched = summary.patched;
      }
      rows.push([
        `safepoke attach, ${variant}`,
        String(patched),
        median(attach).toFixed(0),
        median(held).toFixed(1),
        ((median(attach) * 1000) / FUNCTIONS).toFixed(1),
      ]);
    } finally {
      child.kill();
    }
    rows.push(uftraceStartup(directory, program, variant));
  }
  return renderTable(
    `${FUNCTIONS} functions, entry and exit: median of ${RUNS}`,
    ['', 'patched', 'ms', 'held, ms', 'us per function'],
    rows,
  );
}

/** From starting it to `main`, with patching, less the same without. */
function uftraceStartup(directory: string, program: string, variant: string): string[] {
  const name = `uftrace -P, start-up, ${variant}`;
  if (!hasCommand('uftrace')) return [name, 'missing: apt-get install uftrace', '', '', ''];
  const data = join(directory, 'uftrace.data');
  const startup = (args: readonly string[]): number => {
    const times: number[] = [];
    for (let i = 0; i < RUNS; i++) {
      const since = process.hrtime.bigint();
      const { stdout } = spawnSync(
        'uftrace',
        ['record', '--no-libcall', '--no-event', ...args, '-d', data, program, 'once'],
        { encoding: 'utf8' },
      );
      const began = /^main (\d+)$/m.exec(stdout)?.[1];
      times.push(began === undefined ? Number.NaN : Number(BigInt(began) - since) / 1e6);
      rmSync(data, { recursive: true, force: true });
    }
    return median(times);
  };
  // --force: without -P it does not know what to trace in such a program.
  const ms = startup(['-P', '^function_']) - startup(['--force']);
  if (Number.isNaN(ms)) return [name, 'failed', '', '', ''];
  return [name, String(FUNCTIONS), ms.toFixed(0), '', ((ms * 1000) / FUNCTIONS).toFixed(1)];
}
