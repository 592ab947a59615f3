// Where the agent's memory goes in a process, and what is said when there is no place for it.
import { fstatSync, ftruncateSync } from 'node:fs';
import { CannotError } from '../errors/index.js';
import {
  ERRNO,
  PAGE,
  PROT,
  SYS,
  deviceText,
  mappingAt,
  readMaps,
  readMaxMapCount,
  sealMemoryFile,
  takeMemoryFile,
} from '../linux/index.js';
import { expectSuccess, type RemoteCall } from '../target/index.js';
import { regionBytes, type Cluster } from './stubs.js';

/** Reach of a rel32 branch, with room for the region and the module's own extent. */
const REACH = 0x7fff_0000;
/** Lowest address worth trying: below it mmap_min_addr and non-PIE executables lie. */
const LOWEST_ADDRESS = 0x1_0000;
/** End of what a process can map (TASK_SIZE, arch/x86/include/asm/page_64_types.h); the kernel's vsyscall page is beyond. */
const HIGHEST_ADDRESS = 0x7fff_ffff_f000;
/** Mappings that the agent adds to a process, in which it splits none. */
const MAPPINGS_WANTED = 8;

/** Less than this is named as the reason. */
const LITTLE_RING_MEMORY = 64 << 20;

/** Memory of a process. */
export interface Mapped {
  readonly address: number;
  readonly length: number;
}

/** The code of the error that says that a target has answered what the kernel does not confirm. */
const FORGED = 'FORGED_ANSWER';

function forged(tried: string, why: string, cause?: unknown): CannotError {
  return new CannotError(FORGED, {
    tried,
    why,
    next: 'trace only programs that do not meddle with it; attach again if it has only just changed its user, or its descriptors',
    cause,
  });
}

/**
 * The memory file that a target says it has made, under a number of its own. Whatever is there is proven to be that first.
 *
 * @throws CannotError FORGED_ANSWER, also where the kernel does not let us have it
 */
export function takeMade(pid: number, tid: number, isApart: boolean, fd: number, name: string): number {
  try {
    return takeMemoryFile({ pid, tid, isApart }, fd, name);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw forged(`take memory that process ${pid} says it has made (descriptor ${fd})`, why, error);
  }
}

/** Fixes the size of shared memory, so that nobody can cut it off behind us. @throws CannotError FORGED_ANSWER */
export function sealShared(pid: number, file: number, bytes: number): void {
  try {
    sealMemoryFile(file, bytes);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw forged(`seal the memory shared with process ${pid}`, why, error);
  }
}

/**
 * Sees that the kernel shows what a target says it has mapped: the file from `offset` on, or no file, with these rights, over the whole
 * length. Nothing is written there, nor told to anybody, before.
 *
 * @throws CannotError FORGED_ANSWER
 */
export function proveMapped(
  pid: number,
  { address, length }: Mapped,
  permissions: string,
  file?: number,
  offset = 0,
): void {
  const wanted = file === undefined ? undefined : fstatSync(file);
  const maps = readMaps(pid) ?? [];
  const first = mappingAt(maps, address);
  let end = address;
  for (const m of first < 0 ? [] : maps.slice(first)) {
    const isIt =
      wanted === undefined
        ? m.inode === 0 && (m.path === '' || m.path.startsWith('[anon'))
        : m.inode === wanted.ino &&
          m.device === deviceText(wanted.dev) &&
          m.offset - m.start === offset - address;
    if (m.start > end || !isIt || m.permissions !== permissions) break;
    end = m.end;
    if (end >= address + length) return;
  }
  throw forged(
    `map memory into process ${pid}`,
    `it says that ${length} bytes are at 0x${address.toString(16)}, and the kernel shows something else there`,
  );
}

/** Sizes the shared file from our side: the target may have a limit on the size of files (RLIMIT_FSIZE). */
export function sizeShared(pid: number, file: number, bytes: number): void {
  try {
    ftruncateSync(file, bytes);
  } catch (error) {
    throw new CannotError('REMOTE_CALL', {
      tried: `size the memory shared with process ${pid}`,
      why: (error as NodeJS.ErrnoException).code ?? String(error),
      next: 'run safepoke without a limit on the size of files (ulimit -f), or give a smaller --buffer',
      cause: error,
    });
  }
}

