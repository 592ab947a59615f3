import { ending, isSafepokeError } from '../errors/index.js';
import { CALL_REFUSED, UNCOUNTED_HANDLER, type Following, type ProtocolCounts } from '../inside/index.js';
import { SYS, makeRoom, readMaps, systemCall } from '../linux/index.js';
import {
  NewestWriter,
  RECORD_BYTES,
  RecordingWriter,
  TraceInfo,
  type Call,
  type CallVisitor,
  type RecordingHeader,
  type RecordingMessage,
  type RecordingSink,
} from '../recording/index.js';
import { hastenBeside, type SessionTimes } from '../target/index.js';
import { byName, countName } from '../text/index.js';
import { CallReader, Consumer } from './consumers.js';
import { STAYS_SINCE, type DetachResult, type PatchedTarget } from './patched-target.js';
import { STAYS_OPEN } from './recovery.js';
import { RingDrain } from './ring-drain.js';
import type { RefusedFunction } from './site-plan.js';
import type { SessionEnd, SessionStatus, SessionSummary } from './summary.js';
import { Switches } from './switches.js';
import type { ExitWatch, TargetEnd } from './target-exit.js';
import type { TimeStamp } from './time-stamp.js';

/** Between polls when nothing comes: a ring of the default size takes longer to fill. */
const IDLE_MS = 2;
/** How often the target itself is looked at. */
const TARGET_CHECK_MS = 20;
/** Consumers get this much time between two looks at the rings. */
const SLICE_MS = 4;
/** Records that wait in our memory for consumers, in bytes; beyond it the rings fill, and what they drop is counted. */
const MAX_BACKLOG = 512 << 20;
/**
 * While more than this part of a ring waits, its records are copied and written later, up to the limit in bytes: that empties it
 * faster. Otherwise they are written from where they stand, which costs less in all.
 */
const BUSY_PART = 1 / 2;
const WRITE_BACKLOG = 256 << 20;
/** A time stamp is taken at the start of the recorder and published at its end; a thread may lose the processor between. */
const ORDER_SLACK_MS = 10;
/** So long the last records are taken before those who want to end it get a turn. */
const FINISH_SLICE_MS = 20;
/** Lanes of which it is said that they are corrupt; beyond that they are counted. */
const TOLD_CORRUPT = 8;
/** Each takes some seconds: a quarter of an hour, and the target is watched meanwhile by nobody else. */
const RESTORE_TRIES = 150;
/** How long a debugger that came during the session is waited for at its end. */
const OTHER_TRACER_MS = 5000;
const OTHER_TRACER_PAUSE_MS = 100;
/**
 * How long threads get to leave our code by themselves, some seconds in all: of hundreds that are busy some stand still in it, for
 * want of a processor. Each look holds all of them, so the pauses between looks grow.
 */
const REMOVE_TRIES = 14;
const REMOVE_PAUSE_MS = 25;
const MAX_REMOVE_PAUSE_MS = 400;
/** Errors that may be over at the next try: threads cannot be made to stand still, or a handler would run uncounted. */
const PASSING: readonly (string | undefined)[] = ['WILL_NOT_STOP', UNCOUNTED_HANDLER];
/** Tries to remove our code that may fail with one of them: each may take seconds. */
const REMOVE_PASSING_TRIES = 3;
/** Errors after which our code stays in a target that goes on: those, or its filters forbid. */
const KEPT: readonly (string | undefined)[] = [...PASSING, CALL_REFUSED];
/** The memory of a process goes before it is seen to have ended: a moment as a rule, and as long as it takes to free it and to get a processor. */
const END_TRIES = 40;
const MOST_END_TRIES = 30_000;
const NS_PER_US = 1000;

