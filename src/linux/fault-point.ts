// Where safepoke can be made to die, to see what becomes of a target then; to wait, for what a hostile target does meanwhile; or to be told to end.
import { writeSync } from 'node:fs';
import { SYS, systemCall } from './system-call.js';

/** Number of the fault point at which to die; the first is 1. Only the tests set it. */
const DIE_AT = 'SAFEPOKE_DIE_AT';
/** Number of the fault point at which to wait, and how many milliseconds. */
const WAIT_AT = 'SAFEPOKE_WAIT_AT';
const WAIT_MS = 'SAFEPOKE_WAIT_MS';
/** Number of the fault point at which it gets SIGTERM, and says so on standard error. */
const END_AT = 'SAFEPOKE_END_AT';
const STDERR = 2;
const SIGKILL = 9;
const SIGTERM = 15;

const dieAt = Number(process.env[DIE_AT] ?? Number.POSITIVE_INFINITY);
let waitAt = Number(process.env[WAIT_AT] ?? Number.POSITIVE_INFINITY);
let waitMs = Number(process.env[WAIT_MS] ?? 0);
const endAt = Number(process.env[END_AT] ?? Number.POSITIVE_INFINITY);
const cell = new Int32Array(new SharedArrayBuffer(4));
let passed = 0;

/** True if there is such a number: changes that are else made by one loop of ours are then made one by one. */
export function isFaultWanted(): boolean {
  return Number.isFinite(dieAt);
}

/** Counts fault points anew, and waits at the `at`th: for tests that have many sessions in one process. */
export function waitAtFaultPoint(at: number, ms: number): void {
  passed = 0;
  waitAt = at;
  waitMs = ms;
}

/** Stands between every two changes in a target. */
export function faultPoint(): void {
  if (++passed === dieAt) systemCall(SYS.kill, process.pid, SIGKILL);
  if (passed === endAt) {
    writeSync(STDERR, `fault point ${passed}\n`);
    systemCall(SYS.kill, process.pid, SIGTERM);
  }
  if (passed === waitAt) Atomics.wait(cell, 0, 0, waitMs);
}
