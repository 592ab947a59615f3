import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  constants,
  existsSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  createGrowingFile,
  createMemoryFile,
  createOpenFile,
  growMemoryFile,
  sealMemoryFile,
  takeByName,
  takeMemoryFile,
} from './memory-file.js';

const NAME = 'safepoke-test';
const VICTIM = 'what somebody else has written';
const O_PATH = 0o1000_0000;
const self = { pid: process.pid, tid: process.pid, isApart: false };

/** A folder on an ordinary file system and one in memory, where files can be asked for seals as well. */
function inFolders(work: (folder: string) => void): void {
  for (const parent of [tmpdir(), '/dev/shm']) {
    assert.ok(existsSync(parent), `${parent}: mount -t tmpfs tmpfs ${parent}`);
    const folder = mkdtempSync(join(parent, 'safepoke-'));
    try {
      work(folder);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
}

const descriptors = (): number => readdirSync('/proc/self/fd').length;

/** Descriptors that a target may have where it says that there is new memory, and may not be taken for that. */
function* others(folder: string): Generator<[string, number]> {
  const file = join(folder, 'victim');
  writeFileSync(file, VICTIM);
  const fifo = join(folder, 'fifo');
  execFileSync('mkfifo', [fifo]);
  const unlinked = join(folder, 'unlinked');
  yield ['a file', openSync(file, 'r+')];
  yield ['a file, not opened', openSync(file, O_PATH)];
  yield ['a file, read only', openSync(file, 'r')];
  yield ['a pipe', openSync(fifo, constants.O_RDWR | constants.O_NONBLOCK)];
  yield ['a device', openSync('/dev/null', 'r+')];
  yield ['a folder', openSync(folder, 'r')];
  const gone = openSync(unlinked, 'w+');
  rmSync(unlinked);
  yield ['a file without a name', gone];
  const memory = createOpenFile(NAME);
  yield ['memory, read only', openSync(`/proc/self/fd/${memory}`, 'r')];
  yield ['memory, not opened', openSync(`/proc/self/fd/${memory}`, O_PATH)];
  closeSync(memory);
  yield ['memory of another name', createOpenFile('something-else')];
  yield ['memory that is sealed', createMemoryFile(NAME, 0)];
  const used = createOpenFile(NAME);
  ftruncateSync(used, 1);
  yield ['memory that is in use', used];
}

for (const [how, take] of [
  ['by its number', takeMemoryFile],
  ['by its name', takeByName],
] as const) {
  test(`new memory is taken ${how}`, () => {
    const made = createOpenFile(NAME);
    const taken = take(self, made, NAME);
    ftruncateSync(taken, 4096);
    sealMemoryFile(taken, 4096);
    assert.throws(() => {
      ftruncateSync(made, 0);
    }, /EPERM/);
    closeSync(made);
    closeSync(taken);
  });

  test(`whatever else is there is not taken ${how}, nor touched`, () => {
    inFolders((folder) => {
      for (const [what, fd] of others(folder)) {
        const before = descriptors();
        // By its name memory that was opened for reading only can be opened again: it is the owner's own, who can do the same.
        const isOwners = take === takeByName && /memory, (read only|not opened)/.test(what);
        if (!isOwners) assert.throws(() => take(self, fd, NAME), Error, `${what} in ${folder}`);
        assert.equal(descriptors(), before, `${what}: a descriptor is left`);
        closeSync(fd);
      }
      assert.equal(readFileSync(join(folder, 'victim'), 'utf8'), VICTIM);
    });
  });
}

test('a number that is no descriptor is refused', () => {
  for (const number of [-1, -9, 1 << 30, 2 ** 31, 2 ** 32, 2 ** 53, 2 ** 63, Number.NaN])
    assert.throws(() => takeMemoryFile(self, number, NAME), Error, String(number));
});

test('memory of another size than it should have is not sealed for good without notice', () => {
  const made = createOpenFile(NAME);
  ftruncateSync(made, 8192);
  assert.throws(() => {
    sealMemoryFile(made, 4096);
  }, /8192/);
  closeSync(made);
});

test('nobody can cut off memory that grows', () => {
  const made = createGrowingFile(NAME);
  growMemoryFile(made, 8192);
  growMemoryFile(made, 4096);
  assert.throws(() => {
    ftruncateSync(made, 4096);
  }, /EPERM/);
  closeSync(made);
});
