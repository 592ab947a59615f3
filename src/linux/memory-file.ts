// Files that are nowhere but in memory (memfd_create(2)): those that we make, and those that a target makes for us. What a target says is a
// descriptor of one may be anything: it is taken out of the target by the kernel, with the rights that it has there and no others, and
// nothing is done with it before it is proven to be what was asked for. Before it is mapped it is sealed: memory that somebody else
// can cut off behind our mapping ends us by SIGBUS.
import { closeSync, constants, fstatSync, ftruncateSync, openSync, readlinkSync, writeSync } from 'node:fs';
import { MFD_ALLOW_SEALING, MFD_CLOEXEC, O_PATH } from './abi.js';
import { PidFile } from './pid-file.js';
import { hasEnded, readStatus } from './proc.js';
import { ERRNO, SYS, addressOf, errnoName, systemCall } from './system-call.js';

/** include/uapi/linux/fcntl.h; the access mode is that of open(2). */
const F_GETFL = 3;
const O_ACCMODE = 3;
const F_ADD_SEALS = 1033;
const F_GET_SEALS = 1034;
const F_SEAL_SEAL = 0x1;
const F_SEAL_SHRINK = 0x2;
const F_SEAL_GROW = 0x4;
/** Since Linux 5.1. */
const F_SEAL_FUTURE_WRITE = 0x10;
/** The kernel's own, where vm.memfd_noexec is set: the file itself may not become executable. Mappings may. */
const F_SEAL_EXEC = 0x20;
const SIZE_SEALS = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW;
/** The last number of the four of a process's status: the user as whom files are made. */
const FILE_SYSTEM_UID = 3;
/** A descriptor is an int; no process has so many. */
const MAX_DESCRIPTOR = 0x7fff_ffff;

/** Who has a descriptor for us. */
export interface DescriptorOwner {
  readonly pid: number;
  /** The thread that opened it. */
  readonly tid: number;
  /** That thread has a table of descriptors of its own (clone without CLONE_FILES). */
  readonly isApart: boolean;
}

