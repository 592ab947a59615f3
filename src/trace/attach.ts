// From a process or a program to a session.
import { CannotError, UsageError, ending, isSafepokeError } from '../errors/index.js';
import { InsideProcess, type ProtocolCounts } from '../inside/index.js';
import {
  ProcessLock,
  availableMemory,
  hasEnded,
  lockHolders,
  readAuxiliaryVector,
  readCommandLine,
  readStatus,
  readThreads,
  refillDescriptors,
  reserveDescriptors,
  rightfulHolder,
} from '../linux/index.js';
import type { RecordingHeader, RecordingSink } from '../recording/index.js';
import { demangle, type Pattern } from '../symbols/index.js';
import {
  Hold,
  HoldTimes,
  SessionTimes,
  Loader,
  OutsideMemory,
  SECCOMP_FILTER,
  STILL_LENT,
  findProgram,
  hastenBeside,
  killStopped,
  pause,
  preflight,
  readModules,
  spawnStopped,
  type Module,
  type Preflight,
  type TargetMemory,
} from '../target/index.js';
import {
  DEFAULT_BUFFER_BYTES,
  MAX_BUFFER_BYTES,
  MIN_BUFFER_BYTES,
  RING_MEMORY_PART,
  type TraceOptions,
} from './options.js';
import { patchTarget } from './patch-target.js';
import { STAYS_OPEN, recover, refuseTraced } from './recovery.js';
import {
  ModuleFunctions,
  concernsModule,
  parsePatterns,
  selectFunctions,
  unmatchedPatterns,
} from './selection.js';
import type { PatchedTarget } from './patched-target.js';
import { Session, type SessionParts } from './session.js';
import { SESSION_REFUSALS, planSites, type PlannedFunction, type RefusedFunction } from './site-plan.js';
import { threadPointerSetter } from './thread-pointer-changes.js';
import { ExitWatch } from './target-exit.js';
import { TimeStamp } from './time-stamp.js';

/**
 * Bounds on the number of lanes: each is address space for a ring and its marks, not memory until it is used. A program
 * can start and end a thousand threads before we get the processor once.
 */
const MIN_LANES = 1024;
const MAX_LANES = 4096;
/** How often to wait for a thread that has yet to make a call for a session that was killed, and how long each time. */
const LENT_TRIES = 100;
const LENT_PAUSE_MS = 10;

/** How long whoever may go on without a process's lock waits for it: an honest session has its agent there by then, or has left. */
const LOCK_PATIENCE_MS = 3000;
const LOCK_PAUSE_MS = 20;

/** How long threads get to leave our code where a session ends before it has begun, and the pauses between two looks. */
const UNDO_MS = 1000;
const UNDO_PAUSE_MS = 10;

/** Functions that are described between two looks whether the end is wanted. */
const DESCRIBED_PER_LOOK = 64;

/** Where a recording goes; the caller opens and closes it. */
export interface Recorded {
  readonly sink?: RecordingSink;
}

interface Start {
  readonly pid: number;
  readonly options: TraceOptions & Recorded;
  readonly memory: TargetMemory;
  readonly times: SessionTimes;
  readonly adopted: Hold | undefined;
  readonly inside?: { readonly process: InsideProcess; readonly hasBegun: boolean };
  readonly watch?: ExitWatch;
  readonly isChild: boolean;
  readonly before: Preflight;
  readonly since: number;
  /** Released when the session is over. */
  readonly lock?: ProcessLock;
}

