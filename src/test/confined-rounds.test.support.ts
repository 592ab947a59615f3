// Run by itself, in a place that forbids something: starts a program under trace from inside, has sessions come and go and functions
// switched while it runs, and tells what it has seen as a line of JSON. Arguments: how many rounds, the program and its arguments.
import { attach, run } from '../index.js';
import { changedBytes, pause, textMapsOf } from './targets.test.support.js';

/** What it tells. */
export interface ConfinedRounds {
  /** For each round: the program's and the libraries' mappings while code is changed, and afterwards. */
  readonly during: readonly (readonly string[])[];
  readonly after: readonly (readonly string[])[];
  /** Bytes of the program's own code that differed while it was traced (at least), and afterwards (at most). */
  readonly changed: number;
  readonly left: number;
  /** Sites that were not put back, or memory that stayed, at the end of a session. */
  readonly notClean: number;
  readonly writtenBy: readonly (string | undefined)[];
  readonly helperWrites: number;
  /** Functions that were refused since a handler did not end. */
  readonly refused: number;
  readonly end: unknown;
}

const BUFFER = 1 << 20;
const SWITCHES = 10;
const SIGTERM = 'SIGTERM';

async function rounds(count: number, command: readonly string[]): Promise<ConfinedRounds> {
  const filters = ['handle', 'inner', 'work', 'step'];
  let session = run(command, { inside: true, bufferBytes: BUFFER, filters });
  const { pid } = session;
  const ended = session.waitForTarget();
  const seen = { during: [] as string[][], after: [] as string[][], writtenBy: [] as (string | undefined)[] };
  let [changed, left, notClean, helperWrites, refused] = [Infinity, 0, 0, 0, 0];
  for (let round = 0; round < count; round++) {
    if (round > 0) session = attach(pid, { inside: true, bufferBytes: BUFFER, filters });
    refused += session.refused.length;
    changed = Math.min(changed, changedBytes(pid));
    seen.during.push(textMapsOf(pid));
    for (let i = 0; i < SWITCHES; i++) {
      session.switch(filters, i % 2 === 1);
      await pause(1);
    }
    const { restored, removed, inside } = await session.stop();
    if (!restored || !removed) notClean++;
    left = Math.max(left, changedBytes(pid));
    seen.after.push(textMapsOf(pid));
    seen.writtenBy.push(inside?.written_by);
    helperWrites = inside?.helper_writes ?? NaN;
  }
  process.kill(pid, SIGTERM);
  return { ...seen, changed, left, notClean, helperWrites, refused, end: await ended };
}

const [count, ...command] = process.argv.slice(2);
process.stdout.write(JSON.stringify(await rounds(Number(count), command)));
