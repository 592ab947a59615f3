// Text that is writable for as long as our jumps stand in it. The kernel puts a breakpoint of its own (a uprobe: perf probe, bpftrace)
// only into mappings of files that may not be written (`valid_vma`, kernel/events/uprobes.c): over our jump it would be the end of
// the program, as it goes on behind the first instruction of the *file*, in the middle of the jump. So a probe that comes
// meanwhile waits. When the mapping is read-only again, and by that is joined with its own first page, which became so before, the kernel
// looks through it for probes that belong there (`uprobe_mmap`, called where mappings are joined) and puts them.
//
// Mappings are opened whole, and the largest parts without a site shut again at once: pieces of a mapping that differ in what the kernel
// has counted for them would never become one again. In a child that is forked meanwhile they stay pieces.
import {
  FUTEX,
  PAGE,
  PROT,
  SYS,
  readLimit,
  readMaps,
  readMaxMapCount,
  readOvercommit,
  type Mapping,
} from '../linux/index.js';
import type { PlannedCall } from '../target/index.js';
import { AGENT, TEXT_RUN } from './layout.js';
import type { Witness } from './text-table.js';

const SHUT = PROT.read | PROT.exec;
const OPEN = SHUT | PROT.write;
/** How /proc/PID/maps shows such mappings. */
const SHUT_PERMISSIONS = 'r-xp';
const OPEN_PERMISSIONS = 'rwxp';
/** vm.overcommit_memory: the kernel counts each page that might be written. */
const COUNTS_ALL = 2;
/** Parts without a site that are shut again: each takes two mappings more. */
const MOST_GAPS = 64;
/** Part of all mappings that a process may have, which are in use already or will be: beyond it the program needs them itself. */
const MAPPINGS_PART = 1 / 2;

/** FUTEX_WAKE_OP with FUTEX_OP(FUTEX_OP_ADD, 0, FUTEX_OP_CMP_EQ, 0), include/uapi/linux/futex.h: adds 0 to a word. */
const WAKE_OP = 5;
const ADD_ZERO = 0x1000_0000;

/** What opening and shutting takes, with arguments of the kind that they will have. */
export const OPEN_TEXT_CALLS: readonly PlannedCall[] = [
  ...[OPEN, SHUT].map((rights) => ({
    name: 'mprotect',
    number: SYS.mprotect,
    arguments: [PAGE, PAGE, rights],
  })),
  {
    name: 'futex',
    number: SYS.futex,
    arguments: [PAGE, WAKE_OP | FUTEX.privateFlag, 0, 0, PAGE, ADD_ZERO],
  },
];

export interface TextRange {
  readonly start: number;
  readonly length: number;
}

/** A mapping of a file's text, by which it is known again. */
export interface FileText extends TextRange {
  readonly offset: number;
  readonly inode: number;
}

/** One that is to be writable for the time being. */
export interface OpeningText extends FileText {
  /** Of its first site and its last; undefined: some of its sites the agent's thread cannot turn back. */
  readonly witnesses: readonly [Witness, Witness] | undefined;
  /** A page with a site. */
  readonly page: number;
  /** Pages without a site. */
  readonly gaps: readonly TextRange[];
}

type Call = readonly [number, ...(readonly number[])];

/** Mappings of files' text that nobody may write to: the kernel puts probes there. */
export function readOnlyText(maps: readonly Mapping[]): Mapping[] {
  return maps.filter(({ permissions, path }) => permissions === SHUT_PERMISSIONS && path.startsWith('/'));
}

/** Why text that is writable would be counted against the program's own memory; undefined: it would not. */
export function whyNotToOpen(pid: number): string | undefined {
  if (readLimit(pid, 'Max data size') !== undefined)
    return 'its limit on data (RLIMIT_DATA) would count writable text';
  return readOvercommit() === COUNTS_ALL
    ? 'the kernel would count writable text as memory in use (vm.overcommit_memory)'
    : undefined;
}

/** What a thread of the target has to call to make text writable. */
export function openingCalls(texts: readonly OpeningText[]): Call[] {
  return texts.map(({ start, length }) => [SYS.mprotect, start, length, OPEN]);
}

/**
 * The largest parts without a site of what is open, to be made read-only again; none where the program may need the mappings itself that
 * this takes.
 */
export function gapsToShut(pid: number, texts: readonly OpeningText[]): TextRange[] {
  const mappings = (readMaps(pid)?.length ?? 0) + 2 * MOST_GAPS;
  if (mappings > (readMaxMapCount() ?? 0) * MAPPINGS_PART) return [];
  const open = openParts(pid, texts);
  const isOpen = ({ start, length }: TextRange): boolean =>
    open.some((part) => part.start <= start && start + length <= part.start + part.length);
  return texts
    .flatMap(({ gaps }) => gaps.filter(isOpen))
    .sort((a, b) => b.length - a.length)
    .slice(0, MOST_GAPS);
}

