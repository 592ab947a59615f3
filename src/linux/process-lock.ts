// Keeps two tracers of ours out of one process. The lock is a name of the abstract kind that a socket is bound to (unix(7)): the kernel gives
// it back whatever becomes of its owner, and nothing of it is in the target or in a file. Who lives in another network namespace is
// not kept out.
import { closeSync } from 'node:fs';
import { ERRNO, SYS, systemCall, systemCallBuffer2 } from './system-call.js';

/** include/linux/socket.h, include/linux/net.h */
const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0x8_0000;

/** struct sockaddr_un: the family, then the name, which begins with a zero byte. */
function abstractAddress(name: string): Uint8Array {
  return Uint8Array.of(AF_UNIX, 0, 0, ...new TextEncoder().encode(name));
}

export class ProcessLock {
  #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** Locks a process, named by its id and the time of its start. Undefined: somebody else has. Where there may be no socket, nobody is kept out. */
  static take(pid: number, startTime: bigint): ProcessLock | undefined {
    const fd = systemCall(SYS.socket, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return new ProcessLock(-1);
    const address = abstractAddress(`safepoke-${pid}-${startTime}`);
    if (systemCallBuffer2(SYS.bind, fd, address, address.length) !== -ERRNO.EADDRINUSE)
      return new ProcessLock(fd);
    closeSync(fd);
    return undefined;
  }

  release(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }
}
