// Where safepoke can be made to die, to see what becomes of a target then; or to wait, for what a hostile target does meanwhile.
import { SYS, systemCall } from './system-call.js';

/** Number of the fault point at which to die; the first is 1. Only the tests set it. */
const DIE_AT = 'SAFEPOKE_DIE_AT';
/** Number of the fault point at which to wait, and how many milliseconds. */
const WAIT_AT = 'SAFEPOKE_WAIT_AT';
const WAIT_MS = 'SAFEPOKE_WAIT_MS';
const SIGKILL = 9;

const dieAt = Number(process.env[DIE_AT] ?? Number.POSITIVE_INFINITY);
const waitAt = Number(process.env[WAIT_AT] ?? Number.POSITIVE_INFINITY);
const waitMs = Number(process.env[WAIT_MS] ?? 0);
const cell = new Int32Array(new SharedArrayBuffer(4));
let passed = 0;

/** True if there is such a number: changes that are else made by one loop of ours are then made one by one. */
export function isFaultWanted(): boolean {
  return Number.isFinite(dieAt);
}

/** Stands between every two changes in a target. */
export function faultPoint(): void {
  if (++passed === dieAt) systemCall(SYS.kill, process.pid, SIGKILL);
  if (passed === waitAt) Atomics.wait(cell, 0, 0, waitMs);
}
