// A trace that goes on where its target does: in the program that it executes, with the libraries that it loads. Each part is
// a session of its own, for everything it knows of the process is new.
import { UsageError, attach, isSafepokeError, whenLoaded } from '../../index.js';
import type { Session, SessionOptions } from '../../index.js';
import type { Terminal } from '../terminal.js';
import { parseTime } from '../units.js';
import { Deadline, EndedEarly, followOne, type Followed } from './live-session.js';
import type { LiveOptions } from './trace-options.js';

const NS_PER_MS = 1e6;

/**
 * Runs a session to its end and, as `--follow` and `--follow-dlopen` wish, others behind it. Returns the first session, and the
 * summary and the signal of the last.
 */
export async function follow(
  terminal: Terminal,
  options: LiveOptions,
  begin: (options: SessionOptions) => Session,
): Promise<Followed> {
  checkTogether(options);
  const deadline =
    options.duration === undefined ? undefined : new Deadline(parseTime(options.duration) / NS_PER_MS);
  const first = await followOne(terminal, options, begin, deadline);
  const { session } = first;
  let last = first;
  for (let part = 2; goesOn(options, last); part++) {
    // From inside its own thread says what is loaded, and the library is there already.
    if (options.inside !== true && !(await whenLoaded(session.pid))) break;
    const what = last.summary?.ended === 'exec' ? 'executes another program' : 'has loaded a library';
    terminal.note(`safepoke: process ${session.pid} ${what}: the trace goes on`);
    try {
      last = await followOne(
        terminal,
        numbered(options, part),
        (wanted) => attach(session.pid, wanted),
        deadline,
      );
    } catch (error) {
      if (error instanceof EndedEarly) {
        last = { ...last, signal: error.signal };
        break;
      }
      if (!isSafepokeError(error)) throw error;
      terminal.warn(`${error.message}: it is not followed further`);
      break;
    }
  }
  return { ...last, session };
}

function goesOn(options: LiveOptions, { summary, signal }: Followed): boolean {
  if (signal !== undefined) return false;
  return (
    (options.follow === true && summary?.ended === 'exec') ||
    (options.followDlopen === true && summary?.ended === 'loaded')
  );
}

/** The files of a later part have names of their own. */
function numbered(options: LiveOptions, part: number): LiveOptions {
  const { output, summary } = options;
  return {
    ...options,
    ...(output === undefined ? {} : { output: `${output}.${part}` }),
    ...(summary === undefined ? {} : { summary: `${summary}.${part}` }),
  };
}

function checkTogether(options: LiveOptions): void {
  if (options.output !== undefined && options.output === options.summary) {
    throw new UsageError('SAME_FILE', {
      tried: 'write the recording and the summary',
      why: 'both are to go to the same file',
      next: 'give two files',
    });
  }
  if (options.keep === 'newest' && options.output === undefined) {
    throw new UsageError('NOTHING_TO_KEEP', {
      tried: 'keep the newest records',
      why: 'calls that are printed as they come are not kept',
      next: 'give a file with -o',
    });
  }
  if (options.size !== undefined && options.keep !== 'newest') {
    throw new UsageError('SIZE_OF_ALL', {
      tried: `keep ${options.size} of records`,
      why: 'all records are kept unless --keep newest is given',
      next: 'add --keep newest, or leave --size out',
    });
  }
}
