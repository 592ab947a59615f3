// The agent in a target: maps its regions, fills them in, takes them away again. Deciding what to trace is not its business.
import { closeSync, fstatSync, writeSync } from 'node:fs';
import { isSafepokeError } from '../errors/index.js';
import {
  ERRNO,
  MADV,
  MAP,
  MFD_ALLOW_SEALING,
  MFD_CLOEXEC,
  PAGE,
  PROT,
  SYS,
  faultPoint,
  hasEnded,
  mapOwn,
  readStartTime,
  readExitStatus,
  readStatus,
  readThreads,
  roundToPage,
  sealFutureWrite,
  errnoName,
  systemCall,
  type OwnMapping,
} from '../linux/index.js';
import {
  expectSuccess,
  mayCall,
  type CallMaker,
  type PlannedCall,
  type RemoteCall,
  type TargetMemory,
} from '../target/index.js';
import {
  AGENT,
  AGENT_MAGIC,
  CONTROL,
  DATA,
  HEADER,
  LANE,
  LANE_STATE,
  MAPPED_MAX,
  NO_THREAD_POINTER,
  SHARED,
  TEXT_RUN,
  entryLimit,
  kernelPointer,
  planGeometry,
  type AgentGeometry,
} from './layout.js';
import { CODE_NAME, RINGS_NAME, SHARED_NAME, encodeJournal, journalBytes, type Journal } from './journal.js';
import { AGENT_THREAD_CALLS, AgentThread, NO_PLACES, agentThreadCode, isAgentLost } from './agent-thread.js';
import {
  OPEN_TEXT_CALLS,
  gapsToShut,
  openParts,
  openPieces,
  openingCalls,
  shutCall,
  shuttingCalls,
  stillReadOnly,
  touchingCalls,
  whyNotToOpen,
  type FileText,
  type OpeningText,
} from './open-text.js';
import { encodeTextTable, type WitnessedText } from './text-table.js';
import { encodeDataHeader, encodeLane, encodeQueue, laneAddress, type DataPlaces } from './lanes.js';
import {
  freePlaces,
  mapAt,
  mapNear,
  noMemory,
  proveMapped,
  sealShared,
  sizeShared,
  takeMade,
  type Mapped,
} from './places.js';
import { RightsWatch, type GivenUp } from './rights.js';
import { RingBudget } from './ring-budget.js';
import {
  THREAD_POINTER_BY_REGISTER,
  THREAD_POINTER_READ_BYTES,
  askingInstead,
  type ThreadPointerSource,
} from './recorder.js';
import {
  SWITCH_BYTES,
  cellOffset,
  cellSwitch,
  emitRegion,
  regionBytes,
  type Cluster,
  type CodeRegion,
} from './stubs.js';

/** include/uapi/linux/falloc.h */
const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
const PUNCH_HOLE = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;

const MFD = MFD_CLOEXEC | MFD_ALLOW_SEALING;

/** System calls that a thread of the target makes for the agent, with arguments of the kind that they will have. */
export const AGENT_CALLS: readonly PlannedCall[] = [
  { name: 'memfd_create', number: SYS.memfd_create, arguments: [0, MFD] },
  {
    name: 'mmap',
    number: SYS.mmap,
    arguments: [
      PAGE,
      PAGE,
      PROT.read | PROT.write,
      MAP.private | MAP.anonymous | MAP.noReserve | MAP.fixed,
      -1,
    ],
  },
  {
    name: 'mmap of shared memory',
    number: SYS.mmap,
    arguments: [0, PAGE, PROT.read | PROT.write, MAP.shared | MAP.noReserve, 3],
  },
  {
    name: 'mmap of code',
    number: SYS.mmap,
    arguments: [PAGE, PAGE, PROT.read | PROT.exec, MAP.private | MAP.anonymous, -1],
  },
  {
    name: 'mmap of shared code',
    number: SYS.mmap,
    arguments: [PAGE, PAGE, PROT.read | PROT.exec, MAP.shared | MAP.fixedNoReplace, 3],
  },
  {
    name: 'mmap of the thread’s code',
    number: SYS.mmap,
    arguments: [PAGE, PAGE, PROT.read | PROT.exec, MAP.private | MAP.anonymous | MAP.fixed, -1],
  },
  { name: 'madvise', number: SYS.madvise, arguments: [PAGE, PAGE, MADV.wipeOnFork] },
  { name: 'madvise', number: SYS.madvise, arguments: [PAGE, PAGE, MADV.dontFork] },
  { name: 'madvise', number: SYS.madvise, arguments: [PAGE, PAGE, MADV.dontDump] },
  { name: 'madvise', number: SYS.madvise, arguments: [PAGE, PAGE, MADV.dontNeed] },
  { name: 'close', number: SYS.close, arguments: [3] },
  { name: 'munmap', number: SYS.munmap, arguments: [PAGE, PAGE] },
  ...AGENT_THREAD_CALLS,
];

/** Stands for the tracer's process id when it has left on purpose. */
const NO_TRACER = 0n;

/** Lanes made ready beyond the number of threads seen: more may have come when all are held. */
const SPARE_LANES = 16;

/** Of runs, and of mappings. */
const TEXT_TABLES = 2;

/** Ranges besides those of the clusters: what is shared, with our own data behind it; in that the agent thread's code. */
const OTHER_RANGES = 2;

