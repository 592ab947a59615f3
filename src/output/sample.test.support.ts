import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SyntheticRecording } from '../recording/synthetic.test.support.js';

/**
 * Two threads: one with nested calls of all lengths, recursion, a loss, an unwound call, a call that is still open at
 * the end; another whose calls fall between.
 */
export function sampleRecording(): SyntheticRecording {
  return new SyntheticRecording()
    .thread(0, 4711, 'server')
    .thread(1, 4712, 'worker; 1')
    .enter(0, 0, 'main')
    .enter(0, 1_000, 'fib')
    .enter(0, 2_000, 'fib')
    .leave(0, 2_500)
    .enter(0, 3_000, 'fib')
    .enter(1, 2_200, 'job')
    .leave(1, 3_434)
    .leave(0, 5_000)
    .leave(0, 6_000)
    .lost(0, 7_000, 12_345)
    .enter(0, 1_000_000, 'std::vector<int>::resize')
    .enter(0, 1_100_000, 'throw_it')
    .unwind(0, 1_200_000)
    .leave(0, 14_000_000)
    .enter(0, 1_500_000_000, 'wait')
    .enter(1, 2_734_000_000, 'job')
    .leave(1, 2_734_000_999);
}

/** Runs with the path of a file that holds those bytes, and removes it. */
export function withFile<T>(bytes: Uint8Array, run: (path: string) => T): T {
  const folder = mkdtempSync(join(tmpdir(), 'safepoke-test-'));
  try {
    const path = join(folder, 'recording');
    writeFileSync(path, bytes);
    return run(path);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
