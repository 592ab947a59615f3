// Looks at the machine: what tracing needs, whether it is there, and what to do if not.
import { readFileSync } from 'node:fs';
import { release } from 'node:os';
import { OutsideMemory, hasFsgsbase, killStopped, ownPermissions, spawnStopped } from '../target/index.js';
import { isSafepokeError } from '../errors/index.js';

/** One thing that was looked at. */
export interface Finding {
  readonly what: string;
  readonly state: 'ok' | 'limited' | 'missing';
  /** What was found. */
  readonly found: string;
  /** What to do, where the state is not ok. */
  readonly remedy: string | undefined;
}

/** MADV_WIPEONFORK came with Linux 4.14, rdfsbase in user mode with 5.9. */
const OLDEST_KERNEL = [5, 9] as const;
const PROGRAM_TO_TRY = '/bin/true';

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}

function ok(what: string, found: string): Finding {
  return { what, state: 'ok', found, remedy: undefined };
}

function platform(): Finding {
  const what = 'Linux on x86-64';
  const found = `${process.platform} on ${process.arch}`;
  if (process.platform === 'linux' && process.arch === 'x64') return ok(what, found);
  return { what, state: 'missing', found, remedy: 'run safepoke on Linux on x86-64' };
}

function kernel(): Finding {
  const what = 'Linux 5.9 or later';
  const found = release();
  const [major, minor] = found.split('.').map(Number);
  const isNew = major > OLDEST_KERNEL[0] || (major === OLDEST_KERNEL[0] && minor >= OLDEST_KERNEL[1]);
  return isNew ? ok(what, found) : { what, state: 'missing', found, remedy: 'use a newer kernel' };
}

function fsgsbase(): Finding {
  const what = 'rdfsbase in user mode';
  if (hasFsgsbase()) return ok(what, 'programs may execute it');
  return {
    what,
    state: 'missing',
    found: 'it is an illegal instruction here',
    remedy: 'use a processor with FSGSBASE and a kernel without nofsgsbase on its command line',
  };
}

function timeStampCounter(): Finding {
  const what = 'a time-stamp counter that runs evenly';
  const flags = /^flags\s*:(.*)$/m.exec(readText('/proc/cpuinfo') ?? '')?.[1].split(/\s+/) ?? [];
  const wanted = ['constant_tsc', 'nonstop_tsc'];
  const missing = wanted.filter((flag) => !flags.includes(flag));
  if (missing.length === 0) return ok(what, wanted.join(', '));
  return {
    what,
    state: 'limited',
    found: `without ${missing.join(', ')}`,
    remedy: 'durations may be wrong where the processor changes its speed or sleeps; counts are right',
  };
}

function permission(): Finding {
  const what = 'permission to trace processes of others';
  const { hasPtrace, yamaScope: scope } = ownPermissions();
  if (hasPtrace) return ok(what, 'CAP_SYS_PTRACE');
  if (scope === undefined || scope === '0') {
    return {
      what,
      state: 'limited',
      found: 'processes of the same user only',
      remedy: 'run as root or with CAP_SYS_PTRACE to trace those of other users',
    };
  }
  return {
    what,
    state: 'limited',
    found: `ptrace_scope is ${scope}: only programs started by \`safepoke run\``,
    remedy: 'run as root, or: sysctl kernel.yama.ptrace_scope=0',
  };
}

function tracing(): Finding {
  const what = 'ptrace, and writing to the text of a process';
  try {
    const { pid } = spawnStopped(PROGRAM_TO_TRY, [PROGRAM_TO_TRY], (child) => new OutsideMemory(child));
    killStopped(pid);
    return ok(what, `${PROGRAM_TO_TRY} was started, stopped at its entry point, and ended`);
  } catch (error) {
    return {
      what,
      state: 'missing',
      found: isSafepokeError(error) ? error.details.why : String(error),
      remedy: 'in a container, add the capability SYS_PTRACE and a seccomp profile that allows ptrace',
    };
  }
}

/** Everything that tracing needs. Starts and ends one small program of the system to see that it can. */
export function examineMachine(): Finding[] {
  return [platform(), kernel(), fsgsbase(), timeStampCounter(), permission(), tracing()];
}
