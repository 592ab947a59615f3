// A probe of the kernel on a function of a process (a uprobe, as perf probe and bpftrace put it): a real one where the kernel has them and
// lets us, else what it does to the bytes of the process.
import { execFileSync } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { listFunctions } from '../index.js';

const TRACEFS = '/sys/kernel/tracing';
const EVENTS = `${TRACEFS}/uprobe_events`;
const GROUP = 'safepoke_test';
const INT3 = Buffer.of(0xcc);

export interface KernelProbe {
  readonly isReal: boolean;
  put(): void;
  /** The kernel puts back the first byte of the file. */
  takeAway(): void;
  close(): void;
}

/** Makes the kernel's file system of probes visible, if it has one. */
function hasProbes(): boolean {
  try {
    if (!existsSync(EVENTS)) execFileSync('mount', ['-t', 'tracefs', 'nodev', TRACEFS], { stdio: 'ignore' });
    return existsSync(EVENTS);
  } catch {
    return false;
  }
}

let made = 0;

function realProbe(path: string, offset: number): KernelProbe | undefined {
  if (!hasProbes()) return undefined;
  const name = `probe_${process.pid}_${made++}`;
  const enable = `${TRACEFS}/events/${GROUP}/${name}/enable`;
  try {
    writeFileSync(EVENTS, `p:${GROUP}/${name} ${path}:0x${offset.toString(16)}\n`, { flag: 'a' });
  } catch {
    return undefined;
  }
  return {
    isReal: true,
    put: () => {
      writeFileSync(enable, '1');
    },
    takeAway: () => {
      writeFileSync(enable, '0');
    },
    close: () => {
      writeFileSync(enable, '0');
      writeFileSync(EVENTS, `-:${GROUP}/${name}\n`, { flag: 'a' });
    },
  };
}

function imitation(pid: number, address: number): KernelProbe {
  const memory = openSync(`/proc/${pid}/mem`, 'r+');
  const original = Buffer.alloc(1);
  readSync(memory, original, 0, 1, address);
  return {
    isReal: false,
    put: () => {
      writeSync(memory, INT3, 0, 1, address);
    },
    takeAway: () => {
      writeSync(memory, original, 0, 1, address);
    },
    close: () => {
      closeSync(memory);
    },
  };
}

/** Where a function of a process is. */
export function addressOf(pid: number, name: string): number {
  const { functions } = listFunctions({ pid }, [name]);
  return Number(functions[0].address);
}

/** On the function at this address, which has its own code now. */
export function kernelProbe(pid: number, address: number): KernelProbe {
  for (const line of readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n')) {
    const [range, , offset, , , path] = line.split(/\s+/);
    const [start, end] = range.split('-').map((hex) => Number.parseInt(hex, 16));
    if (address < start || address >= end) continue;
    const real = realProbe(path, Number.parseInt(offset, 16) + address - start);
    if (real !== undefined) return real;
  }
  return imitation(pid, address);
}
