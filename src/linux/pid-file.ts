import { SYS, systemCall, systemCallBuffer3 } from './system-call.js';

/**
 * PIDFD_GET_INFO is _IOWR(0xFF, 11, struct pidfd_info) with the structure's first published size of 64 bytes
 * (include/uapi/linux/pidfd.h); PIDFD_INFO_EXIT asks for the exit status, since Linux 6.15.
 */
const PIDFD_GET_INFO = 0xc040ff0b;
const PIDFD_INFO_SIZE = 64;
const PIDFD_INFO_EXIT = 1n << 3n;
const MASK_OFFSET = 0;
const EXIT_CODE_OFFSET = 60;
/** PIDFD_THREAD of include/uapi/linux/pidfd.h (O_EXCL): one thread rather than its process; since Linux 6.9. */
const PIDFD_THREAD = 0o200;

/** A file descriptor that stands for a process, and goes on standing for it when it has ended. */
export class PidFile {
  readonly #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  static open(pid: number): PidFile | undefined {
    const fd = systemCall(SYS.pidfd_open, pid, 0);
    return fd < 0 ? undefined : new PidFile(fd);
  }

  /** The same for one thread; undefined also where the kernel has no such thing. */
  static openThread(tid: number): PidFile | undefined {
    const fd = systemCall(SYS.pidfd_open, tid, PIDFD_THREAD);
    return fd < 0 ? undefined : new PidFile(fd);
  }

  /** A descriptor of ours for what one of its descriptors stands for, with the rights that that has (pidfd_getfd, Linux 5.6); or -errno. */
  takeDescriptor(number: number): number {
    return systemCall(SYS.pidfd_getfd, this.#fd, number, 0);
  }

  /** The wait status with which the process ended; undefined if the kernel does not tell. */
  exitStatus(): number | undefined {
    const info = new Uint8Array(PIDFD_INFO_SIZE);
    const view = new DataView(info.buffer);
    view.setBigUint64(MASK_OFFSET, PIDFD_INFO_EXIT, true);
    if (systemCallBuffer3(SYS.ioctl, this.#fd, PIDFD_GET_INFO, info) < 0) return undefined;
    if ((view.getBigUint64(MASK_OFFSET, true) & PIDFD_INFO_EXIT) === 0n) return undefined;
    return view.getInt32(EXIT_CODE_OFFSET, true);
  }

  close(): void {
    systemCall(SYS.close, this.#fd);
  }
}