/** Refuses options that make no sense, before anything is done. @throws UsageError */
export function checkOptions(options: TraceOptions): void {
  parsePatterns(options.filters);
  parsePatterns(options.notrace);
  if (options.exits === 'none' && options.depth !== undefined) {
    throw new UsageError('DEPTH_OF_ENTRIES', {
      tried: 'limit the depth of entries',
      why: 'without exits (--exits none) nothing tells how deep a call is',
      next: 'leave out one of --depth and --exits none',
    });
  }
  if (options.exits === 'none' && options.minDurationNs !== undefined) {
    throw new UsageError('TIME_OF_ENTRIES', {
      tried: 'choose entries by their duration',
      why: 'without exits (--exits none) calls have no duration',
      next: 'leave out one of --time-filter and --exits none',
    });
  }
  if (options.inside === true && (options.way === 'held' || options.way === 'page-flip')) {
    throw new UsageError('WAY_INSIDE', {
      tried: `change code by the way ${options.way} from inside`,
      why: 'there it is changed by rendezvous only',
      next: 'leave out one of --inside and --way',
    });
  }
  if (options.inside !== true && options.way === 'rendezvous') {
    throw new UsageError('WAY_OUTSIDE', {
      tried: 'change code by rendezvous from outside',
      why: 'only an object that was loaded with the program can call its threads together',
      next: 'start the program with `safepoke run --inside`, or choose --way held or --way page-flip',
    });
  }
  if (options.depth !== undefined && !(Number.isInteger(options.depth) && options.depth >= 0)) {
    throw new UsageError('BAD_NUMBER', {
      tried: `take ${options.depth} as a depth`,
      why: 'it is not a whole number of at least 0',
      next: 'give a number such as 2',
    });
  }
  const buffer = options.bufferBytes ?? DEFAULT_BUFFER_BYTES;
  if (!(buffer >= MIN_BUFFER_BYTES && buffer <= MAX_BUFFER_BYTES)) {
    throw new UsageError('BAD_SIZE', {
      tried: `make rings of ${buffer} bytes`,
      why: `a ring has from ${MIN_BUFFER_BYTES} to ${MAX_BUFFER_BYTES} bytes`,
      next: 'give a --buffer such as 4M',
    });
  }
}

/**
 * Attaches to a running process.
 *
 * @throws CannotError with the reason; nothing in the process has changed then. UsageError for bad options
 */
export function attachTo(pid: number, options: TraceOptions & Recorded = {}): Session {
  const since = performance.now();
  checkOptions(options);
  return withDescriptors(() => ending.during(options.isEnding, () => attachRunning(pid, options, since)));
}

/** Descriptors are kept as long as a target may have to be put right. First of all: low numbers are of use whatever the limit is lowered to. */
function withDescriptors(begin: () => Session): Session {
  const giveBack = reserveDescriptors();
  try {
    const session = begin();
    session.done.then(giveBack, giveBack);
    return session;
  } catch (error) {
    giveBack();
    throw error;
  }
}

function attachRunning(pid: number, options: TraceOptions & Recorded, since: number): Session {
  if (options.inside === true) return attachInside(pid, options, since);
  const program = programOf(pid);
  const before = preflight(pid);
  const memory = new OutsideMemory(pid);
  const calm = hastenBeside(pid);
  let lock: ProcessLock | undefined;
  try {
    lock = takeLock(pid, memory, options.onNote);
    for (let tries = 1; ; tries++) {
      try {
        return recoverAndStart(pid, options, memory, before, since, lock);
      } catch (error) {
        const isLent = isSafepokeError(error) && error.code === STILL_LENT;
        if (!isLent || tries >= LENT_TRIES) throw error;
        ending.look();
        pause(LENT_PAUSE_MS);
      }
    }
  } catch (error) {
    lock?.release();
    memory.close();
    const why = isSafepokeError(error) ? whyNotThere(pid, program, error) : undefined;
    throw why ?? error;
  } finally {
    calm();
  }
}

/** What the kernel has told the program at its start: each has its own random addresses. */
function programOf(pid: number): string | undefined {
  const told = readAuxiliaryVector(pid);
  return told === undefined ? undefined : [...told].join();
}

/** Whatever could not be done: the program may be there no more. */
function whyNotThere(pid: number, program: string | undefined, cause: Error): CannotError | undefined {
  const tried = `trace process ${pid}`;
  if (hasEnded(pid))
    return new CannotError('GONE', { tried, why: 'it has ended meanwhile', next: 'start it again', cause });
  const now = programOf(pid);
  if (program === undefined || now === undefined || now === program) return undefined;
  return new CannotError('EXECUTED', {
    tried,
    why: 'it has executed another program meanwhile',
    next: 'attach again, or use --follow',
    cause,
  });
}

function recoverAndStart(
  pid: number,
  options: TraceOptions & Recorded,
  memory: TargetMemory,
  before: Preflight,
  since: number,
  lock: ProcessLock,
): Session {
  const times = new SessionTimes();
  const recovery = recover(pid, memory, times.held);
  if (recovery !== undefined) {
    options.onNote?.(
      recovery.tracerPid === 0
        ? 'an earlier safepoke had to leave its code behind: it is gone now'
        : `an earlier safepoke, process ${recovery.tracerPid}, was killed while it traced this process: ${recovery.sites} functions have their code back`,
    );
    if (recovery.leavesTextOpen) options.onNote?.(STAYS_OPEN);
  }
  return start({ pid, options, memory, times, adopted: undefined, isChild: false, before, since, lock });
}

