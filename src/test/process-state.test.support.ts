// What a process is like, to be compared with what it was before somebody traced it.
import assert from 'node:assert/strict';
import { closeSync, openSync, readSync, readdirSync } from 'node:fs';
import { readMaps } from '../linux/index.js';
import { mapsOf, statusField, type Target } from './targets.test.support.js';

/** All that a session might leave behind in a process. */
export interface ProcessState {
  readonly text: Buffer;
  readonly others: Readonly<Record<string, unknown>>;
}

export function stateOf(pid: number): ProcessState {
  const threads = readdirSync(`/proc/${pid}/task`);
  const others = {
    maps: mapsOf(pid),
    files: readdirSync(`/proc/${pid}/fd`),
    masks: threads.map((tid) => `${tid} ${statusField(pid, 'SigBlk', tid)}`),
    handlers: statusField(pid, 'SigCgt'),
  };
  return { text: textOf(pid), others };
}

/** Fails unless the process is what it was; `when`: what a failure is told with. */
export function assertAsBefore(pid: number, before: ProcessState, when: string): void {
  const { text, others } = stateOf(pid);
  // Megabytes would say nothing to anybody.
  assert.ok(text.equals(before.text), `${when}: text`);
  for (const what of Object.keys(others))
    assert.deepEqual(others[what], before.others[what], `${when}: ${what}`);
}

/** A tracer that dies leaves its own code behind, which is none of the program's. */
const OUR_CODE = '/memfd:safepoke';

/** The code of the program and its libraries, as it is in memory. */
export function textOf(pid: number): Buffer {
  const memory = openSync(`/proc/${pid}/mem`, 'r');
  try {
    const parts = (readMaps(pid) ?? [])
      .filter(
        ({ permissions, path }) =>
          /^r[w-]x/.test(permissions) && path.startsWith('/') && !path.startsWith(OUR_CODE),
      )
      .map(({ start, end }) => {
        const bytes = Buffer.alloc(end - start);
        try {
          return bytes.subarray(0, readSync(memory, bytes, 0, bytes.length, start));
        } catch {
          // Text that was just taken away: it was still in the list.
          return Buffer.alloc(0);
        }
      });
    return Buffer.concat(parts);
  } finally {
    closeSync(memory);
  }
}

/** The results of busy.c are right, and go on being so. */
export async function assertWell(target: Target, when: string): Promise<void> {
  target.say('go on');
  assert.equal(await target.line(), 'fine', when);
}
