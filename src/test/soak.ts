/**
 * Goes through all hazards in turn for the given time, or for so many rounds of each: `npm run soak -- [minutes | ROUNDSx] [words of the names
 * wanted]`. Prints a table;
 * exit status 1 if anything failed, or if the target's or our own memory grew.
 */
import { fuzzers, type Fuzzer } from './fuzz.js';
import { hazards } from './hazards.test.support.js';
import { Rounds, type Hazard, type MemoryUse } from './rounds.test.support.js';
import { Terminal } from '../cli/terminal.js';
import { lines } from '../text/index.js';
import { endAll } from './targets.test.support.js';
import { renderTable } from '../bench/table.js';

const DEFAULT_MINUTES = 10;
const MS_PER_MINUTE = 60_000;
/** A hazard gets this much time, then the next has its turn; after the last the first comes again. */
const TURN_MS = 60_000;

interface Tally {
  readonly hazard: Hazard;
  rounds: number;
  seconds: number;
  failures: number;
  target: MemoryUse | undefined;
  tracer: MemoryUse | undefined;
}

const terminal = new Terminal();

async function turn(tally: Tally, ms: number, least?: number): Promise<void> {
  const began = performance.now();
  const rounds = new Rounds(ms, least);
  const told = setInterval(() => {
    terminal.progress(`${tally.hazard.name}: ${tally.rounds + rounds.done} rounds`);
  }, 1000);
  try {
    await tally.hazard.run(rounds);
    const leaks = rounds.leaks();
    if (leaks.length > 0) throw new Error(`memory of ${leaks.join(' and ')} grew`);
  } catch (error) {
    tally.failures++;
    terminal.error(`${tally.hazard.name}, round ${tally.rounds + rounds.done}:`);
    terminal.noteLines(error instanceof Error ? (error.stack ?? error.message) : String(error));
  } finally {
    for (const note of rounds.notes()) terminal.note(`${tally.hazard.name}: ${note}`);
    clearInterval(told);
    endAll();
  }
  tally.rounds += rounds.done;
  tally.seconds += (performance.now() - began) / 1000;
  tally.target = rounds.memory('target') ?? tally.target;
  tally.tracer = rounds.memory('tracer') ?? tally.tracer;
}

/** Rounds of a fuzzer that are one of a hazard's; they have a seed of their own, which a failure names. */
const FUZZ_ROUNDS = 200;

function fuzzHazard(name: string, fuzz: Fuzzer): Hazard {
  return {
    name: `fuzz ${name}`,
    run: (rounds) =>
      new Promise((resolve) => {
        while (rounds.next()) fuzz(FUZZ_ROUNDS, Math.floor(Math.random() * 2 ** 31));
        resolve();
      }),
  };
}

function mib(use: MemoryUse | undefined): string {
  if (use === undefined) return '';
  const of = (bytes: number): string => String(Math.round(bytes / 2 ** 20));
  return `${of(use.early)} > ${of(use.late)}`;
}

async function main(args: readonly string[]): Promise<number> {
  const count = /^(\d+)x$/.exec(args.at(0) ?? '')?.[1];
  const wanted = count === undefined ? undefined : Number(count);
  const [minutes] = wanted === undefined ? args.map(Number) : [0];
  const hasTime = minutes > 0;
  const ms = (hasTime ? minutes : DEFAULT_MINUTES) * MS_PER_MINUTE;
  const words = hasTime || wanted !== undefined ? args.slice(1) : args;
  const tallies: Tally[] = [...hazards, ...[...fuzzers].map(([name, fuzz]) => fuzzHazard(name, fuzz))]
    .filter(({ name }) => words.length === 0 || words.some((word) => name.includes(word)))
    .map((hazard) => ({ hazard, rounds: 0, seconds: 0, failures: 0, target: undefined, tracer: undefined }));
  const until = performance.now() + ms;
  // One alone has all the time in one piece.
  const turnMs = tallies.length === 1 ? ms : Math.min(TURN_MS, ms / tallies.length);
  if (wanted !== undefined) for (const tally of tallies) await turn(tally, 0, wanted);
  while (wanted === undefined && tallies.length > 0 && performance.now() < until) {
    for (const tally of tallies) {
      await turn(tally, turnMs);
      terminal.note(`${tally.hazard.name}: ${tally.rounds} rounds, ${tally.failures} failures`);
    }
  }
  terminal.data(
    lines(
      renderTable(
        'Soak',
        ['hazard', 'rounds', 'failures', 's', 'target, MiB', 'safepoke, MiB'],
        tallies.map(({ hazard, rounds, failures, seconds, target, tracer }) => [
          hazard.name,
          String(rounds),
          String(failures),
          seconds.toFixed(0),
          mib(target),
          mib(tracer),
        ]),
      ),
    ),
  );
  return tallies.some(({ failures }) => failures > 0) ? 1 : 0;
}

process.exitCode = await main(process.argv.slice(2));
