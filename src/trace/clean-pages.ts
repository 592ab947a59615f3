// Pages of text that are the process's own, and have what the file has: a breakpoint that has gone leaves such behind, of a debugger
// or of the kernel. Sites on them could be turned back only with all threads held, and not at all when safepoke was killed. So
// they are dropped, and the file's pages come in their place.
import { readOnlyText, type Agent } from '../agent/index.js';
import { MADV, PAGE, SYS, filePages, mappingAt, pageOf, readMaps, type Mapping } from '../linux/index.js';
import type { Module, TargetMemory } from '../target/index.js';

/** What a process has where its text is. */
interface Text {
  readonly pid: number;
  readonly memory: TargetMemory;
  readonly modules: readonly Module[];
}

/** The file's bytes of a page, if it is a file's that we know; what lies behind its end is zero. */
function fileBytes(
  modules: readonly Module[],
  { start, device, inode, offset }: Mapping,
  page: number,
): Uint8Array | undefined {
  const module = modules.find(({ mapped }) => mapped?.device === device && mapped.inode === inode);
  return module?.elf().pageAt(offset + page - start);
}

/** Drops the copies among the pages from `start` up to `end`, by the agent's thread. */
export function cleanPages(
  { pid, memory, modules }: Text,
  agent: Agent,
  pages: Iterable<{ readonly start: number; readonly end: number }>,
): void {
  const { thread } = agent;
  // Pages that are locked cannot be dropped.
  if (thread === undefined || agent.isLocked) return;
  const maps = readOnlyText(readMaps(pid) ?? []);
  for (const { start, end } of pages) {
    const areFiles = filePages(pid, start, end - start);
    if (areFiles.every(Boolean)) continue;
    for (const [i, isFile] of areFiles.entries()) {
      const page = start + i * PAGE;
      const index = mappingAt(maps, page);
      if (isFile || index < 0) continue;
      const bytes = fileBytes(modules, maps[index], page);
      if (bytes === undefined || Buffer.compare(memory.readSome(page, PAGE), bytes) !== 0) continue;
      thread.call(SYS.madvise, page, PAGE, MADV.dontNeed);
      // Somebody has written to the file meanwhile.
      const isOther = Buffer.compare(memory.readSome(page, PAGE), bytes) !== 0;
      if (isOther && filePages(pid, page, PAGE)[0]) memory.write(page, bytes);
    }
  }
}

/** The page that an address is on. */
export function pageAround(address: number): { readonly start: number; readonly end: number } {
  const start = pageOf(address);
  return { start, end: start + PAGE };
}