/** What a session is made of. */
export interface SessionParts {
  readonly pid: number;
  readonly target: PatchedTarget;
  readonly header: RecordingHeader;
  readonly functions: readonly { name: string; demangled?: string; module: string; address: string }[];
  readonly refused: readonly RefusedFunction[];
  readonly times: SessionTimes;
  readonly watch: ExitWatch;
  readonly timeStamp: TimeStamp;
  readonly attachMs: number;
  readonly sink: RecordingSink | undefined;
  /** Bytes of records to keep, the newest; undefined: all. */
  readonly newestBytes: number | undefined;
  /** True once a library has been loaded that is to be traced as well. */
  readonly hasLoaded: () => boolean;
  /** What the protocol has counted; undefined where code is changed from outside. */
  readonly counts: (() => ProtocolCounts | undefined) | undefined;
  /** Into what the process executes, where that is ours to make ready. */
  readonly following: Following | undefined;
  readonly onNote: (line: string) => void;
  /** Called last of all. */
  readonly close: () => void;
}

/**
 * A live trace. It records from the moment it exists; `follow` or an iteration see the calls from then on, in the order of
 * time. `stop` turns the target back into what it was.
 */
export class Session implements AsyncIterable<Call> {
  readonly pid: number;
  readonly info: TraceInfo;
  /** Resolves when the session has ended, however it did; rejects with the error of a consumer or of the recording. */
  readonly done: Promise<SessionSummary>;
  readonly #parts: SessionParts;
  readonly #drain: RingDrain;
  /** Undefined where nothing is recorded, and once writing has failed. */
  #writer: RecordingWriter | NewestWriter | undefined;
  #writeFailure: Error | undefined;
  readonly #consumers: Consumer[] = [];
  readonly #writes: { lane: number; words: Uint32Array }[] = [];
  #writeBytes = 0;
  #switches: Switches | undefined;
  #stopWanted = false;
  /** When it must have ended, whatever the target does. */
  #deadline = Number.POSITIVE_INFINITY;
  #wake: (() => void) | undefined;
  #detached = false;
  #summary: SessionSummary | undefined;
  /** As they were last read: they go with the target. */
  #counts: ProtocolCounts | undefined;