/** Keeps others of us out from here on, as process-lock.ts says. @throws CannotError ALREADY_TRACED */
function takeLock(pid: number, memory: TargetMemory, onNote: TraceOptions['onNote']): ProcessLock {
  const since = performance.now();
  for (;;) {
    const lock = ProcessLock.take(pid);
    if (lock !== undefined) return lock;
    refuseTraced(pid, memory);
    const holders = lockHolders(pid);
    const holder = rightfulHolder(pid, holders);
    if (holder !== undefined) {
      throw new CannotError('ALREADY_TRACED', {
        tried: `trace process ${pid}`,
        why: `another safepoke, process ${holder.pid}, begins to trace it, or is about to leave it`,
        next: 'end that one first, or try again in a moment',
      });
    }
    if (performance.now() - since > LOCK_PATIENCE_MS) {
      const who = holders.map((one) => `process ${one.pid} of user ${one.uid}`).join(', ');
      onNote?.(
        `process ${pid} is traced although ${who === '' ? 'somebody who has ended' : who} has locked it: no session of theirs is in it`,
      );
      return ProcessLock.none();
    }
    ending.look();
    pause(LOCK_PAUSE_MS);
  }
}

/**
 * Starts a program under trace: it is patched before the first instruction of its own. `command` is the program and its
 * arguments; the program is looked for in PATH.
 *
 * @throws CannotError with the reason; the program has not run then. UsageError for bad options
 */
export function runProgram(command: readonly string[], options: TraceOptions & Recorded = {}): Session {
  const since = performance.now();
  checkOptions(options);
  return withDescriptors(() => ending.during(options.isEnding, () => startProgram(command, options, since)));
}

function startProgram(command: readonly string[], options: TraceOptions & Recorded, since: number): Session {
  const path = findProgram(command[0]);
  if (options.inside === true) return runInside(path, command, options, since);
  const { pid } = spawnStopped(path, command, (child) => new OutsideMemory(child));
  let memory: TargetMemory | undefined;
  let lock: ProcessLock | undefined;
  try {
    const times = new SessionTimes();
    // It has not begun: standing still costs it nothing, and is no holding.
    const adopted = Hold.adopt(pid, pid, new HoldTimes());
    memory = new OutsideMemory(pid);
    const before: Preflight = { threads: [pid], seccompFilter: false };
    lock = takeLock(pid, memory, options.onNote);
    const session = start({ pid, options, memory, times, adopted, isChild: true, before, since, lock });
    adopted.release();
    return session;
  } catch (error) {
    lock?.release();
    memory?.close();
    killStopped(pid);
    throw error;
  }
}

/** A program that was run with our object, or what it has become. */
interface Insider {
  readonly process: InsideProcess;
  /** It is our child: whoever learns of its end reaps it. */
  readonly watch: ExitWatch;
}

/** For as long as they may be attached to. */
const insiders = new Map<number, Insider>();

function attachInside(pid: number, options: TraceOptions & Recorded, since: number): Session {
  const insider = insiders.get(pid);
  if (insider === undefined) {
    throw new CannotError('NOT_INSIDE', {
      tried: `trace process ${pid} from inside`,
      why: 'it has no object of this safepoke loaded with it',
      next: 'start it with `safepoke run --inside`, or attach to it without that',
    });
  }
  const { watch } = insider;
  const hasBegun = !insider.process.isOver;
  const process = hasBegun ? insider.process : succeed(pid, insider);
  try {
    return startInside(process, { pid, options, watch, hasBegun, since });
  } finally {
    // Whatever has become of the session, the program must not wait for one.
    if (!hasBegun) process.begin().release();
  }
}

/** @throws CannotError with the reason why what the process executes is not ours; it runs without us then */
function succeed(pid: number, { process, watch }: Insider): InsideProcess {
  const successor = process.succeed(() => {
    if (watch.check() === undefined) return;
    throw new CannotError('NOT_INSIDE', {
      tried: `trace process ${pid} from inside`,
      why: 'it has ended',
      next: 'start it again',
    });
  });
  insiders.set(pid, { process: successor, watch });
  return successor;
}

function preflightInside(pid: number): Preflight {
  const seccompFilter = readStatus(pid)?.get('Seccomp') === SECCOMP_FILTER;
  return { threads: readThreads(pid) ?? [], seccompFilter };
}

/** The same with an object of ours that is loaded with the program, and no ptrace. */
function runInside(
  path: string,
  command: readonly string[],
  options: TraceOptions & Recorded,
  since: number,
): Session {
  forgetEnded();
  const process = InsideProcess.start(path, command);
  const { pid } = process;
  const watch = new ExitWatch(pid, true);
  try {
    const session = startInside(process, { pid, options, watch, hasBegun: false, since });
    process.begin().release();
    insiders.set(pid, { process, watch });
    return session;
  } catch (error) {
    killStopped(pid);
    process.close();
    throw error;
  }
}