/** `ringMemory`: what the rings may have. */
export function noMemory(pid: number, ringMemory = Number.POSITIVE_INFINITY): CannotError {
  const tried = `map memory into process ${pid}`;
  const most = readMaxMapCount();
  const maps = (readMaps(pid) ?? []).length;
  if (most !== undefined && maps + MAPPINGS_WANTED > most) {
    return new CannotError('NO_MEMORY', {
      tried,
      why: `it has ${maps} mappings, and vm.max_map_count allows ${most}`,
      next: `raise that: sysctl vm.max_map_count=${most * 2}`,
    });
  }
  if (ringMemory < LITTLE_RING_MEMORY) {
    return new CannotError('NO_MEMORY', {
      tried,
      why: `the rings of all threads may fill ${Math.floor(ringMemory / 1024)} KiB only, lest it be killed for want of memory`,
      next: 'raise the memory limit of its control group, or give a larger --ring-memory if one was given',
    });
  }
  return new CannotError('NO_MEMORY', {
    tried,
    why: 'its limit on address space (RLIMIT_AS) or the system leaves too little',
    next: 'give a smaller --buffer, or raise the limit with prlimit',
  });
}

/** Where and how to map memory; address 0: anywhere. */
interface Place extends Mapped {
  readonly prot: number;
  readonly flags: number;
  readonly fd: number;
  readonly offset: number;
}

/** Maps memory in a process. `isLocked`: it is not to be filled at once. Returns its address, or -errno. */
export function mapAt(
  pid: number,
  call: RemoteCall,
  isLocked: boolean,
  { address, length, prot, flags, fd, offset }: Place,
): number {
  const result = call(SYS.mmap, address, length, isLocked ? PROT.none : prot, flags, fd, offset);
  if (result > 0 && isLocked) {
    const next = 'see whether a filter forbids munlock and mprotect to it';
    expectSuccess(call(SYS.munlock, result, length), `unlock memory in process ${pid}`, next);
    expectSuccess(call(SYS.mprotect, result, length, prot), `map memory into process ${pid}`, next);
  }
  return result;
}

/** Addresses at which so many bytes are free, ascending: the lower and the upper end of each gap. */
export function freePlaces(pid: number, length: number): number[] {
  const places: number[] = [];
  let end = LOWEST_ADDRESS;
  let below = '';
  for (const mapping of readMaps(pid) ?? []) {
    if (mapping.start > HIGHEST_ADDRESS) break;
    // A page stays free on both sides, so that the kernel does not merge the mapping with a neighbour of the program's.
    if (mapping.start - end >= length + 2 * PAGE) {
      // The heap grows up into its gap, and the stack down into its own: they must not meet us.
      if (below !== '[heap]') places.push(end + PAGE);
      if (mapping.path !== '[stack]') places.push(mapping.start - length - PAGE);
    }
    end = Math.max(end, mapping.end);
    below = mapping.path;
  }
  return places;
}

/** Maps room for a region from which all of the cluster's sites can be reached, nearest gaps first. */
export function mapNear(
  pid: number,
  cluster: Cluster,
  map: (address: number, length: number) => number,
): Mapped {
  const length = regionBytes(cluster.sites);
  const lowest = Math.max(LOWEST_ADDRESS, cluster.high - REACH);
  const highest = cluster.low + REACH - length;
  const middle = (cluster.low + cluster.high) / 2;
  const places = freePlaces(pid, length)
    .filter((start) => start >= lowest && start <= highest)
    .sort((a, b) => Math.abs(a - middle) - Math.abs(b - middle));
  for (const place of places) {
    const result = map(place, length);
    if (result === place) return { address: place, length };
    if (result > 0 || result === -ERRNO.EEXIST) continue;
    // A limit of the whole process: no other place would be better.
    if (result === -ERRNO.ENOMEM) throw noMemory(pid);
    expectSuccess(result, `map code into process ${pid}`, 'see whether a filter forbids mmap to it');
  }
  throw new CannotError('NO_MEMORY_NEAR', {
    tried: `map ${length} bytes of code into process ${pid}`,
    why: `no gap within 2 GiB of 0x${cluster.low.toString(16)} was free`,
    next: 'trace fewer functions with -F, or raise its limit on address space',
  });
}