/** What a session wants of its agent. */
export interface AgentOptions {
  readonly ringBytes: number;
  readonly mayAskTid: boolean;
  /** How recorders learn on which thread they run. */
  readonly threadPointer: ThreadPointerSource | 'kernel';
  /** What the agent's thread gives up first. */
  readonly givenUp: GivenUp;
  /** It may be confined: no seccomp filter minds. */
  readonly mayConfine: boolean;
  /** Why text is not to be made writable for the time being; undefined: nobody minds. */
  readonly whyTextStays: string | undefined;
  /** Offset of the thread's id from its thread pointer; 0: unknown. */
  readonly tidOffset: number;
  /** The agent gets a thread of its own: not in a process that job control has stopped, where it could not run. */
  readonly withThread: boolean;
  /** Numbers of lanes to try, most first: limits on memory may allow fewer. */
  readonly lanes: readonly number[];
  /** Threads seen. */
  readonly threads: number;
  /** Bytes that all rings together may fill. */
  readonly ringMemory: number;
}

/** An agent's thread that is in the target before a session and stays after it, and its pages, which stay as well. */
export interface ResidentThread {
  readonly thread: AgentThread;
  readonly page: OwnMapping;
  /** Where the pages are in the target. */
  readonly address: number;
}

/** A thread that is known when tracing begins. */
export interface KnownThread {
  readonly threadPointer: bigint;
  /** The id that the C library keeps: the thread's own in its namespace. */
  readonly tid: number;
  readonly tidPointer: number | undefined;
}

/** The agent's presence in one target. */
export class Agent {
  readonly geometry: AgentGeometry;
  readonly control: number;
  readonly data: number;
  readonly regions: CodeRegion[] = [];
  /** Lane headers, shared with the target. */
  readonly headers: OwnMapping;
  /** Who may fill how much of the rings. */
  readonly budget: RingBudget;
  readonly #options: AgentOptions;
  readonly #memory: TargetMemory;
  readonly #shared: number;
  readonly #sharedFile: number;
  readonly #mapped: Mapped[];
  /** Where each cluster's code is, and the memory that it lies in, from which we can write it. */
  readonly #codePlaces: Mapped[] = [];
  #code: OwnMapping | undefined;
  #isFurnished = false;
  #filters: string | undefined;
  #reserved = 0;
  readonly #pid: number;
  /** The process locks memory (mlock). */
  readonly isLocked: boolean;
  readonly #page: OwnMapping;
  readonly #pageAddress: number;
  readonly #resident: ResidentThread | undefined;
  readonly #journalRoom: number;
  readonly #siteCount: number;
  /** Text that we have made writable. */
  #opened: readonly FileText[] = [];
  /** Recorders ask the kernel which thread they run on. */
  #asksKernel = false;
  /** The program has given the agent's thread a filter of system calls meanwhile. */
  #hasNewFilters = false;
  #rights: RightsWatch | undefined;
  #thread: AgentThread | undefined;
  #threadCode = 0;
  /** All lanes as nobody’s. */
  #laneTable = new Uint8Array();

  private constructor(
    pid: number,
    memory: TargetMemory,
    options: AgentOptions,
    geometry: AgentGeometry,
    places: { control: number; data: number; shared: number },
    sharedFile: number,
    mapped: Mapped[],
    isLocked: boolean,
    journalRoom: number,
    siteCount: number,
    resident: ResidentThread | undefined,
  ) {
    this.#pid = pid;
    this.isLocked = isLocked;
    this.#journalRoom = journalRoom;
    this.#siteCount = siteCount;
    this.#memory = memory;
    this.#options = options;
    this.geometry = geometry;
    this.budget = budgetOf(options, geometry);
    this.control = places.control;
    this.data = places.data;
    this.#shared = places.shared;
    this.#sharedFile = sharedFile;
    this.#mapped = mapped;
    const both = PROT.read | PROT.write;
    this.#resident = resident;
    this.#thread = resident?.thread;
    this.#page = resident?.page ?? mapOwn(AGENT.size, both, MAP.shared, sharedFile, SHARED.agent);
    this.#pageAddress = resident?.address ?? places.shared + SHARED.agent;
    this.headers = mapOwn(geometry.rings - SHARED.headers, both, MAP.shared, sharedFile, SHARED.headers);
  }

  /** To be called before a thread is held for `map`: what that will do then takes far less time. */
  static rehearse(): void {
    agentThreadCode();
  }

