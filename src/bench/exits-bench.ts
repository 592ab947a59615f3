// For how many functions all exits are found: real programs, and the same sources by flags of the compiler. Nothing is timed.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync, realpathSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseElf } from '../elf/index.js';
import { functionsOf } from '../symbols/index.js';
import { analyseFunctions, type ExitRefusal } from '../x86/index.js';
import { renderTable } from './table.js';

const FILES = [
  '/usr/bin/redis-server',
  '/usr/sbin/nginx',
  '/usr/bin/node',
  '/usr/bin/python3',
  '/usr/bin/perl',
  '/lib/x86_64-linux-gnu/libc.so.6',
  '/lib/x86_64-linux-gnu/libssl.so.3',
  '/lib/x86_64-linux-gnu/libcrypto.so.3',
  '/usr/lib/x86_64-linux-gnu/libsqlite3.so.0',
  '/usr/lib/x86_64-linux-gnu/libstdc++.so.6',
] as const;
const FLAGS = ['-O0', '-O1', '-Og', '-Os', '-O2', '-O3', '-O2 -fcf-protection=full', '-O2 -fPIC'] as const;
/** Programs of the tests: no large source is at hand on every machine. */
const SOURCES = fileURLToPath(new URL('../../test/targets/', import.meta.url));
const REASONS: readonly ExitRefusal[] = ['no-room', 'landing', 'computed-jump', 'falls-through', 'odd-stack'];

type Tally = Map<'functions' | 'sites' | 'exits' | ExitRefusal, number>;

function add(tally: Tally, key: 'functions' | 'sites' | 'exits' | ExitRefusal, number = 1): void {
  tally.set(key, (tally.get(key) ?? 0) + number);
}

/** Counts into `tally` what is true of the functions of a file that `isWanted` names. */
function count(path: string, tally: Tally, isWanted: (name: string) => boolean = () => true): void {
  const elf = parseElf(new Uint8Array(readFileSync(realpathSync(path))), path);
  const all = functionsOf(elf);
  const asked = all.filter((one) => one.kind === 'function' && isWanted(one.name));
  const { candidates, exits } = analyseFunctions(elf, asked, all, undefined, true);
  add(tally, 'functions', asked.length);
  add(tally, 'sites', candidates.length);
  for (const one of exits) add(tally, typeof one === 'object' ? 'exits' : one);
}

function row(name: string, tally: Tally): string[] {
  const sites = tally.get('sites') ?? 0;
  const share = (part: number, of: number): string => (of === 0 ? '' : `${((100 * part) / of).toFixed(1)} %`);
  return [
    name,
    String(tally.get('functions') ?? 0),
    share(sites, tally.get('functions') ?? 0),
    share(tally.get('exits') ?? 0, sites),
    ...REASONS.map((reason) => String(tally.get(reason) ?? 0)),
  ];
}

/** Names of the functions that a source defines at the beginning of a line, as far as it needs no parser. */
function defined(source: string): ReadonlySet<string> {
  const names = source.matchAll(/^[a-z][\w \t*]*?\**(\w+)\([^;{]*\) *\{/gm);
  return new Set([...names].map(([, name]) => name));
}

function compiled(directory: string, flags: string): Tally {
  const tally: Tally = new Map();
  for (const file of readdirSync(SOURCES).filter((name) => name.endsWith('.c'))) {
    const source = join(SOURCES, file);
    const program = join(directory, 'exits');
    const made = spawnSync('gcc', [
      ...flags.split(' '),
      '-w',
      '-pthread',
      '-o',
      program,
      source,
      '-ldl',
      '-lm',
    ]);
    // Some want flags of their own.
    if (made.status !== 0) continue;
    const names = defined(readFileSync(source, 'utf8'));
    count(program, tally, (name) => names.has(name.replace(/\..*/, '')));
  }
  return tally;
}

/** Two tables. */
export function benchExits(directory: string): string {
  const head = ['', 'functions', 'with a site', 'of those with exits', ...REASONS];
  const files = FILES.filter((path) => existsSync(path)).map((path) => {
    const tally: Tally = new Map();
    count(path, tally);
    return row(basename(realpathSync(path)), tally);
  });
  const byFlags = FLAGS.map((flags) => row(`gcc ${flags}`, compiled(directory, flags)));
  return (
    renderTable('Functions with all exits: programs and libraries of this machine', head, files) +
    renderTable('The same: programs of the tests, by flags', head, byFlags)
  );
}