interface InsideStart {
  readonly pid: number;
  readonly options: TraceOptions & Recorded;
  readonly watch: ExitWatch;
  readonly hasBegun: boolean;
  readonly since: number;
}

function startInside(process: InsideProcess, { pid, options, watch, hasBegun, since }: InsideStart): Session {
  const { memory } = process;
  const before = preflightInside(pid);
  const inside = { process, hasBegun };
  const times = new SessionTimes();
  return start({
    pid,
    options,
    memory,
    times,
    adopted: undefined,
    inside,
    watch,
    isChild: true,
    before,
    since,
  });
}

/** Each has files open. */
function forgetEnded(): void {
  for (const [pid, { process, watch }] of insiders) {
    if (watch.check() === undefined) continue;
    process.close();
    insiders.delete(pid);
  }
}

function nothingTraceable(refused: readonly RefusedFunction[]): CannotError {
  const reasons = new Map<string, number>();
  for (const { reason } of refused) reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
  const list = [...reasons].map(
    ([reason, n]) => `${n} ${reason} (${SESSION_REFUSALS[reason as keyof typeof SESSION_REFUSALS]})`,
  );
  return new CannotError('NOTHING_TRACEABLE', {
    tried: 'trace any of the functions asked for',
    why: `all ${refused.length} are refused: ${list.join(', ')}`,
    next: 'see `safepoke functions --refused`, and choose others',
  });
}

/** Modules with their functions as messages of a recording tell them. */
function describe(functions: readonly PlannedFunction[]): {
  name: string;
  demangled?: string;
  module: string;
  address: string;
}[] {
  let isHurried = false;
  return functions.map(({ function: f, module }, i) => {
    // The target is changed already: the session begins, and ends in order. Its names are then shown as the file has them.
    if (i % DESCRIBED_PER_LOOK === 0) isHurried ||= ending.isWanted;
    const demangled = isHurried ? f.name : demangle(f.name);
    return {
      name: f.name,
      ...(demangled === f.name ? {} : { demangled }),
      module: module.path,
      address: `0x${(f.addressNumber + Number(module.bias)).toString(16)}`,
    };
  });
}

/** Numbers of lanes to try, most first: threads come and go, and a lane is free again only a while after its thread ended. */
function laneNumbers(threads: number): number[] {
  const wanted = Math.min(MAX_LANES, Math.max(MIN_LANES, threads * 2 + MIN_LANES / 2));
  return [wanted, Math.ceil(wanted / 4), threads + 2].map((n) => Math.max(n, threads + 2));
}

/** Tells when a library has been loaded that a filter names. The list of mappings is read only when the loader's has grown. */
function loadWatch(
  pid: number,
  memory: TargetMemory,
  before: readonly Module[],
  filters: readonly Pattern[],
): () => boolean {
  const loader = Loader.of(memory, before[0]);
  let known = new Set<bigint>();
  const places = new Set(before.map(({ path, bias }) => `${path} ${bias}`));
  return () => {
    const now = loader?.loaded();
    if (now === undefined) return false;
    const isFresh = now.some((address) => !known.has(address));
    known = new Set(now);
    return (
      isFresh &&
      readModules(pid).modules.some(
        (module) =>
          !places.has(`${module.path} ${module.bias}`) &&
          filters.some((pattern) => concernsModule(pattern, module)),
      )
    );
  };
}