/** A file that is nowhere but in memory, of `size` zero bytes, whose size nobody can change. Returns its descriptor. Throws an Error with the errno's name. */
export function createMemoryFile(name: string, size: number): number {
  const fd = createOpenFile(name);
  try {
    ftruncateSync(fd, size);
    sealMemoryFile(fd, size);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  return fd;
}

/** The same, empty; it may grow, and never shrinks. */
export function createGrowingFile(name: string): number {
  const fd = createOpenFile(name);
  const result = systemCall(SYS.fcntl, fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK);
  if (result === 0) return fd;
  closeSync(fd);
  throw new Error(`fcntl: ${errnoName(-result)}`);
}

/** Makes such a file large enough. Whoever else has it may have done so already. */
export function growMemoryFile(fd: number, size: number): void {
  if (fstatSync(fd).size < size) ftruncateSync(fd, size);
}

/** The same, empty, of a size that may change: it must never be mapped. */
export function createOpenFile(name: string): number {
  const nameBytes = new TextEncoder().encode(`${name}\0`);
  const fd = systemCall(SYS.memfd_create, addressOf(nameBytes), MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) throw new Error(`memfd_create: ${errnoName(-fd)}`);
  return fd;
}

/** An executable file in memory. Returns a descriptor that can only be read: one that is open for writing cannot be executed. */
export function createExecutableFile(name: string, bytes: Uint8Array): number {
  const fd = createOpenFile(name);
  writeSync(fd, bytes);
  const readOnly = openSync(`/proc/self/fd/${fd}`, 'r');
  closeSync(fd);
  return readOnly;
}

/** Fixes the size of a memory file for ever, and proves it. Throws an Error that says what it is instead. */
export function sealMemoryFile(fd: number, size: number): void {
  const result = systemCall(SYS.fcntl, fd, F_ADD_SEALS, SIZE_SEALS);
  if (result < 0) throw new Error(`it cannot be sealed (${errnoName(-result)})`);
  const seals = systemCall(SYS.fcntl, fd, F_GET_SEALS);
  if (seals < 0 || (seals & SIZE_SEALS) !== SIZE_SEALS) throw new Error('it is not sealed');
  const { size: actual } = fstatSync(fd);
  if (actual !== size) throw new Error(`it has ${actual} bytes in place of ${size}`);
}

/** Forbids to map a memory file, or to write to it, from now on; who has it mapped writes on. Before Linux 5.1 nothing happens. */
export function sealFutureWrite(fd: number): void {
  systemCall(SYS.fcntl, fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
}

/**
 * Takes the memory file `name` out of the process that says it has just made it, under that number. Returns a descriptor of ours: of a file
 * that is empty, writable, not sealed yet and memory only. Throws an Error that says why it is not that, or why the kernel does not
 * let us have it.
 */
export function takeMemoryFile(owner: DescriptorOwner, number: number, name: string): number {
  if (!(number >= 0 && number <= MAX_DESCRIPTOR)) throw new Error(`${number} is no descriptor`);
  return takeDescriptor(owner, number, name);
}

/** Returns a descriptor of ours if it is of a file that is what it should be; else it is closed. */
function proven(fd: number, owner: DescriptorOwner, name: string): number {
  try {
    if ((systemCall(SYS.fcntl, fd, F_GETFL) & O_ACCMODE) !== constants.O_RDWR)
      throw new Error('it cannot be written');
    proveNew(fd, owner, name);
    // Of files elsewhere in memory (tmpfs) the first seal forbids all others; of those that are no memory none can be asked.
    const seals = systemCall(SYS.fcntl, fd, F_GET_SEALS);
    if (seals < 0 || (seals & ~F_SEAL_EXEC) !== 0) throw new Error('it is no memory that can be sealed');
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** It is what memfd_create makes, and the owner has made it: the kernel's word, which no name or number in the target can change. */
function proveNew(fd: number, { pid, tid }: DescriptorOwner, name: string): void {
  const stat = fstatSync(fd);
  if (!stat.isFile() || stat.nlink !== 0 || stat.dev !== memoryDevice())
    throw new Error('it is no memory file');
  if (readlinkSync(`/proc/self/fd/${fd}`) !== `/memfd:${name} (deleted)`)
    throw new Error('it is another memory file');
  if (stat.size !== 0) throw new Error(`it has ${stat.size} bytes already`);
  const uid = readStatus(pid, tid)?.get('Uid')?.split(/\s+/).at(FILE_SYSTEM_UID);
  if (String(stat.uid) !== uid) throw new Error('it is somebody else’s');
}

function takeDescriptor(owner: DescriptorOwner, number: number, name: string): number {
  const { pid, tid, isApart } = owner;
  const known = PidFile.openThread(tid) ?? (isApart || hasEnded(pid, pid) ? undefined : PidFile.open(pid));
  if (known === undefined) return takeByName(owner, number, name);
  try {
    const fd = known.takeDescriptor(number);
    if (fd >= 0) return proven(fd, owner, name);
    if (!isApart || fd !== -ERRNO.EPERM) throw new Error(`pidfd_getfd says ${errnoName(-fd)}`);
  } finally {
    known.close();
  }
  return takeByName(owner, number, name);
}

/**
 * Before Linux 6.9 the kernel takes descriptors of processes only, by their first thread: not of a thread that has a table of its own, nor
 * where the first has ended; and pidfd_getfd wants more rights than a program that was started from inside may give us. So the file is
 * named without being opened, and proven to be its owner's own memory, which the owner may open for writing as well; only then it is
 * opened, by our own name of it: what the target's number leads to by then does not matter.
 */
export function takeByName(owner: DescriptorOwner, number: number, name: string): number {
  const named = openSync(`/proc/${owner.pid}/task/${owner.tid}/fd/${number}`, O_PATH);
  try {
    proveNew(named, owner, name);
    return proven(openSync(`/proc/self/fd/${named}`, constants.O_RDWR | constants.O_NONBLOCK), owner, name);
  } finally {
    closeSync(named);
  }
}

let device: number | undefined;

/** The device of all memory files: the kernel's own mount, in which there is no other kind of file that can be opened. */
function memoryDevice(): number {
  if (device === undefined) {
    const fd = createOpenFile('safepoke-device');
    device = fstatSync(fd).dev;
    closeSync(fd);
  }
  return device;
}
