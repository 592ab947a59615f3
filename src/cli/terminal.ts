// Standard streams are shared: with the program that is traced, with whatever else the shell has started. Node's own objects for them,
// process.stdout and its like, make the stream non-blocking for all who share it as soon as they are looked at: programs then fail or
// lose output. So streams are descriptors here, written by system calls, and a lint rule keeps those objects out. Node itself looks at
// them where one would not expect it (whenever it closes a socket, for one): so it finds others in their place.
import { closeSync, fstatSync, writeSync } from 'node:fs';
import { Readable, Writable } from 'node:stream';
import { isatty } from 'node:tty';
import { CannotError } from '../errors/index.js';
import type { SinkWaiting } from '../output/index.js';
import { plain, type Text } from '../text/index.js';
import { makeColors, type Colors } from './colors.js';

const STDIN = 0;
const STDOUT = 1;
const STDERR = 2;
/** A pipe holds 64 KiB: waiting a whole millisecond for its reader would cap output at 64 MB/s. */
const FULL_PIPE_WAIT_MS = 0.05;
/** A reader that takes its time is looked at less often. */
const MAX_FULL_PIPE_WAIT_MS = 5;
/** A terminal that has not said how wide it is. */
const USUAL_COLUMNS = 80;

/** True if Ctrl-C reaches all that share our standard input. */
export function isInputTerminal(): boolean {
  return isatty(STDIN);
}

/** See https://no-color.org; a dumb terminal would show the codes. */
function isColored(fd: number): boolean {
  return isatty(fd) && (process.env['NO_COLOR'] ?? '') === '' && process.env['TERM'] !== 'dumb';
}

/** Puts streams that change nothing in the place of Node's. To be called first of all. */
export function replaceStreams(): void {
  const writer = (fd: number): Writable =>
    new Writable({
      write: (chunk: Uint8Array, _encoding, done) => {
        writeAll(fd, chunk);
        done();
      },
    });
  const replace = (name: string, value: Readable | Writable): void => {
    Object.defineProperty(process, name, { value, configurable: true, enumerable: true });
  };
  replace('stdin', Readable.from([]));
  replace('stdout', writer(STDOUT));
  replace('stderr', writer(STDERR));
}

/**
 * At its end Node gives terminals the settings, and streams the flags, that they had at its beginning, and so undoes what the
 * program, or anybody else, has set meanwhile. It leaves descriptors alone that are closed. To be called last of all.
 */
export function leaveStreams(): void {
  for (const fd of [STDIN, STDOUT, STDERR]) {
    try {
      closeSync(fd);
    } catch {
      // It was closed.
    }
  }
}

/** Most that a pipe, or a terminal, takes at once where it says that it takes anything: PIPE_BUF, include/uapi/linux/limits.h. */
const PIPE_BUF = 4096;
const LOOK_MS = 100;
/** Where the command is to end, a reader that takes nothing gets so long for what is still to be said. */
const LAST_PATIENCE_MS = 500;

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
  readonly colors: Colors = makeColors(isColored(STDOUT));
  readonly noteColors: Colors = makeColors(isColored(STDERR));
  readonly isInteractive: boolean = isatty(STDERR);
  /** Columns of stdout, once `measure` was called; a pipe has no width, so its readers get lines of any length. */
  columns: number = isatty(STDOUT) ? USUAL_COLUMNS : Number.POSITIVE_INFINITY;
  #noteColumns = USUAL_COLUMNS;
  #progressShown = false;
  #waiting: SinkWaiting | undefined;

  /** From now on, or no longer, waits for readers end when the session is to end. */
  waitAs(waiting: SinkWaiting | undefined): void {
    this.#waiting = waiting;
  }

  /** Asks terminals how wide they are, for commands that want to know: the system call's library takes a while to load. */
  async measure(): Promise<void> {
    if (!this.isInteractive && this.columns === Number.POSITIVE_INFINITY) return;
    const { terminalColumns } = await import('../linux/index.js');
    this.columns = terminalColumns(STDOUT) ?? this.columns;
    this.#noteColumns = terminalColumns(STDERR) ?? this.#noteColumns;
  }

  /**
   * Writes data to stdout, all of it, synchronously.
   *
   * @throws OutputClosed if the reader has gone, or does not read and the session is to end
   * @throws CannotError STDOUT_UNWRITABLE
   */
  data(text: Text): void {
    this.#clearProgress();
    try {
      writeAll(STDOUT, Buffer.from(text), this.#waiting);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === undefined) throw error;
      throw new CannotError('STDOUT_UNWRITABLE', {
        tried: 'write to standard output',
        why: code === 'ENOSPC' ? 'the disk is full' : (error as Error).message,
        next: 'lead it elsewhere',
        cause: error,
      });
    }
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
    this.#stderr(`\r\u001b[K${plain(line).slice(0, this.#noteColumns - 1)}`);
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
      writeAll(STDERR, Buffer.from(text), this.#waiting);
    } catch {
      // Nobody is left to read notes; the work itself goes on.
    }
  }
}

function writeAll(fd: number, bytes: Uint8Array, waiting?: SinkWaiting): void {
  let offset = 0;
  let waitMs = FULL_PIPE_WAIT_MS;
  const atOnce = waiting === undefined || fstatSync(fd).isFile() ? bytes.length : PIPE_BUF;
  while (offset < bytes.length) {
    if (waiting !== undefined) awaitReader(fd, waiting);
    try {
      offset += writeSync(fd, bytes, offset, Math.min(bytes.length - offset, atOnce));
      waitMs = FULL_PIPE_WAIT_MS;
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === 'EAGAIN') {
        // Somebody who shares the stream has made it non-blocking, and it is full: give its reader a moment.
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, waitMs);
        waitMs = Math.min(2 * waitMs, MAX_FULL_PIPE_WAIT_MS);
        continue;
      }
      if (code === 'EPIPE') throw new OutputClosed();
      throw error;
    }
  }
}

function awaitReader(fd: number, { awaitWritable, isEnding }: SinkWaiting): void {
  let endingSince: number | undefined;
  while (!awaitWritable(fd, LOOK_MS)) {
    if (!isEnding()) continue;
    endingSince ??= performance.now();
    if (performance.now() - endingSince > LAST_PATIENCE_MS) throw new OutputClosed();
  }
}
