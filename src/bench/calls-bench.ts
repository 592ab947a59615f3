// What a call costs: untraced, attached but elsewhere, entry and exit, entry only, after detaching.
import { Attached } from './attached.js';
import { ns, renderTable } from './table.js';
import { TimedTarget, type Round } from './timed-target.js';

/** A round's records, 32 bytes a call, fill an eighth of the default ring: nothing is dropped. */
const CALLS = 500_000;
const ROUNDS = 9;
/** Calls after which a thread has been once round its ring: from then on its memory is there already. */
const LAP_ROUNDS = 9;

/** One run; ns per call. */
export interface CallFigures {
  readonly threads: number;
  readonly before: Round;
  readonly elsewhere: Round;
  /** The first time round the ring, whose pages are new. */
  readonly firstLap: Round;
  readonly traced: Round;
  readonly entryOnly: Round;
  readonly after: Round;
  /** Records dropped in all sessions: others are cheaper, so that figures with drops do not count. */
  readonly dropped: number;
}

export async function benchCalls(program: string, directory: string, threads: number): Promise<CallFigures> {
  const target = new TimedTarget([program, String(threads)]);
  let dropped = 0;
  const attached = async <T>(args: readonly string[], measure: () => Promise<T>): Promise<T> => {
    const session = await Attached.start(target.pid, args, directory);
    const figures = await measure();
    dropped += (await session.stop()).dropped;
    return figures;
  };
  try {
    const rounds = (): Promise<Round> => target.rounds(CALLS, ROUNDS);
    const before = await rounds();
    const elsewhere = await attached(['-F', 'main'], rounds);
    const [firstLap, traced] = await attached(['-F', 'work'], async () => [
      await target.rounds(CALLS, LAP_ROUNDS - 1),
      await rounds(),
    ]);
    const entryOnly = await attached(['-F', 'work', '--entry-only'], async () => {
      await target.rounds(CALLS, 2 * LAP_ROUNDS);
      return rounds();
    });
    const after = await rounds();
    return { threads, before, elsewhere, firstLap, traced, entryOnly, after, dropped };
  } finally {
    await target.end();
  }
}

export function callsTable(runs: readonly CallFigures[]): string {
  const rows = runs.flatMap((run) => {
    const row = (name: string, round: Round): string[] => [
      `${run.threads} thread${run.threads > 1 ? 's' : ''}: ${name}`,
      ns(round.wall),
      ns(round.cpu),
      ns(round.cpu - run.before.cpu),
      (round.cpu / run.before.cpu).toFixed(2),
    ];
    return [
      row('untraced', run.before),
      row('attached, other function', run.elsewhere),
      row('entry and exit', run.traced),
      row('entry and exit, new memory', run.firstLap),
      row('entry only', run.entryOnly),
      row('after detaching', run.after),
    ];
  });
  const dropped = runs.reduce((sum, run) => sum + run.dropped, 0);
  return renderTable(
    `Cost of a call: ns per call, median of ${ROUNDS} rounds of ${CALLS} calls; ${dropped} records dropped`,
    ['', 'wall', 'processor', 'added', 'ratio'],
    rows,
  );
}