  constructor(parts: SessionParts) {
    this.#parts = parts;
    this.pid = parts.pid;
    this.info = new TraceInfo(parts.header);
    this.#counts = parts.counts?.();
    if (parts.sink !== undefined) {
      const writer = new RecordingWriter(parts.sink, parts.header);
      this.#writer = parts.newestBytes === undefined ? writer : new NewestWriter(writer, parts.newestBytes);
    }
    this.#drain = new RingDrain(
      parts.pid,
      parts.target.agent,
      parts.target.functions.length,
      parts.target.cells,
      parts.target.lanes,
      {
        onThread: (lane, tid, name, stack) => {
          const told = stack === undefined ? {} : { stack: stack.map(hexadecimal) };
          this.#message({ kind: 'thread', lane, tid, name, ...told });
        },
        onRecords: (lane, words, waiting) => {
          this.#records(lane, words, waiting);
        },
        onLost: (lane, records) => {
          this.#flushWrites();
          this.#message({ kind: 'lost', lane, records });
          for (const consumer of this.#consumers) consumer.pushLost(lane, records);
        },
        onThreadEnd: (lane) => {
          this.#flushWrites();
          this.#message({ kind: 'thread-end', lane });
          for (const consumer of this.#consumers) consumer.endLane(lane);
        },
        onCorrupt: (tid, why) => {
          this.#noteCorrupt(tid, why);
        },
      },
    );
    this.#message({ kind: 'functions', first: 0, items: parts.functions });
    this.#readClock();
    if (this.#writeFailure !== undefined) throw this.#writeFailure;
    parts.following?.begin();
    this.done = this.#run();
    // The caller may look at `done` late, or only at what an iteration throws.
    this.done.catch(() => undefined);
  }

  /** Functions that were asked for and are not traced. */
  get refused(): readonly RefusedFunction[] {
    return this.#parts.refused;
  }

  /** What the session did, once it has ended, even if `done` was rejected. */
  get summary(): SessionSummary | undefined {
    return this.#summary;
  }

  /** Resolves when the target has ended, which may be long after the session. */
  async waitForTarget(): Promise<TargetEnd> {
    for (;;) {
      const end = this.#parts.watch.check();
      if (end !== undefined) return end;
      this.#parts.target.agent.mindEnd();
      await new Promise((resolve) => setTimeout(resolve, TARGET_CHECK_MS));
    }
  }

  /**
   * Switches functions on or off: those of the session that one of the patterns matches (globs, `/regular expressions/`,
   * `MODULE!PATTERN`). No thread is held. A call that has begun is recorded to its end. Returns how many match.
   *
   * @throws UsageError for a bad pattern
   */
  switch(patterns: readonly string[], on: boolean): number {
    const { target } = this.#parts;
    if (this.#detached) return 0;
    this.#switches ??= new Switches(target);
    return this.#switches.switch(patterns, on);
  }

  /** What the session is doing. */
  get status(): SessionStatus {
    if (!this.#detached) this.#noteCounts();
    const { pid, target, times, refused } = this.#parts;
    const functions = target.functions.length - target.refused.length;
    const off = this.#switches?.off ?? 0;
    return {
      pid,
      on: functions - off,
      off,
      refused: refused.length,
      records: this.#drain.records,
      dropped: this.#drain.dropped + this.#drain.abandoned + this.#drain.laneless,
      threads: this.#drain.threads,
      ways: target.ways,
      switched: this.#switches?.count ?? 0,
      switch_us: Math.round(this.#switches?.lastUs ?? 0),
      held_us: Math.round(times.held.longestUs),
      lent_us: Math.round(times.lent.longestUs),
      inside: this.#tellCounts(),
    };
  }

  /** Sends the target a signal, as kill(2) does. */
  signal(signal: number): void {
    systemCall(SYS.kill, this.pid, signal);
  }

  /**
   * Shows all calls from now on to a visitor, in the order of time, until the session ends. A visitor that is given before the
   * next turn of the event loop sees every call.
   */
  follow(visitor: CallVisitor): void {
    this.#consumers.push(new Consumer(this.info, visitor));
  }

  /** Ends the session for a reason of the caller's: `done` rejects with it, once the target is what it was. */
  fail(reason: Error): void {
    this.#writeFailure ??= reason;
    this.#wake?.();
  }

  /**
   * Ends the session; the target runs on as it was. Resolves as `done` does. `withinMs`: it is to end within this time, whatever the target
   * does: records that are still in rings then are dropped, and what could not be put back is left to safepoke's thread in the target.
   */
  stop(withinMs = Number.POSITIVE_INFINITY): Promise<SessionSummary> {
    this.#deadline = Math.min(this.#deadline, performance.now() + withinMs);
    if (withinMs < Number.POSITIVE_INFINITY) this.#parts.target.agent.hurry();
    this.#stopWanted = true;
    this.#wake?.();
    return this.done;
  }

  /**
   * Calls in the order in which they end. Leaving the loop ends the session. Calls are made when the loop asks for them: until then
   * their records wait, up to a bound. Beyond it the rings fill, and what they drop is counted.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<Call, void> {
    const reader = new CallReader(this.info);
    this.#consumers.push(reader);
    let isOver = false;
    this.done.then(
      () => {
        isOver = true;
        reader.finish();
      },
      () => {
        isOver = true;
        reader.breakOff();
      },
    );
    const hasEnded = (): boolean => isOver;
    try {
      yield* reader.calls();
      await this.done;
    } finally {
      // Nobody reads on: what comes from now on is counted, and no more.
      this.#consumers.splice(this.#consumers.indexOf(reader), 1);
      if (!hasEnded()) await this.stop();
    }
  }

  async #run(): Promise<SessionSummary> {
    let end: { why: SessionEnd; target: TargetEnd | undefined } = { why: 'stopped', target: undefined };
    let failure: Error | undefined;
    try {
      end = await this.#loop();
    } catch (error) {
      failure = asError(error);
    }
    // A thread that asks is answered before all are called together, and before anything takes long.
    if (!goesOn(end.why) || failure !== undefined) this.#parts.following?.end();
    makeRoom();
    // To the very end: behind hundreds of busy threads a recording's last megabytes take a minute.
    const calm = hastenBeside(this.pid);
    try {
      return await this.#conclude(end, failure);
    } finally {
      calm();
    }
  }

  /** Turns the target back, if it is still there, and closes the recording. */
  async #conclude(
    ended: { why: SessionEnd; target: TargetEnd | undefined },
    cause: Error | undefined,
  ): Promise<SessionSummary> {
    let end = ended;
    let failure = cause;
    let restored = true;
    try {
      if (isOurEnd(end.why)) {
        restored = await this.#detach();
        this.#noteCounts();
      } else await this.#drainAll();
    } catch (error) {
      // The target may have ended, or become another program, under our hands: there is nothing left to restore then.
      const targetEnd = this.#parts.watch.check();
      if (targetEnd === undefined && this.#parts.target.agent.isPresent()) {
        this.#parts.following?.end();
        this.#parts.close();
        throw failure ?? asError(error);
      }
      end = targetEnd === undefined ? await this.#vanished() : { why: endOf(targetEnd), target: targetEnd };
      // What has failed was a look at a program that is no more.
      if (failure !== undefined && isSafepokeError(failure)) failure = undefined;
      await this.#drainAll();
    }
    this.#flushWrites();
    const refusal = end.why === 'exec' ? undefined : this.#parts.following?.refusal;
    if (refusal !== undefined) this.#parts.onNote(`${refusal.message}: it was not followed`);
    if (this.#stopWanted || !goesOn(end.why)) this.#parts.following?.end();
    else this.#parts.following?.leave();
    const summary = this.#makeSummary(end.why, end.target, restored, this.#releaseNewest());
    this.#summary = summary;
    try {
      if (failure === undefined) {
        for (const consumer of this.#consumers) consumer.finish();
        this.#finishRecording(summary);
      }
    } catch (error) {
      failure = asError(error);
    }
    failure ??= this.#writeFailure;
    this.#parts.close();
    if (failure !== undefined) throw failure;
    return summary;
  }

  /** Each of the threads that are there already has its ring given, and its stack found: of a thousand that takes a while. */
  #meetThreads(): void {
    const calm = hastenBeside(this.pid);
    try {
      this.#drain.poll();
    } finally {
      calm();
    }
  }

  async #loop(): Promise<{ why: SessionEnd; target: TargetEnd | undefined }> {
    // Whoever made the session gets the chance to follow it from its first record.
    await nextTurn();
    this.#meetThreads();
    let lastCheck = 0;
    while (!this.#stopWanted) {
      if (this.#writeFailure !== undefined) throw this.#writeFailure;
      this.#parts.following?.serve();
      if (this.#parts.following?.hasSuccessor === true) return { why: 'exec', target: undefined };
      const before = this.#parts.timeStamp.now();
      const hasRoom = this.#backlog() < MAX_BACKLOG;
      const taken = hasRoom ? this.#drain.poll() : 0;
      this.#writeSome(taken);
      const ticksPerMs = 1e6 / this.info.clock.nsPerTick;
      const nowTicks = Number(before - BigInt(this.info.header.startTsc));
      const limit = hasRoom ? nowTicks - ORDER_SLACK_MS * ticksPerMs : Number.POSITIVE_INFINITY;
      const until = performance.now() + SLICE_MS;
      let isBehind = false;
      for (const consumer of this.#consumers) isBehind = consumer.feed(limit, until) || isBehind;
      const now = performance.now();
      if (now - lastCheck > TARGET_CHECK_MS) {
        lastCheck = now;
        const target = this.#parts.watch.check();
        if (target !== undefined) return { why: endOf(target), target };
        this.#parts.target.agent.mindEnd();
        if (!this.#parts.target.agent.isPresent()) return await this.#vanished();
        if (this.#parts.hasLoaded()) return { why: 'loaded', target: undefined };
        this.#giveWay();
      }
      await (taken > 0 || isBehind || this.#writeBytes > 0 ? nextTurn() : this.#sleep(IDLE_MS));
    }
    return { why: 'stopped', target: undefined };
  }

  #giveWay(): void {
    const { target, onNote } = this.#parts;
    target.agent.mindFilters();
    if (target.agent.mindRights()) {
      onNote(
        'the program has given up rights that safepoke’s thread in it still had: the thread has left. Should safepoke be killed, the next session turns the code back',
      );
    }
    const news = target.lookForDebuggers();
    if (news === 'went') onNote('the debugger has gone: functions are traced again');
    else if (news !== undefined) {
      onNote(
        `a debugger (${news.came}) has come: until it goes functions have their own code, and are not traced`,
      );
    }
    const given = target.giveWayToBreakpoints();
    if (given === 0) return;
    onNote(
      `a breakpoint of the kernel (a uprobe: perf probe, bpftrace) has come on ${given} traced functions: they have their own code below it, and are not traced any more`,
    );
  }

  /** The agent's memory is no more: the target ended, or executed another program. */
  async #vanished(): Promise<{ why: SessionEnd; target: TargetEnd | undefined }> {
    for (let tries = 0; tries < MOST_END_TRIES; tries++) {
      const target = this.#parts.watch.check();
      if (target !== undefined) return { why: endOf(target), target };
      // What it has executed has memory of its own.
      if (tries >= END_TRIES && readMaps(this.#parts.pid)?.length !== 0) break;
      if (this.#isLate) break;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    return { why: 'exec', target: undefined };
  }

  async #detach(): Promise<boolean> {
    if (this.#detached) return true;
    this.#detached = true;
    const { target, onNote } = this.#parts;
    const result = await this.#restorePatiently();
    if (result === undefined) {
      target.agent.enable(false);
      await this.#drainAll();
      onNote(
        this.#isLate
          ? 'there was no time to put everything back: safepoke’s thread in the process does that, as far as it can; attach once more later for the rest'
          : 'that tracer does not let go: safepoke’s code stays in the process, and records nothing; attach once more when the tracer is gone, and all is put back',
      );
      return false;
    }
    const { restored, foreign, breakpoints } = result;
    if (foreign > breakpoints) {
      onNote(
        `${foreign - breakpoints} sites were changed by somebody else meanwhile and were left as they are`,
      );
    }
    if (breakpoints > 0) onNote(`on ${breakpoints} sites a breakpoint of somebody else stands, and stays`);
    await this.#drainAll();
    const kept = await this.#removePatiently();
    if (kept !== undefined) onNote(`${kept}; the code stays mapped, unused`);
    else if (!target.isRemoved) {
      onNote(
        `${STAYS_SINCE[target.stay]}: the code stays mapped, unused; it goes when you attach once more later, or with the process`,
      );
    }
    if (target.isRemoved && target.agent.hasOpenText) onNote(STAYS_OPEN);
    return restored;
  }

  get #isLate(): boolean {
    return performance.now() > this.#deadline;
  }

  /** Nobody records any more: empties the rings, with turns for those who want to end it sooner. */
  async #drainAll(): Promise<void> {
    while (!this.#drain.finishSome(performance.now() + FINISH_SLICE_MS) && !this.#isLate) {
      this.#writeSome(0);
      await nextTurn();
    }
    this.#drain.finish();
  }

  #noteCorrupt(tid: number, why: string): void {
    const { corrupt } = this.#drain;
    if (corrupt > TOLD_CORRUPT) return;
    const more = corrupt === TOLD_CORRUPT ? '; further ones are only counted' : '';
    const whose = tid === 0 ? 'an unknown thread' : `thread ${tid}`;
    this.#parts.onNote(`the lane of ${whose} is not read any more: ${why}${more}`);
  }

  /** Returns why nothing can be removed, if that is not for want of time. */
  async #removePatiently(): Promise<string | undefined> {
    const { target } = this.#parts;
    let other: Error | undefined;
    let passing = 0;
    const tryRemove = (): boolean => {
      other = undefined;
      try {
        return ending.by(this.#deadline, () => target.tryRemove());
      } catch (error) {
        // Sites may have been turned back with nobody held: here it is found that a debugger holds the threads.
        if (!isSafepokeError(error)) throw error;
        const passes = PASSING.includes(error.code) && ++passing < REMOVE_PASSING_TRIES;
        if (error.code !== 'ALREADY_TRACED' && !passes) throw error;
        other = error;
        return false;
      }
    };
    try {
      for (
        let tries = 0;
        !tryRemove() && target.stay !== 'still' && tries < REMOVE_TRIES && !this.#isLate;
        tries++
      ) {
        const ms = Math.min(REMOVE_PAUSE_MS * 2 ** tries, MAX_REMOVE_PAUSE_MS);
        await new Promise((resolve) => setTimeout(resolve, ms));
      }
    } catch (error) {
      const isKept = isSafepokeError(error) && KEPT.includes(error.code) && target.agent.isPresent();
      if (!isKept) throw error;
      return error.message;
    }
    return other?.message;
  }

  /**
   * A thread that cannot be stopped now, waiting for a vfork child perhaps, must not make us leave the sites as they are.
   * Undefined: a debugger has come meanwhile and does not let us hold its threads.
   */
  async #restorePatiently(): Promise<DetachResult | undefined> {
    let otherSince: number | undefined;
    for (let tries = 1; ; tries++) {
      try {
        return ending.by(this.#deadline, () => this.#parts.target.restore());
      } catch (error) {
        const code = isSafepokeError(error) ? error.code : undefined;
        if (code === 'ALREADY_TRACED') {
          if (otherSince === undefined) this.#parts.onNote(`${asError(error).message}; waiting for that`);
          otherSince ??= performance.now();
          if (this.#isLate || performance.now() - otherSince > OTHER_TRACER_MS) return undefined;
          await new Promise((resolve) => setTimeout(resolve, OTHER_TRACER_PAUSE_MS));
          continue;
        }
        if (!PASSING.includes(code) || tries >= RESTORE_TRIES) throw error;
        if (this.#isLate) return undefined;
        if (tries === 1) this.#parts.onNote(`${asError(error).message}; trying on`);
        await nextTurn();
      }
    }
  }

  #message(message: RecordingMessage): void {
    this.info.accept(message);
    this.#write((writer) => {
      writer.writeMessage(message);
    });
  }

  /** A recording that cannot be written on ends the session; it must not keep it from putting the target right. */
  #write(write: (writer: RecordingWriter | NewestWriter) => void): void {
    if (this.#writer === undefined) return;
    try {
      write(this.#writer);
    } catch (error) {
      this.#writeFailure = asError(error);
      this.#writer = undefined;
    }
  }

  #readClock(): void {
    const { tsc, ns } = this.#parts.timeStamp.read();
    this.#message({ kind: 'clock', tsc: String(tsc), ns: String(ns) });
  }

  /** The records are the ring's: written at once, or copied. */
  #records(lane: number, words: Uint32Array<ArrayBuffer>, waiting: number): void {
    const copy = this.#consumers.length > 0 ? words.slice() : undefined;
    if (this.#writer !== undefined) {
      const isBusy = waiting > this.#parts.target.agent.geometry.ringBytes * BUSY_PART;
      if (isBusy && this.#writeBytes < WRITE_BACKLOG) {
        this.#writes.push({ lane, words: copy ?? words.slice() });
        this.#writeBytes += words.byteLength;
      } else {
        // What waits came before it.
        this.#flushWrites();
        this.#writeWords(lane, words);
      }
    }
    if (copy !== undefined) for (const consumer of this.#consumers) consumer.push(lane, copy);
  }

  #writeSome(taken: number): void {
    const isBusy = taken * RECORD_BYTES > this.#parts.target.agent.geometry.ringBytes * BUSY_PART;
    if (isBusy && this.#writeBytes < WRITE_BACKLOG) return;
    const until = performance.now() + SLICE_MS;
    while (this.#writes.length > 0 && performance.now() < until) this.#writeOne();
  }

  #flushWrites(): void {
    while (this.#writes.length > 0) this.#writeOne();
  }

  #writeOne(): void {
    const next = this.#writes.shift();
    if (next === undefined) return;
    this.#writeWords(next.lane, next.words);
    this.#writeBytes -= next.words.byteLength;
  }

  #writeWords(lane: number, words: Uint32Array): void {
    this.#write((writer) => {
      writer.writeRecords(lane, [new Uint8Array(words.buffer, words.byteOffset, words.byteLength)]);
    });
  }

  #backlog(): number {
    let bytes = this.#writeBytes;
    for (const consumer of this.#consumers) bytes = Math.max(bytes, consumer.backlog);
    return bytes;
  }

  /** Writes what a flight recorder has kept. Returns how many records it has not. */
  #releaseNewest(): number {
    let notKept = 0;
    this.#write((writer) => {
      if (writer instanceof NewestWriter) notKept = writer.release();
    });
    return notKept;
  }

  #finishRecording(summary: SessionSummary): void {
    this.#readClock();
    this.#message({ kind: 'end', summary: { ...summary } });
  }

  #makeSummary(
    why: SessionEnd,
    target: TargetEnd | undefined,
    restored: boolean,
    notKept: number,
  ): SessionSummary {
    const parts = this.#parts;
    const refused = new Map<string, number>();
    for (const { reason } of parts.refused) countName(refused, reason);
    const calls = new Map<string, number>();
    this.#drain.entries.forEach((count, index) => {
      if (count === 0) return;
      const { name } = this.info.functionAt(index);
      countName(calls, name, count);
    });
    const isGone = !isOurEnd(why);
    return {
      pid: parts.pid,
      patched: parts.target.functions.length - parts.target.refused.length,
      entry_only: parts.target.entryOnly,
      ways: parts.target.ways,
      switched: this.#switches?.count ?? 0,
      refused: byName(refused),
      records: this.#drain.records,
      dropped: this.#drain.dropped + this.#drain.abandoned + this.#drain.laneless,
      laneless: this.#drain.laneless,
      abandoned: this.#drain.abandoned,
      corrupt: this.#drain.corrupt,
      not_kept: notKept,
      threads: this.#drain.threads,
      held_us: Math.round(parts.times.held.longestUs),
      held_total_us: Math.round(parts.times.held.totalUs),
      lent_us: Math.round(parts.times.lent.longestUs),
      attach_ms: Math.round(parts.attachMs * 100) / 100,
      restored,
      removed: isGone || parts.target.isRemoved,
      ended: why,
      exit_status: target?.kind === 'exited' ? target.status : null,
      exit_signal: target?.kind === 'killed' ? target.signal : null,
      inside: this.#tellCounts(),
      calls: byName(calls),
    };
  }

  #noteCounts(): void {
    this.#counts = this.#parts.counts?.() ?? this.#counts;
  }

  #tellCounts(): SessionSummary['inside'] {
    if (this.#counts === undefined) return null;
    const { waits, longestWaitTicks, helperWrites, writtenBy } = this.#counts;
    const ns = longestWaitTicks * this.info.clock.nsPerTick;
    return {
      waits,
      longest_wait_us: Math.round(ns / NS_PER_US),
      helper_writes: helperWrites,
      written_by: writtenBy,
    };
  }

  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(done, ms);
      const wake = (): void => {
        clearTimeout(timer);
        done();
      };
      this.#wake = wake;
      function done(): void {
        resolve();
      }
    });
  }
}

function hexadecimal(address: number): string {
  return `0x${address.toString(16)}`;
}

function asError(error: unknown): Error {
  return error instanceof Error
    ? error
    : new Error('something that is no error was thrown', { cause: error });
}

/** True if the target lives on, and is what it was. */
function isOurEnd(end: SessionEnd): boolean {
  return end === 'stopped' || end === 'loaded';
}

/** True if another session may go on where this one has ended. */
function goesOn(end: SessionEnd): boolean {
  return end === 'exec' || end === 'loaded';
}

function endOf(target: TargetEnd): SessionEnd {
  return target.kind === 'unknown' ? 'gone' : target.kind;
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}
