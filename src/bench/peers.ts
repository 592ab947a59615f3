// Other tracers, each on the same source and asked for the same: entry and exit of one function.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseElf } from '../elf/index.js';
import { buildCalls } from './programs.js';
import { TimedTarget, type Round } from './timed-target.js';

export interface PeerResult {
  readonly name: string;
  /** Undefined: not there, and `note` says how to get it. */
  readonly round: Round | undefined;
  readonly note: string;
}

/** How each round is made. */
export interface Rounds {
  readonly calls: number;
  readonly count: number;
  readonly threads: number;
}

/** A uprobe costs a trap: fewer calls tell as much. */
const UPROBE_DIVISOR = 25;

export function hasCommand(command: string): boolean {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).error === undefined;
}

function missing(name: string, packages: string): PeerResult {
  return { name, round: undefined, note: `missing: apt-get install ${packages}` };
}

async function measure(
  name: string,
  note: string,
  command: readonly string[],
  rounds: Rounds,
  cwd: string,
): Promise<PeerResult> {
  const target = new TimedTarget(command, { cwd });
  try {
    const round = await target.rounds(rounds.calls, rounds.count);
    return { name, round, note };
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return { name, round: undefined, note: `failed: ${why.split('\n')[0]}` };
  } finally {
    await target.end();
  }
}

export async function measureUftrace(directory: string, rounds: Rounds): Promise<PeerResult[]> {
  const variants = [
    { name: 'uftrace, -pg', flags: ['-pg'], args: [] },
    {
      name: 'uftrace -P, patchable entries',
      flags: ['-fpatchable-function-entry=5'],
      args: ['-P', '^work$'],
    },
    { name: 'uftrace -P, plain binary', flags: [], args: ['-P', '^work$'] },
  ];
  const results: PeerResult[] = [];
  for (const [index, { name, flags, args }] of variants.entries()) {
    const program = hasCommand('uftrace') ? buildCalls(directory, `uftrace-${index}`, flags) : undefined;
    if (program === undefined) {
      results.push(missing(name, 'uftrace gcc'));
      continue;
    }
    const data = join(directory, 'uftrace.data');
    // -F leaves out what else -pg instruments; without kernel events, which need root.
    const command = ['uftrace', 'record', '--no-libcall', '--no-event', ...args, '-F', 'work', '-d', data];
    results.push(await measure(name, '', [...command, program, String(rounds.threads)], rounds, directory));
    rmSync(data, { recursive: true, force: true });
    rmSync(`${data}.old`, { recursive: true, force: true });
  }
  return results;
}

export async function measureXray(directory: string, rounds: Rounds): Promise<PeerResult> {
  const name = 'LLVM XRay 14, flight recorder';
  let program: string | undefined;
  try {
    program = buildCalls(directory, 'xray', ['-DXRAY', '-fxray-instrument'], 'clang-14');
  } catch {
    program = undefined;
  }
  if (program === undefined) return missing(name, 'clang-14 libclang-rt-14-dev');
  const result = await measure(name, 'no time filter', [program, String(rounds.threads)], rounds, directory);
  for (const file of readdirSync(directory)) if (file.startsWith('xray-log')) rmSync(join(directory, file));
  return result;
}

/** Entry and return probes through tracefs: what perf and bpftrace are built on. Nothing is saved to a file. */
export async function measureUprobes(directory: string, plain: string, rounds: Rounds): Promise<PeerResult> {
  const name = 'uprobe + uretprobe';
  const tracing = '/sys/kernel/tracing';
  if (!existsSync(join(tracing, 'uprobe_events'))) {
    mkdirSync(tracing, { recursive: true });
    spawnSync('mount', ['-t', 'tracefs', 'tracefs', tracing]);
  }
  if (!existsSync(join(tracing, 'uprobe_events')))
    return { name, round: undefined, note: 'missing: root, mount -t tracefs tracefs /sys/kernel/tracing' };
  const elf = parseElf(readFileSync(plain), plain);
  const symbol = elf.symbols.find((s) => s.name === 'work');
  const segment = elf.segments.find(
    (s) => symbol !== undefined && s.executable && symbol.address >= s.address,
  );
  if (symbol === undefined || segment === undefined) throw new Error('the program has no function "work"');
  const offset = symbol.address - segment.address + BigInt(segment.offset);
  const place = `${plain}:0x${offset.toString(16)}`;
  const group = `safepoke_bench_${process.pid}`;
  const events = join(tracing, 'uprobe_events');
  const enable = join(tracing, 'events', group, 'enable');
  try {
    writeFileSync(events, `p:${group}/enter ${place}\n`, { flag: 'a' });
    writeFileSync(events, `r:${group}/leave ${place}\n`, { flag: 'a' });
    writeFileSync(enable, '1');
    const calls = Math.max(1, Math.round(rounds.calls / UPROBE_DIVISOR));
    return await measure(
      name,
      'into the kernel’s buffer, no file',
      [plain, String(rounds.threads)],
      { ...rounds, calls },
      directory,
    );
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return { name, round: undefined, note: `failed: ${why.split('\n')[0]}` };
  } finally {
    for (const line of [`-:${group}/enter`, `-:${group}/leave`]) {
      try {
        if (existsSync(enable)) writeFileSync(enable, '0');
        writeFileSync(events, `${line}\n`, { flag: 'a' });
      } catch {
        // It was never made.
      }
    }
  }
}
