import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { availableMemory } from './available-memory.js';

const MIB = 1 << 20;

/** What availableMemory says of process 7 in a system with these files. */
function available(files: Readonly<Record<string, string>>): number | undefined {
  const root = mkdtempSync(join(tmpdir(), 'safepoke-memory-'));
  try {
    for (const [path, text] of Object.entries(files)) {
      mkdirSync(dirname(join(root, path)), { recursive: true });
      writeFileSync(join(root, path), text);
    }
    return availableMemory(7, root);
  } finally {
    rmSync(root, { recursive: true });
  }
}

const system = { 'proc/meminfo': 'MemTotal: 900 kB\nMemAvailable:   1048576 kB\n' };
const unified = {
  ...system,
  'proc/7/cgroup': '0::/a/b\n',
  'proc/self/mountinfo': '30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n',
};

test('without control groups the system’s memory is what there is', () => {
  assert.equal(available(system), 1024 * MIB);
  assert.equal(available({}), undefined);
});

test('the tightest of all groups above a process counts, what can be reclaimed left out of its use', () => {
  const group = 'sys/fs/cgroup/a';
  const files = {
    ...unified,
    [`${group}/memory.max`]: `${100 * MIB}\n`,
    [`${group}/memory.current`]: `${70 * MIB}\n`,
    [`${group}/memory.stat`]: `anon 5\ninactive_file ${10 * MIB}\n`,
    [`${group}/b/memory.max`]: 'max\n',
    [`${group}/b/memory.current`]: `${60 * MIB}\n`,
  };
  assert.equal(available(files), 40 * MIB);
  const tighter = { ...files, [`${group}/b/memory.max`]: `${64 * MIB}\n` };
  assert.equal(available(tighter), 4 * MIB);
  assert.equal(available({ ...tighter, [`${group}/b/memory.current`]: `${80 * MIB}\n` }), 0);
});

test('groups of the first version are found, also where a container sees a part of the hierarchy only', () => {
  const files = {
    ...system,
    'proc/7/cgroup': '5:cpu,cpuacct:/x\n4:memory:/docker/abc/d\n0::/\n',
    'proc/self/mountinfo':
      '41 30 0:30 /docker/abc /sys/fs/cgroup/memory ro shared:9 - cgroup cgroup rw,memory\n' +
      '42 30 0:31 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n',
    'sys/fs/cgroup/memory/d/memory.limit_in_bytes': '9223372036854771712\n',
    'sys/fs/cgroup/memory/d/memory.usage_in_bytes': '1000\n',
    'sys/fs/cgroup/memory/memory.limit_in_bytes': `${50 * MIB}\n`,
    'sys/fs/cgroup/memory/memory.usage_in_bytes': `${20 * MIB}\n`,
    'sys/fs/cgroup/memory/memory.stat': `total_inactive_file ${5 * MIB}\n`,
  };
  assert.equal(available(files), 35 * MIB);
});

test('groups and mounts may have any name', () => {
  const group = 'a\r0::/elsewhere';
  const files = {
    ...system,
    'proc/7/cgroup': `0::/${group}\n`,
    'proc/self/mountinfo': '30 24 0:26 / /my\\040mount rw,nosuid - cgroup2 cgroup2 rw\n',
    [`my mount/${group}/memory.max`]: `${9 * MIB}\n`,
    [`my mount/${group}/memory.current`]: `${2 * MIB}\n`,
  };
  assert.equal(available(files), 7 * MIB);
});