function start({
  pid,
  options,
  memory,
  times,
  adopted,
  inside,
  watch: known,
  isChild,
  before,
  since,
  lock,
}: Start): Session {
  const entryOnly = options.exits === 'none';
  ending.look();
  const { modules, unusable } = readModules(pid);
  const onNote = options.onNote ?? (() => undefined);
  for (const { path, why } of unusable) onNote(`${path} cannot be traced: ${why}`);
  if (modules.length === 0) {
    throw new CannotError('NO_FILES', {
      tried: `read the program of process ${pid}`,
      why: unusable.map(({ path, why }) => `${path}: ${why}`).join('; '),
      next: 'start the process again from a file that is there',
    });
  }
  // Its calibration goes on while the functions are looked at.
  const timeStamp = new TimeStamp();
  const functions = new ModuleFunctions();
  const filters = parsePatterns(options.filters);
  const notrace = parsePatterns(options.notrace);
  const selections = selectFunctions(modules, functions, filters, notrace);
  ending.look();
  unmatchedPatterns(modules, functions, [...filters, ...notrace], options.untilLoaded).forEach((line) => {
    onNote(line);
  });
  ending.look();
  const plan = planSites(selections, memory, !entryOnly);
  ending.look();
  if (plan.sites.length === 0) {
    const nothing = nothingTraceable(plan.refused);
    // A program that was to be run runs, as it would without us; the recording says that it has no functions.
    if (!isChild) throw nothing;
    onNote(`nothing of the program is traced: ${nothing.details.why}; ${nothing.details.next}`);
  }
  for (const { module, error } of functions.damaged)
    onNote(`${module.path} cannot be traced: ${error.details.why}`);
  ending.look();
  refillDescriptors();
  const threadPointersBy = threadPointerSetter(modules);
  if (threadPointersBy === 'changes' && before.seccompFilter) {
    throw new CannotError('THREADS', {
      tried: `tell the threads of process ${pid} apart`,
      why: 'its thread pointers change as it runs, and a seccomp filter may mind that each thread is asked for its id',
      next: 'trace it without the filter',
    });
  }
  const tscHz = timeStamp.estimateHz();
  const ringBytes = options.bufferBytes ?? DEFAULT_BUFFER_BYTES;
  let startTsc: bigint | undefined;
  const target = patchTarget({
    pid,
    modules,
    functions: plan.functions,
    sites: plan.sites,
    memory,
    times,
    seccompFilter: before.seccompFilter,
    threadPointersBy,
    readOnlyText: options.readOnlyText ?? false,
    onNote,
    way: options.way,
    adopted,
    inside,
    onEnable: () => {
      startTsc ??= timeStamp.now();
    },
    agent: {
      ringBytes,
      mayAskTid: !before.seccompFilter,
      lanes: laneNumbers(before.threads.length),
      threads: before.threads.length,
      ringMemory:
        options.ringMemoryBytes ?? (availableMemory(pid) ?? Number.MAX_SAFE_INTEGER) * RING_MEMORY_PART,
    },
  });
  const attachMs = performance.now() - since;
  const watch = known ?? new ExitWatch(pid, isChild);
  try {
    // What has not begun need not begin. Of a target that runs the session begins, and ends in order.
    if (isChild) ending.look();
    return new Session(partsOf());
  } catch (error) {
    // Its end was asked for, or its recording cannot be written. The process is to have nothing of this.
    try {
      undo(target);
    } finally {
      target.agent.close();
      watch.close();
    }
    throw error;
  }

  function partsOf(): SessionParts {
    const { largest } = target.agent.budget;
    if (options.bufferBytes !== undefined && largest < target.agent.geometry.ringLimit) {
      onNote(
        `a thread's ring holds at most ${Math.floor(largest / 1024)} KiB of the ${Math.floor(ringBytes / 1024)} KiB asked for, as the target can spare no more: see --ring-memory`,
      );
    }
    const header: RecordingHeader = {
      pid,
      command: readCommandLine(pid) ?? [],
      startTime: new Date().toISOString(),
      mode: entryOnly ? 'entries' : 'calls',
      tscHz,
      startTsc: String(startTsc ?? timeStamp.now()),
      ...(options.minDurationNs === undefined ? {} : { minDurationNs: options.minDurationNs }),
      ...(options.depth === undefined ? {} : { maxDepth: options.depth }),
      filters: [...(options.filters ?? []), ...(options.notrace ?? []).map((text) => `not ${text}`)],
    };
    return {
      pid,
      target,
      header,
      functions: describe(target.functions),
      refused: [...plan.refused, ...target.refused],
      times,
      watch,
      timeStamp,
      attachMs,
      sink: options.sink,
      newestBytes: options.newestBytes,
      hasLoaded:
        options.untilLoaded === true ? loadWatch(pid, memory, modules, filters) : (): boolean => false,
      counts: inside === undefined ? undefined : (): ProtocolCounts | undefined => inside.process.counts(),
      following: options.followExec === true ? inside?.process.following : undefined,
      onNote,
      close: () => {
        target.agent.close();
        watch.close();
        memory.close();
        lock?.release();
      },
    };
  }
}

/** Turns back what was changed a moment ago, as far as that can be done now: what is left, the agent's thread turns back, and a session to come. */
function undo(target: PatchedTarget): void {
  const until = performance.now() + UNDO_MS;
  target.restore();
  while (!target.tryRemove() && target.stay !== 'still' && performance.now() < until && !ending.isOver)
    pause(UNDO_PAUSE_MS);
}
