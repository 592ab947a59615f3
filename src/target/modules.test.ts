import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { compile } from '../elf/gcc.test.support.js';
import { readMaps } from '../linux/index.js';
import { readModules, type Module } from './modules.js';

const folder = mkdtempSync(join(tmpdir(), 'safepoke-modules-'));
chmodSync(folder, 0o777);
const started: ChildProcess[] = [];
after(() => {
  for (const child of started) child.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
});

const LOADS = `
#include <dlfcn.h>
#include <unistd.h>
int main(int argc, char **argv) {
  for (int i = 1; i < argc; i++) if (!dlopen(argv[i], RTLD_NOW)) return 1;
  for (;;) pause();
}`;
const loads = join(folder, 'loads');
writeFileSync(loads, compile(LOADS));
chmodSync(loads, 0o755);
const LIBRARY = compile('int in_the_library(int x) { return x + 1; }', '-shared', '-fPIC');

let libraries = 0;
function library(name = `lib${++libraries}.so`): string {
  const path = join(folder, name);
  writeFileSync(path, LIBRARY);
  chmodSync(path, 0o644);
  return path;
}

/** A process that has loaded the libraries. */
async function loaded(paths: readonly string[], user?: number): Promise<number> {
  const child = spawn(loads, paths, {
    stdio: 'ignore',
    ...(user === undefined ? {} : { uid: user, gid: user }),
  });
  started.push(child);
  const { pid } = child;
  assert.ok(pid);
  const isThere = (path: string): boolean => (readMaps(pid) ?? []).some((m) => m.path === path);
  while (!paths.every(isThere)) {
    assert.equal(child.exitCode, null);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  return pid;
}

function moduleAt(pid: number, path: string): Module | undefined {
  return readModules(pid).modules.find((module) => module.path === path);
}

function hasFunction(module: Module | undefined): boolean {
  return module?.elf().symbols.some(({ name }) => name === 'in_the_library') ?? false;
}

const isRoot = process.geteuid?.() === 0;

test('a library whose place a FIFO, another file or nothing has taken is what is mapped, or is refused', async () => {
  const [fifo, other, gone, cut] = [library(), library(), library(), library()];
  const pid = await loaded([fifo, other, gone, cut]);
  rmSync(fifo);
  execFileSync('mkfifo', [fifo]);
  writeFileSync(`${other}.new`, 'no library');
  renameSync(`${other}.new`, other);
  rmSync(gone);
  truncateSync(cut, 100);
  // Without a right to the kernel's own links nothing is left but the name.
  for (const path of [fifo, other, gone]) {
    assert.equal(hasFunction(moduleAt(pid, path)), isRoot, path);
    assert.equal(
      readModules(pid).unusable.some((u) => u.path === path),
      !isRoot,
    );
  }
  assert.match(readModules(pid).unusable.find(({ path }) => path === cut)?.why ?? '', /bytes at offset/);
  assert.ok(readModules(pid).modules[0].isExecutable);
});

test('a library with an odd name is found by that name', async () => {
  const names = [
    'new\nline.so',
    'back\\012slash.so',
    'carriage\r7f00-7f01 r-xp 0 00:00 1 x',
    'there (deleted)',
  ];
  const paths = names.map((name) => library(name));
  const pid = await loaded(paths);
  for (const path of paths) assert.ok(hasFunction(moduleAt(pid, path)), path);
  assert.deepEqual(readModules(pid).unusable, []);
});

test('two files that had one name are two modules', async () => {
  const path = library();
  const pid = await loaded([path, path]);
  assert.equal(readModules(pid).modules.filter((module) => module.path === path).length, 1);
});

test('whoever may not use the links of the kernel finds what is mapped by its name, and nothing else', async () => {
  const user = isRoot ? 65534 : process.geteuid?.();
  const [there, fifo, other] = [library(), library(), library()];
  const odd = library('odd\nname.so');
  const pid = await loaded([there, fifo, other, odd], isRoot ? user : undefined);
  rmSync(fifo);
  execFileSync('mkfifo', [fifo]);
  copyFileSync(there, `${other}.new`);
  renameSync(`${other}.new`, other);
  const source = `
    import { readModules } from '${fileURLToPath(new URL('modules.js', import.meta.url))}';
    const { modules, unusable } = readModules(${pid});
    console.log(JSON.stringify([modules.map(({ path }) => path), unusable.map(({ path }) => path)]));`;
  const ran = spawnSync(process.execPath, ['--input-type=module', '-e', source], {
    encoding: 'utf8',
    cwd: '/',
    timeout: 60_000,
    ...(isRoot ? { uid: user, gid: user } : {}),
  });
  assert.equal(ran.status, 0, ran.stderr);
  const [modules, unusable] = JSON.parse(ran.stdout) as [string[], string[]];
  assert.equal(modules[0], loads);
  for (const path of [there, odd]) assert.ok(modules.includes(path), path);
  assert.deepEqual(unusable.sort(), [fifo, other].sort());
});

test('libraries of a gigabyte cost no memory to speak of', async () => {
  const GIB = 2 ** 30;
  const paths = [library(), library(), library()];
  for (const path of paths) truncateSync(path, 2 * GIB);
  const pid = await loaded(paths);
  const peak = (): number =>
    Number(/VmHWM:\s*(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) * 1024;
  const before = peak();
  for (const path of paths) assert.ok(hasFunction(moduleAt(pid, path)));
  assert.ok(peak() - before < GIB / 8);
});