/**
 * What has to be called before gaps are shut: a page of each mapping becomes the process's own, by a store that changes nothing. Pieces of
 * which each first has such pages when it is one of its own would stay pieces for ever (anon_vma, mm/vma.c).
 */
export function touchingCalls(texts: readonly OpeningText[]): Call[] {
  return texts.map(({ page }) => [SYS.futex, page, WAKE_OP | FUTEX.privateFlag, 0, 0, page, ADD_ZERO]);
}

export function shutCall({ start, length }: TextRange): Call {
  return [SYS.mprotect, start, length, SHUT];
}

/** What stays open of mappings of which gaps were shut. */
export function openPieces(texts: readonly FileText[], shut: readonly TextRange[]): FileText[] {
  const ascending = shut
    .map(({ start, length }) => ({ start, end: start + length }))
    .sort((a, b) => a.start - b.start);
  return texts.flatMap((text) => {
    const within = ascending.filter(({ start, end }) => start < text.start + text.length && end > text.start);
    return rangesBetween(text, within).map(({ start, length }) => ({
      start,
      length,
      offset: text.offset + start - text.start,
      inode: text.inode,
    }));
  });
}

/** What lies between others, which ascend and may overlap, within a range. */
export function rangesBetween(
  { start, length }: TextRange,
  others: readonly { readonly start: number; readonly end: number }[],
): TextRange[] {
  const end = start + length;
  const between: TextRange[] = [];
  let from = start;
  for (const other of [...others, { start: end, end }]) {
    const to = Math.min(other.start, end);
    if (to > from) between.push({ start: from, length: to - from });
    from = Math.max(from, other.end);
  }
  return between;
}

/** Those of them that are still what they were. */
export function stillReadOnly(pid: number, texts: readonly OpeningText[]): OpeningText[] {
  const now = readOnlyText(readMaps(pid) ?? []);
  return texts.filter(({ start, length, offset, inode }) =>
    now.some(
      (m) => m.start === start && m.end === start + length && m.offset === offset && m.inode === inode,
    ),
  );
}

/** What is writable of files' text, as far as it is that file's still. */
export function openParts(pid: number, texts: readonly FileText[]): TextRange[] {
  const maps = (readMaps(pid) ?? []).filter(({ permissions }) => permissions === OPEN_PERMISSIONS);
  return texts.flatMap((text) => {
    const textEnd = text.start + text.length;
    return maps
      .filter(
        ({ start, end, offset, inode }) =>
          inode === text.inode &&
          offset - start === text.offset - text.start &&
          start < textEnd &&
          end > text.start,
      )
      .map(({ start, end }) => {
        const from = Math.max(start, text.start);
        return { start: from, length: Math.min(end, textEnd) - from };
      });
  });
}

/** What a thread of the target has to call to make that read-only again. */
export function shuttingCalls(pid: number, texts: readonly FileText[]): Call[] {
  return openParts(pid, texts).flatMap(({ start, length }) =>
    [PAGE, length].map((bytes) => shutCall({ start, length: bytes })),
  );
}

/**
 * The same by the agent's thread itself, which rbx tells its pages: shut_text. It cannot read what is mapped, and asks witnesses: both must
 * be as they were before any change. As long as a jump stands text stays writable.
 */
export const SHUT_LISTING = `
shut_text:
    mov r12, [rbx+${AGENT.opened}]
    mov r13, [rbx+${AGENT.openedCount}]
shut_next:
    test r13, r13
    je shut_done
    lea r15, [r12+${TEXT_RUN.witnesses}]
    mov edx, [r15+12]
    call compare_word
    jne shut_on
    add r15, ${TEXT_RUN.witness}
    mov edx, [r15+12]
    call compare_word
    jne shut_on
    mov rdi, [r12+${TEXT_RUN.start}]
    mov esi, ${PAGE}
    mov edx, ${SHUT}
    mov eax, ${SYS.mprotect}
    syscall
    mov rdi, [r12+${TEXT_RUN.start}]
    mov rsi, [r12+${TEXT_RUN.length}]
    mov edx, ${SHUT}
    mov eax, ${SYS.mprotect}
    syscall
shut_on:
    add r12, ${TEXT_RUN.size}
    sub r13, 1
    jmp shut_next
shut_done:
    ret
`;
