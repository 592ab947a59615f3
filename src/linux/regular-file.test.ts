import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { readMaps } from './proc.js';
import { NotRegularError, RegularFile } from './regular-file.js';

const folder = mkdtempSync(join(tmpdir(), 'safepoke-files-'));
after(() => {
  rmSync(folder, { recursive: true, force: true });
});

function text(file: RegularFile, length: number, offset = 0): string {
  const bytes = Buffer.alloc(length);
  return bytes.toString('latin1', 0, file.read(bytes, offset));
}

/** Descriptors are closed when the event loop goes on. */
async function turn(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
  await new Promise((resolve) => setImmediate(resolve));
}

test('what is no regular file is told, and not opened', () => {
  const fifo = join(folder, 'fifo');
  execFileSync('mkfifo', [fifo]);
  const inner = join(folder, 'inner');
  mkdirSync(inner);
  const cases: readonly (readonly [string, RegExp])[] = [
    [fifo, /a FIFO/],
    [inner, /a directory/],
    ['/dev/zero', /a device/],
  ];
  for (const [path, said] of cases) {
    assert.throws(
      () => RegularFile.open(path),
      (error) => error instanceof NotRegularError && said.test(error.message),
    );
  }
  const link = join(folder, 'link');
  symlinkSync(fifo, link);
  assert.throws(() => RegularFile.open(link), NotRegularError);
  assert.throws(() => RegularFile.open(link, { follow: false }), /a symbolic link/);
  assert.throws(() => RegularFile.open(join(folder, 'nothing')), { code: 'ENOENT' });
});

test('ranges are read, and no more than the file had when it was opened', () => {
  const path = join(folder, 'grows');
  writeFileSync(path, '0123456789');
  const file = RegularFile.open(path);
  assert.equal(text(file, 4, 3), '3456');
  appendFileSync(path, 'more');
  assert.equal(text(file, 100, 8), '89');
  assert.equal(text(file, 10, 50), '');
});

test('a file that became shorter gives what it has', () => {
  const path = join(folder, 'shrinks');
  writeFileSync(path, '0123456789');
  const file = RegularFile.open(path);
  truncateSync(path, 4);
  assert.equal(text(file, 10), '0123');
});

test('a file that took the place of the one that was opened is not read', async () => {
  const path = join(folder, 'replaced');
  const other = join(folder, 'other');
  writeFileSync(path, 'first');
  writeFileSync(other, 'other');
  const file = RegularFile.open(path);
  assert.equal(text(file, 5), 'first');
  await turn();
  assert.equal(text(file, 5), 'first');
  await turn();
  renameSync(other, path);
  assert.equal(text(file, 5), '');
});

test('of many files few are open at a time, and none when the event loop has gone on', async () => {
  const openFiles = (): number => readdirSync('/proc/self/fd').length;
  await turn();
  const before = openFiles();
  const files = Array.from({ length: 100 }, (_, i) => {
    const path = join(folder, `many-${i}`);
    writeFileSync(path, `${i}`);
    return RegularFile.open(path);
  });
  assert.ok(openFiles() - before <= 16);
  assert.equal(text(files[0], 9), '0');
  assert.equal(text(files[99], 9), '99');
  await turn();
  assert.equal(openFiles(), before);
});

test('a file is known by its mapping, another one is not', () => {
  const mapping = (readMaps(process.pid) ?? []).find(({ permissions, path }) => {
    return permissions.includes('x') && path.startsWith('/');
  });
  assert.ok(mapping);
  const file = RegularFile.open(mapping.path);
  assert.ok(file.isMappedAs(mapping));
  // As where the device of a file is not that of its mappings: what counts then is how the kernel shows one of our own.
  assert.ok(!file.isMappedAs({ ...mapping, device: 'ff:ff' }));
  assert.ok(!RegularFile.open('/proc/self/status').isMappedAs(mapping));
});
