// Whoever has changed a target must be able to put it right. That takes files of /proc, and somebody may have lowered the limit on open
// files meanwhile, or used them all up.
import { closeSync, openSync, readdirSync } from 'node:fs';
import { SYS, addressOf, systemCall } from './system-call.js';

const RLIMIT_NOFILE = 7;
/** What is opened at once to put a target right, and to say how it went. */
const SPARE = 8;
const WANTING: ReadonlySet<string | undefined> = new Set(['EMFILE', 'ENFILE']);
/** Somewhere to look at the descriptors that are there, where nothing can be opened: numbers above it are not looked for. */
const MOST_DESCRIPTORS = 4096;

let spares: number[] = [];
let highest = 0;

/** Who may have to put a target right. */
let users = 0;

/** Keeps some descriptors for `makeRoom` until what this returns is called. Without them less can be had then. */
export function reserveDescriptors(): () => void {
  let isUser = true;
  users++;
  refillDescriptors();
  return () => {
    if (isUser && --users === 0) giveBack();
    isUser = false;
  };
}

function giveBack(): void {
  for (const fd of spares) closeSync(fd);
  spares = [];
}

/** Keeps as many as at first, of which some may have been used. */
export function refillDescriptors(): void {
  try {
    while (spares.length < SPARE) spares.push(openSync('/dev/null', 'r'));
  } catch {
    // What there is must do.
  }
  try {
    for (const name of readdirSync('/proc/self/fd')) highest = Math.max(highest, Number(name));
  } catch {
    highest = MOST_DESCRIPTORS;
  }
}

/**
 * Gives the kept descriptors back, and lifts the limit on open files as far as that is permitted and needed: what was changed in a target counts
 * for more than the limit.
 */
export function makeRoom(): void {
  giveBack();
  const limit = new BigUint64Array(2);
  const at = addressOf(new Uint8Array(limit.buffer));
  if (systemCall(SYS.prlimit64, 0, RLIMIT_NOFILE, 0, at) < 0) return;
  const wanted = BigInt(highest + 1 + SPARE);
  const [soft, hard] = limit;
  if (soft >= wanted) return;
  limit[0] = wanted;
  limit[1] = hard > wanted ? hard : wanted;
  if (systemCall(SYS.prlimit64, 0, RLIMIT_NOFILE, at, 0) === 0) return;
  limit[0] = hard;
  limit[1] = hard;
  systemCall(SYS.prlimit64, 0, RLIMIT_NOFILE, at, 0);
}

/** True for an error of which the process that was looked at knows nothing: there are no descriptors, or there is no memory, for us. */
export function isWanting(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  return WANTING.has(code) || code === 'ENOMEM';
}

/** Opens something; with the room that can be made, where there is no descriptor for it. @throws what `open` does */
export function withRoom<T>(open: () => T): T {
  try {
    return open();
  } catch (error) {
    if (!isWanting(error)) throw error;
    makeRoom();
    return open();
  }
}
