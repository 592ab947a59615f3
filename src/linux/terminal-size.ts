import { SYS, systemCallBuffer3 } from './system-call.js';

/** include/uapi/asm-generic/ioctls.h */
const TIOCGWINSZ = 0x5413;
/** struct winsize: rows, columns and two more, of 16 bits each; include/uapi/asm-generic/termios.h */
const WINSIZE_BYTES = 8;
const COLUMNS_OFFSET = 2;

/** Columns of the terminal that a descriptor of ours leads to; undefined if it is none, or has not said how wide it is. */
export function terminalColumns(fd: number): number | undefined {
  const size = new Uint8Array(WINSIZE_BYTES);
  if (systemCallBuffer3(SYS.ioctl, fd, TIOCGWINSZ, size) < 0) return undefined;
  const columns = new DataView(size.buffer).getUint16(COLUMNS_OFFSET, true);
  return columns === 0 ? undefined : columns;
}