  /**
   * Maps the agent's memory into a process by calls that a thread of it makes, and starts the agent's own, unless one is there;
   * `furnish` and `emit` do the rest, with nobody held. Where it may have no thread, or memory is locked, the one that makes the calls furnishes it.
   *
   * @throws CannotError NO_MEMORY, NO_MEMORY_NEAR, REMOTE_CALL; nothing is left in the process then
   */
  static map(
    pid: number,
    calls: CallMaker,
    memory: TargetMemory,
    clusters: readonly Cluster[],
    options: AgentOptions,
    resident?: ResidentThread,
  ): Agent {
    const mapped: Mapped[] = [];
    const siteCount = clusters.reduce((sum, cluster) => sum + cluster.sites.length, 0);
    // Control page, data, journal: mapped in one piece. The ranges are this, the rings, and one for each cluster.
    const journalRoom = journalBytes(clusters.length + OTHER_RANGES, siteCount);
    const ownBytes = (geometry: AgentGeometry): number =>
      roundToPage(PAGE + geometry.dataBytes + journalRoom + TEXT_TABLES * siteCount * TEXT_RUN.size);
    let sharedFile = -1;
    let agent: Agent | undefined;
    const name = resident === undefined ? SHARED_NAME : RINGS_NAME;
    const make = (call: RemoteCall, string: (text: string) => bigint): Agent => {
      // After mlockall(MCL_FUTURE) all that is mapped is filled at once: our empty rings would take all memory there is.
      const isLocked = !/^0 kB$/.test(readStatus(pid)?.get('VmLck') ?? '0 kB');
      const map = (address: number, length: number, prot: number, flags: number, fd = -1): number => {
        const result = mapAt(pid, call, isLocked, { address, length, prot, flags, fd, offset: 0 });
        if (result > 0 && address === 0) mapped.push({ address: result, length });
        return result;
      };
      try {
        const fd = expectSuccess(
          call(SYS.memfd_create, string(name), MFD),
          `make memory to share with process ${pid}`,
          'see whether a seccomp filter forbids memfd_create to it',
        );
        let geometry: AgentGeometry | undefined;
        let places: { control: number; data: number; shared: number } | undefined;
        try {
          const file = takeMade(pid, calls.tid, resident !== undefined, fd, name);
          sharedFile = file;
          for (const lanes of options.lanes) {
            geometry = planGeometry(lanes, options.ringBytes);
            if (!budgetOf(options, geometry).isEnough) continue;
            sizeShared(pid, file, geometry.sharedBytes);
            const { sharedBytes } = geometry;
            // One mapping, which has a name; our own pages then take the place of those behind the file's end. Should we
            // die in between, it is found by its name, and all that lies in it is ours.
            const length = sharedBytes + ownBytes(geometry) + PAGE;
            const flags = MAP.shared | MAP.noReserve;
            const shared = map(0, length, PROT.read | PROT.write, flags, fd);
            if (shared === -ERRNO.ENOMEM) continue;
            const next = 'see whether a limit or a filter forbids mmap to it';
            expectSuccess(shared, `map memory into process ${pid}`, next);
            writeMapped(file, resident, mapped);
            const anonymous = MAP.private | MAP.anonymous | MAP.noReserve | MAP.fixed;
            const at = shared + sharedBytes;
            const own = map(at, ownBytes(geometry), PROT.read | PROT.write, anonymous);
            if (own === -ERRNO.ENOMEM) {
              call(SYS.munmap, shared, length);
              mapped.pop();
              continue;
            }
            expectSuccess(own, `map memory into process ${pid}`, next);
            sealShared(pid, file, sharedBytes);
            proveMapped(pid, { address: shared, length: sharedBytes }, 'rw-s', file);
            proveMapped(pid, { address: own, length: ownBytes(geometry) }, 'rw-p');
            places = { control: own, data: own + PAGE, shared };
            // Before the agent's thread is there: a child may give up rights, and must not tell its parent's thread what to do.
            if (resident === undefined) keepFromChildren(pid, call, shared, AGENT.size);
            break;
          }
        } finally {
          call(SYS.close, fd);
        }
        if (places === undefined || geometry === undefined) {
          throw noMemory(pid, options.ringMemory);
        }
        agent = new Agent(
          pid,
          memory,
          options,
          geometry,
          places,
          sharedFile,
          mapped,
          isLocked,
          journalRoom,
          siteCount,
          resident,
        );
        // From here on `isPresent` says so: what fails later is to be taken away.
        memory.writeWord(agent.data + DATA.magic, AGENT_MAGIC);
        if (options.withThread && resident === undefined)
          agent.#startThread(call, map, places.control + ownBytes(geometry));
        // Its thread has given up the right to map more where the program's limit on locked memory is reached.
        if (agent.#thread === undefined || (isLocked && resident === undefined))
          agent.furnish(clusters, call, calls.tid);
        return agent;
      } catch (error) {
        // Its thread must not lose the code that it executes.
        if (agent?.dismissThread() !== false)
          for (const { address, length } of mapped) call(SYS.munmap, address, length);
        throw error;
      }
    };
    try {
      return calls.run(make);
    } catch (error) {
      // The process may have ended, when its thread was given back at the latest: nothing of it is kept here.
      if (agent !== undefined) agent.close();
      else if (sharedFile >= 0) closeSync(sharedFile);
      throw error;
    }
  }

  /** Starts the agent's thread, if the process may have one more. */
  #startThread(
    call: RemoteCall,
    map: (address: number, length: number, prot: number, flags: number) => number,
    at: number,
  ): void {
    const code = map(at, PAGE, PROT.read | PROT.exec, MAP.private | MAP.anonymous | MAP.fixed);
    if (code < 0) return;
    proveMapped(this.#pid, { address: code, length: PAGE }, 'r-xp');
    this.#threadCode = code;
    const places = { page: this.#shared + SHARED.agent, code };
    this.#memory.write(code, agentThreadCode());
    this.#thread = AgentThread.start(this.#pid, call, this.#page, places, this.#options.givenUp);
  }

  /**
   * Maps code within reach of each cluster, and prepares the process for forks and dumps. By the agent's own thread, as a rule.
   *
   * @throws CannotError NO_MEMORY, NO_MEMORY_NEAR, REMOTE_CALL; `remove` takes away what there is then
   */
  furnish(
    clusters: readonly Cluster[],
    call: RemoteCall | undefined = this.#thread?.call,
    tid = this.#thread?.tid ?? this.#pid,
  ): void {
    if (this.#isFurnished || call === undefined) return;
    this.#isFurnished = true;
    this.#thread?.prefer();
    const { rings, sharedBytes } = this.geometry;
    // A dump of the target's memory is not to go through all of the empty rings; where it may not be said, it does.
    call(SYS.madvise, this.#shared, sharedBytes, MADV.dontDump);
    const wiped = call(SYS.madvise, this.control, PAGE, MADV.wipeOnFork);
    // It splits a mapping. Where no more are allowed madvise says EAGAIN.
    if ([ERRNO.ENOMEM, ERRNO.EAGAIN].includes(-wiped)) throw noMemory(this.#pid);
    expectSuccess(wiped, `prepare process ${this.#pid} for fork`, 'use Linux 4.14 or later');
    this.#mapCode(clusters, call, tid);
    this.#thread?.setMemory({
      control: this.control,
      rings: this.#shared + rings,
      ringBytes: sharedBytes - rings,
    });
    this.#filters = this.#threadFilters();
    if (this.#thread !== undefined) this.#rights = new RightsWatch(this.#pid, this.#thread.tid);
    if (this.#options.mayConfine) this.#thread?.confine(this.#pageAddress, this.#resident !== undefined);
  }

  #mapCode(clusters: readonly Cluster[], call: RemoteCall, tid: number): void {
    // A program of which nothing can be traced runs all the same.
    if (clusters.length === 0) return;
    const pid = this.#pid;
    const name = this.#pageAddress + AGENT.codeName;
    new Uint8Array(this.#page.bytes, AGENT.codeName, CODE_NAME.length).set(
      new TextEncoder().encode(CODE_NAME),
    );
    const fd = expectSuccess(
      call(SYS.memfd_create, name, MFD),
      `make memory for code in process ${pid}`,
      'see whether a seccomp filter forbids memfd_create to it',
    );
    let file: number | undefined;
    try {
      // The agent's thread has a table of descriptors of its own.
      const isApart = this.#resident !== undefined || tid === this.#thread?.tid;
      file = takeMade(pid, tid, isApart, fd, CODE_NAME);
      const bytes = clusters.reduce((sum, { sites }) => sum + regionBytes(sites), 0);
      sizeShared(pid, file, bytes);
      this.#code = mapOwn(bytes, PROT.read | PROT.write, MAP.shared, file);
      // We have the only mapping that can be written. A child could else make its own writable, and so the code that its parent executes.
      sealFutureWrite(file);
      sealShared(pid, file, bytes);
      let offset = 0;
      for (const cluster of clusters) {
        const place = mapNear(pid, cluster, (address, length) => {
          const flags = MAP.shared | MAP.fixedNoReplace;
          const wanted = { address, length, prot: PROT.read | PROT.exec, flags, fd, offset };
          return mapAt(pid, call, this.isLocked, wanted);
        });
        proveMapped(pid, place, 'r-xs', file, offset);
        this.#codePlaces.push(place);
        // It has a name: should we die before it is noted, it is found by that.
        this.#mapped.push(place);
        writeMapped(this.#sharedFile, this.#resident, this.#mapped);
        offset += place.length;
      }
    } finally {
      if (file !== undefined) closeSync(file);
      call(SYS.close, fd);
    }
  }

  /** The agent's own thread in the target; undefined where it may have none. */
  get thread(): AgentThread | undefined {
    return this.#thread;
  }

  /** Has the agent's thread reserve address space. Undefined: there is none to be had. `remove` frees it, and recovery, until it is forgotten. */
  reserve(length: number): number | undefined {
    const thread = this.#thread;
    if (thread === undefined) return undefined;
    const address = freePlaces(this.#pid, length).at(-1);
    if (address === undefined) return undefined;
    // Noted first: should we die in between, nobody else would know whose it is.
    this.#mapped.push({ address, length });
    writeMapped(this.#sharedFile, this.#resident, this.#mapped);
    this.#reserved = address;
    const flags = MAP.private | MAP.anonymous | MAP.noReserve | MAP.fixedNoReplace;
    if (thread.call(SYS.mmap, address, length, PROT.none, flags, -1, 0) === address) return address;
    this.forgetReserved();
    return undefined;
  }

  /** Says that what was reserved last is not to be freed as a whole any more. */
  forgetReserved(): void {
    const index = this.#mapped.findIndex(({ address }) => address === this.#reserved);
    if (index < 0) return;
    this.#mapped.splice(index, 1);
    writeMapped(this.#sharedFile, this.#resident, this.#mapped);
  }

  /** Tells the agent's thread which runs of text hold sites, for it to turn back. */
  writeTextRuns(runs: readonly WitnessedText[]): void {
    const takeBack = this.#thread?.clearTextRuns();
    const address = this.#textTables;
    try {
      this.#memory.write(address, encodeTextTable(runs));
    } catch (error) {
      takeBack?.();
      throw error;
    }
    this.#thread?.setTextRuns(address, runs.length);
  }

  get #textTables(): number {
    return this.data + this.geometry.dataBytes + this.#journalRoom;
  }

  /** Why text is not to be made writable; undefined: it may be. */
  get whyTextStays(): string | undefined {
    if (this.#thread === undefined) return 'safepoke can have no thread in it that would keep probes away';
    // The kernel would make a copy of each page at once.
    if (this.isLocked) return 'its memory is locked, and would be copied if it were writable';
    return this.#options.whyTextStays ?? whyNotToOpen(this.#pid);
  }

  /**
   * Makes mappings of text writable, so that the kernel puts no probes where our jumps stand (open-text.ts). The journal has them already.
   * Returns why some are not, if that is so.
   */
  openText(wanted: readonly OpeningText[]): string | undefined {
    const thread = this.#thread;
    // A library may have been unloaded since they were chosen, and something else have taken its place.
    const texts = stillReadOnly(this.#pid, wanted);
    if (thread === undefined || texts.length === 0) return undefined;
    const table = this.#textTables + this.#siteCount * TEXT_RUN.size;
    // Where not all sites can be turned back by its thread, it is left to a session to shut.
    const turned = texts.flatMap(({ start, length, witnesses }) =>
      witnesses === undefined ? [] : [{ start, length, witnesses }],
    );
    this.#memory.write(table, encodeTextTable(turned));
    thread.setOpenedText(table, turned.length);
    this.#opened = texts;
    const failed = thread.calls(openingCalls(texts)).find((result) => result < 0);
    const gaps = gapsToShut(this.#pid, texts);
    if (gaps.length > 0) thread.calls(touchingCalls(texts));
    const shut = thread.calls(gaps.map(shutCall));
    // A program that makes others of its pages writable is to keep them so.
    this.#opened = openPieces(
      texts,
      gaps.filter((_, i) => shut[i] === 0),
    );
    return failed === undefined
      ? undefined
      : `the kernel lets nobody make its text writable (${errnoName(-failed)})`;
  }

  /** Should we die, or its thread be dismissed, text stays writable until a session comes: not all sites will have been turned back. */
  leaveTextOpen(): void {
    this.#thread?.setOpenedText(0, 0);
  }

  /** Text is writable that should not be any more. */
  get hasOpenText(): boolean {
    return openParts(this.#pid, this.#opened).length > 0;
  }

  /** Makes text read-only again, by the agent's thread, if that can do it now. Whoever dismisses it, or takes the agent away, tries again. */
  shutText(): void {
    this.mindFilters();
    if (this.#opened.length === 0 || this.#hasNewFilters || !this.#mayRun()) return;
    try {
      this.#thread?.calls(shuttingCalls(this.#pid, this.#opened));
    } catch (error) {
      if (isAgentLost(error)) return;
      throw error;
    }
    this.#seeShut();
  }

  /** The same by whoever makes calls, unless a filter minds. */
  #shutTextBy(calls: CallMaker): void {
    if (!this.hasOpenText || !mayCall(this.#pid, calls.tid, OPEN_TEXT_CALLS)) return;
    calls.run((call) => {
      for (const [number, ...args] of shuttingCalls(this.#pid, this.#opened)) call(number, ...args);
    });
    this.#seeShut();
  }

  #seeShut(): void {
    if (this.hasOpenText) return;
    this.#opened = [];
    this.#thread?.setOpenedText(0, 0);
  }

  /** Writes lanes and code: everything but the sites. @throws CannotError where an instruction cannot be relocated */
  emit(clusters: readonly Cluster[]): void {
    this.#fillData();
    let firstCell = 0;
    let offset = 0;
    clusters.forEach((cluster, i) => {
      const place = this.#codePlaces[i];
      const region = emitRegion(
        BigInt(place.address),
        place.length,
        cluster.sites,
        firstCell,
        { control: BigInt(this.control), data: BigInt(this.data) },
        this.geometry,
      );
      // What lies behind, a bound too generous, is never executed.
      faultPoint();
      this.#codeBytes(offset, region.used).set(region.bytes.subarray(0, region.used));
      this.regions.push(region);
      firstCell += region.cells.length;
      offset += place.length;
    });
    if (this.#options.threadPointer === 'kernel') this.askKernel();
    if (this.#options.threadPointer === 'register') this.distrustThreadPointers();
  }

  /** Makes recorders do without the word at the thread pointer: some thread has none. Before any site is changed. */
  distrustThreadPointers(): void {
    if (this.#asksKernel) return;
    this.#patchRecorders(({ threadPointerReads }, put) => {
      for (const offset of threadPointerReads) put(offset, THREAD_POINTER_BY_REGISTER);
    });
  }

  /**
   * Makes recorders ask the kernel which thread they run on: the program has no thread pointers, or changes them as it runs. It takes some
   * ten times longer. Before any site is changed, and before threads get lanes.
   */
  askKernel(): void {
    this.#asksKernel = true;
    this.#memory.writeWord(this.data + DATA.tidOffset, 0n);
    this.#patchRecorders(({ threadPointerReads, findRead, askThread }, put) => {
      const { fast, find } = THREAD_POINTER_READ_BYTES;
      for (const offset of threadPointerReads) put(offset, askingInstead(askThread - offset, fast));
      put(findRead, askingInstead(askThread - findRead, find));
    });
  }

  #patchRecorders(
    patch: (region: CodeRegion, put: (offset: number, bytes: Uint8Array) => void) => void,
  ): void {
    let start = 0;
    for (const region of this.regions) {
      patch(region, (offset, bytes) => {
        this.#codeBytes(start + offset, bytes.length).set(bytes);
      });
      start += region.bytes.length;
    }
  }

  /** What each cell of all regions records, as `CodeRegion.cells` has it, in the order of their numbers. */
  get cells(): Uint32Array {
    const all = new Uint32Array(this.regions.reduce((sum, { cells }) => sum + cells.length, 0));
    for (const { firstCell, cells } of this.regions) all.set(cells, firstCell);
    return all;
  }

  /** Number of the cell at which calls of a site begin, by its index over all clusters; undefined: it records ends alone. */
  entryCell(index: number): number | undefined {
    const place = this.#placeOf(index);
    const cell = place?.region.entryCells.get(index - place.first);
    return place === undefined || cell === undefined ? undefined : place.region.firstCell + cell;
  }

  /** Has these sites record beginnings of calls, or not, from now on: one store each, with threads running. Indices over all clusters. */
  switchEntries(indices: Iterable<number>, on: boolean): void {
    if (this.#code === undefined) throw new Error('code is switched before there is any');
    const words = new BigUint64Array(this.#code.bytes);
    for (const index of indices) {
      const place = this.#placeOf(index);
      const cell = place?.region.entryCells.get(index - place.first);
      if (place === undefined || cell === undefined) continue;
      const at = place.offset + cellOffset(cell);
      faultPoint();
      Atomics.store(words, at / SWITCH_BYTES, cellSwitch(place.region, cell, on));
    }
  }

  #placeOf(index: number): { first: number; offset: number; region: CodeRegion } | undefined {
    let first = 0;
    let offset = 0;
    for (const region of this.regions) {
      if (index < first + region.stubs.length) return { first, offset, region };
      first += region.stubs.length;
      offset += region.bytes.length;
    }
    return undefined;
  }

  /** The memory of code as we see it. */
  #codeBytes(offset: number, length: number): Uint8Array {
    if (this.#code === undefined) throw new Error('code is written before there is room for it');
    return new Uint8Array(this.#code.bytes, offset, length);
  }

  /** Offset of a thread's id from its thread pointer; 0: not known. */
  get tidOffset(): number {
    return this.#asksKernel ? 0 : this.#options.tidOffset;
  }

  /** The ring of a lane, mapped into safepoke itself. */
  mapRing(lane: number): OwnMapping {
    const { ringBytes, rings } = this.geometry;
    return mapOwn(ringBytes, PROT.read | PROT.write, MAP.shared, this.#sharedFile, rings + lane * ringBytes);
  }

  /** Gives the memory of a part of a ring back; it reads as zeros then. The part has been consumed. Page aligned. */
  releaseRing(lane: number, offset: number, length: number): void {
    const start = this.geometry.rings + lane * this.geometry.ringBytes + offset;
    systemCall(SYS.fallocate, this.#sharedFile, PUNCH_HOLE, start, length);
  }

  /** Says whether records are wanted. */
  enable(wanted: boolean): void {
    this.#memory.writeWord(this.control + CONTROL.enabled, wanted ? 1n : 0n);
  }

  /** False once the target has executed another program or ended: the agent went with its memory. */
  isPresent(): boolean {
    // A filter of the program's may keep its thread from reading anything.
    if (this.#resident !== undefined) return this.#resident.thread.isPresent;
    return this.#memory.readWord(this.data + DATA.magic) === AGENT_MAGIC;
  }

  /** True if the address lies in code of ours. */
  ownsCode(address: bigint): boolean {
    return this.regions.some((r) => address >= r.address && address < r.address + BigInt(r.bytes.length));
  }

  /** Gives lanes to threads that exist already. All threads are held. Returns the lane of each. */
  assignLanes(threads: readonly KnownThread[]): number[] {
    const count = Math.min(threads.length, this.geometry.lanes - 1);
    const table = this.#laneTable.slice(LANE.size, (count + 1) * LANE.size);
    const view = new DataView(table.buffer);
    const assigned: number[] = [];
    threads.slice(0, count).forEach((thread, i) => {
      const lane = i + 1;
      const at = i * LANE.size;
      const threadPointer = this.#asksKernel ? kernelPointer(thread.tid) : thread.threadPointer;
      view.setBigUint64(at + LANE.threadPointer, threadPointer, true);
      view.setUint32(at + LANE.tid, thread.tid, true);
      if (thread.tidPointer !== undefined) {
        view.setBigUint64(at + LANE.tidPointer, BigInt(thread.tidPointer), true);
      }
      const header = new DataView(this.headers.bytes, lane * HEADER.size, HEADER.size);
      header.setUint32(HEADER.tid, thread.tid, true);
      header.setBigUint64(HEADER.threadPointer, thread.threadPointer, true);
      header.setUint32(HEADER.state, LANE_STATE.live, true);
      assigned.push(lane);
    });
    this.#memory.write(this.#laneAddress(1), table);
    this.#memory.writeWord(this.data + DATA.queuePop, BigInt(count));
    return assigned;
  }

  /** Lets a lane that has a thread hold more, of what there is. */
  grantRing(lane: number): void {
    const limit = this.budget.grant(lane);
    if (limit === this.budget.initial(lane)) return;
    this.#memory.writeWord(this.#laneAddress(lane) + LANE.ringLimit, BigInt(limit));
    this.#memory.writeWord(this.#laneAddress(lane) + LANE.entryLimit, BigInt(entryLimit(limit)));
  }

  /** Takes a lane whose thread has ended out of use: it may serve another thread. */
  recycleLane(lane: number): void {
    const address = this.#laneAddress(lane);
    this.#memory.writeWord(address + LANE.threadPointer, NO_THREAD_POINTER);
    this.#memory.write(address, this.#laneBytes(lane));
    const header = new DataView(this.headers.bytes, lane * HEADER.size, HEADER.size);
    header.setBigUint64(HEADER.dropped, 0n, true);
    header.setUint32(HEADER.tid, 0, true);
    header.setUint32(HEADER.state, LANE_STATE.free, true);
    const pushAddress = this.data + DATA.queuePush;
    const push = Number(this.#memory.readWord(pushAddress) ?? 0n);
    const slot = new Uint8Array(4);
    new DataView(slot.buffer).setUint32(0, lane * LANE.size, true);
    this.#memory.write(this.data + this.geometry.queue + (push & this.geometry.queueMask) * 4, slot);
    this.#memory.writeWord(pushAddress, BigInt(push + 1));
  }

  /** Its thread is not held by a debugger, nor by job control. */
  #mayRun(): boolean {
    if (this.#thread === undefined) return false;
    const status = readStatus(this.#pid, this.#thread.tid);
    return status?.get('TracerPid') === '0' && !/^[tT]/.test(status.get('State') ?? '');
  }

  /** To be called again and again: a seccomp filter that the program has given all of its threads meanwhile may not like all that it does should we die. */
  mindFilters(): void {
    if (this.#hasNewFilters || this.#threadFilters() === this.#filters) return;
    this.#hasNewFilters = true;
    this.leaveTextOpen();
  }

  /**
   * To be called again and again: if the program has given up what its agent's thread still may do (a filter of one thread's, other
   * namespaces, capabilities where the thread had to keep them), the thread leaves. True if it has just done so. Should we be
   * killed then, a session to come turns the sites back. From inside it cannot leave, as all is done by it.
   */
  mindRights(): boolean {
    const thread = this.#thread;
    if (thread === undefined || this.#rights === undefined || this.#resident !== undefined) return false;
    if (!this.#rights.hasMore() || !this.#mayRun()) return false;
    try {
      thread.leave();
    } catch (error) {
      // It cannot just now; at the next look perhaps.
      if (isAgentLost(error)) return false;
      throw error;
    }
    this.#thread = undefined;
    return true;
  }

  /**
   * To be called again and again: a process ends with its last thread, and that is ours where the program's own have ended one by one (by
   * `exit`, not `exit_group`). Its thread leaves then, also from inside, so that the process ends as it would alone.
   */
  mindEnd(): void {
    const thread = this.#thread;
    if (thread === undefined) return;
    // Who is alive may have made another that the first list lacks; by the second nobody is left who could.
    for (let looks = 0; looks < 2; looks++) if (!isLastThread(this.#pid, thread.tid)) return;
    try {
      thread.leaveLast(readExitStatus(this.#pid) ?? 0);
    } catch (error) {
      if (!isAgentLost(error)) throw error;
    }
  }

  /** Says whether two looks found the same filters on the agent's thread. */
  #threadFilters(): string | undefined {
    if (this.#thread === undefined) return undefined;
    const status = readStatus(this.#pid, this.#thread.tid);
    return status === undefined ? this.#filters : `${status.get('Seccomp')} ${status.get('Seccomp_filters')}`;
  }

  /**
   * Writes down what is about to be changed, for a session to come should this one be killed: ascending addresses, and the five
   * bytes of each. Before any site is changed; which of them will be changed need not be known yet.
   */
  writeJournal(addresses: Float64Array, originals: Uint8Array, texts: readonly FileText[]): void {
    // The agent's thread is done for when it is out of its code.
    const code = new Set(this.#codePlaces.map(({ address }) => address));
    const threadCode = { address: this.#threadCode, length: PAGE, isCode: true };
    const journal: Omit<Journal, 'sites'> = {
      control: this.control,
      texts,
      ranges: [
        ...this.#mapped.map(({ address, length }) => ({ address, length, isCode: code.has(address) })),
        ...(this.#threadCode === 0 ? [] : [threadCode]),
      ],
    };
    const address = this.data + this.geometry.dataBytes;
    this.#memory.write(address, encodeJournal(journal, addresses, originals));
    this.#memory.writeWord(this.data + DATA.journal, BigInt(address));
    new BigUint64Array(this.#page.bytes)[AGENT.journal / 8] = BigInt(address);
  }

  /** Whoever waits for us has little time: its thread answers soon, or is given up. */
  hurry(): void {
    this.#thread?.hurry();
  }

  /** Ends the agent's thread. False if it stands still, so that its code and its page must stay. */
  dismissThread(): boolean {
    this.shutText();
    if (this.#resident !== undefined) {
      // It stays, and has nothing to turn back any more.
      this.#resident.thread.clearTextRuns();
      this.leaveTextOpen();
      this.#resident.thread.setMemory(NO_PLACES);
      return true;
    }
    try {
      this.mindEnd();
      this.#thread?.leave();
      return true;
    } catch (error) {
      if (isAgentLost(error)) return false;
      throw error;
    }
  }

  /** Says that the session is over though the agent stays: its thread turns back what it can, and a session to come does the rest. */
  abandon(): void {
    if (this.#resident !== undefined) return;
    new BigUint64Array(this.#page.bytes)[AGENT.tracerPid / 8] = NO_TRACER;
    this.#thread?.orphan();
  }

  /** Frees the memory of all rings. The thread has been dismissed. No recorder is at work, and none will be. */
  releaseShared(): void {
    // Its size is sealed.
    const { size } = fstatSync(this.#sharedFile);
    systemCall(SYS.fallocate, this.#sharedFile, PUNCH_HOLE, AGENT.size, size - AGENT.size);
  }

  /**
   * Unmaps everything of ours from the target. No thread may be in our code, nor have a way back into it. False: something is still
   * there.
   */
  remove(calls: CallMaker): boolean {
    const isDismissed = this.dismissThread();
    this.#shutTextBy(calls);
    if (!isDismissed) return false;
    // From here on there is nothing to put back, only mappings to take away; the one that lists them goes last.
    faultPoint();
    this.#forgetJournal();
    new BigUint64Array(this.#page.bytes)[AGENT.journal / 8] = 0n;
    const results = calls.run((call) =>
      sharedLast(this.#mapped, this.#shared).map(({ address, length }) => call(SYS.munmap, address, length)),
    );
    this.#mapped.length = 0;
    if (this.#resident !== undefined) new BigUint64Array(this.#page.bytes)[AGENT.mappedCount / 8] = 0n;
    return results.every((result) => result === 0);
  }

  /** The process's own note of it; children of a fork keep theirs. */
  #forgetJournal(): void {
    try {
      this.#memory.writeWord(this.data + DATA.journal, 0n);
    } catch (error) {
      // A filter of the program's may keep its thread from it: the note goes with its page.
      if (!isSafepokeError(error)) throw error;
    }
  }

  /** Frees what safepoke itself holds. What is still in the target is left to its thread, and to a session to come. */
  close(): void {
    this.abandon();
    if (this.#resident === undefined) this.#page.unmap();
    this.headers.unmap();
    this.#code?.unmap();
    closeSync(this.#sharedFile);
  }

  #laneAddress(lane: number): number {
    return laneAddress(this.#places, this.geometry, lane);
  }

  get #places(): DataPlaces {
    return { data: this.data, shared: this.#shared };
  }

  /** A lane that belongs to nobody. */
  #laneBytes(lane: number): Uint8Array<ArrayBuffer> {
    return encodeLane(this.#places, this.geometry, lane, this.budget.initial(lane));
  }

  #fillData(): void {
    const { geometry } = this;
    this.#laneTable = new Uint8Array(geometry.lanes * LANE.size);
    for (let lane = 0; lane < geometry.lanes; lane++)
      this.#laneTable.set(this.#laneBytes(lane), lane * LANE.size);
    this.#memory.write(this.data + geometry.laneTable, this.#laneTable);
    this.#memory.write(this.data + geometry.queue, encodeQueue(geometry));
    this.#memory.write(this.data, encodeDataHeader(this.#places, geometry, this.#options));
  }
}

function budgetOf({ ringMemory, threads }: AgentOptions, { lanes, ringLimit }: AgentGeometry): RingBudget {
  return new RingBudget(ringMemory, lanes, Math.min(lanes, threads + SPARE_LANES), ringLimit);
}

/** What to unmap, in this order: what lists the others is there to the end, and what lies within another goes with it. */
export function sharedLast<T extends Mapped>(ranges: readonly T[], shared: number): T[] {
  const isWithin = (a: T, b: T): boolean =>
    a.length < b.length && a.address >= b.address && a.address + a.length <= b.address + b.length;
  const outer = ranges.filter((a) => !ranges.some((b) => isWithin(a, b)));
  return [
    ...outer.filter(({ address }) => address !== shared),
    ...outer.filter(({ address }) => address === shared),
  ];
}

/** Children of a fork have nothing there. @throws CannotError NO_MEMORY, REMOTE_CALL */
function keepFromChildren(pid: number, call: RemoteCall, address: number, length: number): void {
  const kept = call(SYS.madvise, address, length, MADV.dontFork);
  // It splits a mapping. Where no more are allowed madvise says EAGAIN.
  if ([ERRNO.ENOMEM, ERRNO.EAGAIN].includes(-kept)) throw noMemory(pid);
  expectSuccess(
    kept,
    `keep memory from children of process ${pid}`,
    'see whether a filter forbids madvise to it',
  );
}

/** Notes who we are, and the mappings made so far, perhaps the next one too, in the agent's page. */
function writeMapped(
  sharedFile: number,
  resident: ResidentThread | undefined,
  mapped: readonly Mapped[],
): void {
  const some = mapped.slice(0, MAPPED_MAX);
  const words = [BigInt(process.pid), readStartTime(process.pid) ?? 0n, BigInt(some.length)];
  for (const { address, length } of some) words.push(BigInt(address), BigInt(length));
  faultPoint();
  if (resident !== undefined) new BigUint64Array(resident.page.bytes).set(words, AGENT.tracerPid / 8);
  else writeSync(sharedFile, BigUint64Array.from(words), 0, words.length * 8, AGENT.tracerPid);
}

/** True if all threads of a process have ended but one. The first, which is looked at often, stays in the list until the others have gone. */
function isLastThread(pid: number, tid: number): boolean {
  if (!hasEnded(pid, pid) || hasEnded(pid, tid)) return false;
  return (readThreads(pid) ?? []).every((other) => other === tid || hasEnded(pid, other));
}
