import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { MFD_CLOEXEC } from './abi.js';
import { SYS, addressOf, errnoName, systemCall } from './system-call.js';

/** A file that is nowhere but in memory, of `size` zero bytes. Returns its descriptor. Throws an Error with the errno's name. */
export function createMemoryFile(name: string, size: number): number {
  const nameBytes = new TextEncoder().encode(`${name}\0`);
  const fd = systemCall(SYS.memfd_create, addressOf(nameBytes), MFD_CLOEXEC);
  if (fd < 0) throw new Error(`memfd_create: ${errnoName(-fd)}`);
  ftruncateSync(fd, size);
  return fd;
}

/** An executable file in memory. Returns a descriptor that can only be read: one that is open for writing cannot be executed. */
export function createExecutableFile(name: string, bytes: Uint8Array): number {
  const fd = createMemoryFile(name, 0);
  writeSync(fd, bytes);
  const readOnly = openSync(`/proc/self/fd/${fd}`, 'r');
  closeSync(fd);
  return readOnly;
}
