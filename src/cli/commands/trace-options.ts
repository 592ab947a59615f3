import { Option, type Command } from 'commander';

/** Options of `run` and `attach`, as commander gives them. */
export interface LiveOptions {
  readonly filter?: string[];
  readonly notrace?: string[];
  readonly depth?: string;
  readonly timeFilter?: string;
  readonly entryOnly?: boolean;
  readonly exits: 'sites' | 'none';
  readonly duration?: string;
  readonly buffer?: string;
  readonly ringMemory?: string;
  readonly output?: string;
  readonly format: 'graph' | 'jsonl';
  readonly summary?: string;
  readonly keep: 'oldest' | 'newest';
  readonly way: 'auto' | 'held' | 'page-flip' | 'rendezvous';
  readonly readOnlyText?: boolean;
  readonly size?: string;
  readonly follow?: boolean;
  readonly followDlopen?: boolean;
  /** `run` only. */
  readonly inside?: boolean;
}

/** Gathers the values of an option that may be given several times. */
export function collect(value: string, before: string[] | undefined): string[] {
  return [...(before ?? []), value];
}

export function addLiveOptions(command: Command): Command {
  return command
    .option(
      '-F, --filter <pattern>',
      'trace these functions (repeatable): glob, /regular expression/, MODULE!PATTERN',
      collect,
    )
    .option('-N, --notrace <pattern>', 'but not these (repeatable)', collect)
    .option('-D, --depth <n>', 'at most n levels below the outermost traced call')
    .option('-t, --time-filter <time>', 'only calls that last at least this: 2us, 1ms')
    .addOption(
      new Option('--exits <how>', 'how ends of calls are found: by patched sites, or none, for half the cost')
        .choices(['sites', 'none'])
        .default('sites'),
    )
    .option('--entry-only', 'the same as --exits none')
    .option('--duration <time>', 'stop when it has traced so long: 500ms, 10s, 1m')
    .option(
      '--buffer <size>',
      'ring of each thread: 64K, 16M (default 128M, of which only what is used is memory)',
    )
    .option(
      '--ring-memory <size>',
      'what all rings together may fill (default: half of what the target can still get)',
    )
    .option('-o, --output <file>', 'record; without it the calls are printed as they come')
    .addOption(
      new Option('--format <format>', 'for what is printed as it comes')
        .choices(['graph', 'jsonl'])
        .default('graph'),
    )
    .addOption(
      new Option('--keep <which>', 'what a recording keeps: all, or with --size only the newest')
        .choices(['oldest', 'newest'])
        .default('oldest'),
    )
    .addOption(
      new Option('--way <way>', 'the only way in which code may be changed')
        .choices(['auto', 'held', 'page-flip', 'rendezvous'])
        .default('auto'),
    )
    .option(
      '--read-only-text',
      'leave text read-only: a probe of the kernel (perf probe, bpftrace) put on a traced function may then end the program',
    )
    .option('--size <size>', 'with --keep newest: bytes of records to keep (default 64M)')
    .option('--follow', 'go on in the program that the process executes (execve), in FILE.2 and so on')
    .option('--follow-dlopen', 'go on with libraries that -F names and that are loaded later, likewise')
    .option('--summary <file>', 'write a JSON object about the session');
}
