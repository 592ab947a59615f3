import { writeSync } from 'node:fs';
import pc from 'picocolors';
import { plain, type Text } from '../text/index.js';

const STDOUT = 1;
const STDERR = 2;
/** A pipe holds 64 KiB: waiting a whole millisecond for its reader would cap output at 64 MB/s. */
const FULL_PIPE_WAIT_MS = 0.05;

/** Colours for one stream: real on a terminal, identity functions in a pipe. */
export type Colors = ReturnType<typeof pc.createColors>;

/** In a pipe `isTTY` is not false but missing, whatever its type says. */
function isTerminal(stream: { readonly isTTY?: boolean }): boolean {
  return stream.isTTY === true;
}

/** Thrown by `Terminal.data` when the reader of stdout has gone (`| head`): the command ends its session and exits. */
export class OutputClosed extends Error {
  constructor() {
    super('standard output was closed by its reader');
    this.name = 'OutputClosed';
  }
}

/**
 * The one place through which text goes to the terminal. Data (what a machine or a pager may read) goes to stdout and
 * nothing else does; notes, warnings, progress and errors go to stderr. Those are one line each, in which what a terminal would obey is escaped.
 */
export class Terminal {
  readonly colors: Colors = pc.createColors(isTerminal(process.stdout) && pc.isColorSupported);
  readonly noteColors: Colors = pc.createColors(isTerminal(process.stderr) && pc.isColorSupported);
  readonly isInteractive: boolean = process.stderr.isTTY;
  /** Columns of stdout; a pipe has no width, so its readers get lines of any length. */
  readonly columns: number = process.stdout.isTTY ? process.stdout.columns : Number.POSITIVE_INFINITY;
  #progressShown = false;

  /** Writes data to stdout, all of it, synchronously. Throws `OutputClosed` if the reader has gone. */
  data(text: Text): void {
    this.#clearProgress();
    writeAll(STDOUT, Buffer.from(text));
  }

  /** A line about what happens, on stderr. */
  note(line: string): void {
    this.#line(plain(line));
  }

  warn(line: string): void {
    this.#line(`${this.noteColors.yellow('safepoke: warning:')} ${plain(line)}`);
  }

  error(line: string): void {
    this.#line(`${this.noteColors.red('safepoke:')} ${plain(line)}`);
  }

  /** What has several lines, such as a help text. */
  noteLines(text: string): void {
    for (const line of text.split('\n')) this.note(line);
  }

  /** Replaces the progress line; shown on a terminal only, never in a pipe. */
  progress(line: string): void {
    if (!this.isInteractive) return;
    this.#stderr(`\r\u001b[K${plain(line).slice(0, (process.stderr.columns || 80) - 1)}`);
    this.#progressShown = true;
  }

  #line(line: string): void {
    this.#clearProgress();
    this.#stderr(`${line}\n`);
  }

  #clearProgress(): void {
    if (!this.#progressShown) return;
    this.#progressShown = false;
    this.#stderr('\r\u001b[K');
  }

  #stderr(text: string): void {
    try {
      writeAll(STDERR, Buffer.from(text));
    } catch {
      // Nobody is left to read notes; the work itself goes on.
    }
  }
}

function writeAll(fd: number, bytes: Uint8Array): void {
  let offset = 0;
  while (offset < bytes.length) {
    try {
      offset += writeSync(fd, bytes, offset);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === 'EAGAIN') {
        // A pipe that Node made non-blocking is full: give its reader a moment.
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, FULL_PIPE_WAIT_MS);
        continue;
      }
      if (code === 'EPIPE') throw new OutputClosed();
      throw error;
    }
  }
}
