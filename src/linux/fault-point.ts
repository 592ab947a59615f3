// Where safepoke can be made to die, to see what becomes of a target then.
import { SYS, systemCall } from './system-call.js';

/** Number of the fault point at which to die; the first is 1. Only the tests set it. */
const DIE_AT = 'SAFEPOKE_DIE_AT';
const SIGKILL = 9;

const dieAt = Number(process.env[DIE_AT] ?? Number.POSITIVE_INFINITY);
let passed = 0;

/** True if there is such a number: changes that are else made by one loop of ours are then made one by one. */
export function isFaultWanted(): boolean {
  return Number.isFinite(dieAt);
}

/** Stands between every two changes in a target. */
export function faultPoint(): void {
  if (++passed === dieAt) systemCall(SYS.kill, process.pid, SIGKILL);
}
