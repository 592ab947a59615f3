// Run by itself, as root: has sessions with one hostile program after another, as a message of its parent says, and tells how each went.
// Starting Node for each of them would take longer than all that a round shows.
import { attach, isSafepokeError, run, type Session, type SessionOptions } from '../index.js';
import { waitAtFaultPoint } from '../linux/index.js';
import { pause } from './targets.test.support.js';

/** One session with one program. */
export interface HostileOrder {
  /** A process to attach to, or a program to run from inside and then to attach to. */
  readonly target: number | readonly string[];
  /** The fault point at which to wait, and how long. */
  readonly point: number;
  readonly waitMs: number;
  readonly output: string;
}

/** How a session went: it was held, or refused. What is thrown and is no refusal ends this process. */
export interface HostileReport {
  /** How often a session has begun. */
  readonly begun: number;
  readonly corrupt: number;
  readonly refused: readonly string[];
  /** The longest that a session took to end once it was told to end in time. */
  readonly endMs: number;
}

/** How long a session goes on. */
const TRACE_MS = 30;
/** Who presses Ctrl-C, then loses patience: the command line's way to end, with less of it. */
const PATIENCE_MS = 100;
const END_PATIENCE_MS = 400;
/** A session that has not begun by then is told to end, as by SIGTERM. */
const BEGIN_MS = 800;
const SIGKILL = 9;

class Told {
  begun = 0;
  corrupt = 0;
  endMs = 0;
  readonly refused: string[] = [];
}

/** A session from its beginning to its end, or its refusal. Returns it. */
async function follow(told: Told, begin: (options: SessionOptions) => Session): Promise<Session | undefined> {
  const endAt = performance.now() + BEGIN_MS;
  let session: Session;
  try {
    session = begin({ isEnding: () => performance.now() > endAt });
  } catch (error) {
    told.endMs = Math.max(told.endMs, performance.now() - endAt);
    note(told, error);
    return undefined;
  }
  told.begun++;
  await pause(TRACE_MS);
  void session.stop().catch(() => undefined);
  let hurriedAt: number | undefined;
  const hurry = setTimeout(() => {
    hurriedAt = performance.now();
    void session.stop(END_PATIENCE_MS).catch(() => undefined);
  }, PATIENCE_MS);
  try {
    told.corrupt += (await session.done).corrupt;
  } catch (error) {
    note(told, error);
  } finally {
    clearTimeout(hurry);
    if (hurriedAt !== undefined) told.endMs = Math.max(told.endMs, performance.now() - hurriedAt);
  }
  return session;
}

function note(told: Told, error: unknown): void {
  if (!isSafepokeError(error)) throw error;
  told.refused.push(error.message);
}

async function obey({ target, point, waitMs, output }: HostileOrder): Promise<HostileReport> {
  const told = new Told();
  waitAtFaultPoint(point, waitMs);
  if (typeof target === 'number') {
    await follow(told, (options) => attach(target, { ...options, output }));
    return told;
  }
  const session = await follow(told, (options) =>
    run(target, { ...options, output, inside: true, followExec: true }),
  );
  if (session === undefined) return told;
  const ended = session.waitForTarget();
  const { pid } = session;
  await follow(told, (options) => attach(pid, { ...options, inside: true }));
  try {
    process.kill(pid, SIGKILL);
  } catch {
    // It has ended.
  }
  await ended;
  return told;
}

process.on('message', (order: HostileOrder) => {
  void obey(order).then((report) => {
    // Files of modules are closed by then.
    setImmediate(() => setImmediate(() => process.send?.(report)));
  });
});
