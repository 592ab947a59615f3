export { SITE_LENGTH, REFUSAL_EXPLANATIONS } from './sites.js';
export type {
  DisplacedInstruction,
  FunctionRange,
  ProfilerCall,
  Refusal,
  RefusalReason,
  SiteCandidate,
  SiteKind,
} from './sites.js';
export { analyseFunctions } from './analyse-functions.js';
export type { Analysis, KeptPart, VerdictStore } from './analyse-functions.js';
export { VERDICTS_VERSION, Verdicts, type EntryVerdict } from './verdicts.js';
export { ModuleLandings } from './landings.js';
export { Mark } from './code-regions.js';
export { Trait } from './code-ranges.js';
export type { ExitBlock, ExitKind, ExitMark, ExitRefusal, ExitWindow, FunctionExits } from './exit-sites.js';
export {
  CELL_SIZE,
  DEPTH_OFFSET,
  emitSite,
  relocateSite,
  relocatedBound,
  stubShift,
} from './relocate-site.js';
export type { DisplacedCode, RecordedEvent, Recording, RelocatedCode } from './relocate-site.js';
export { assemble, disassemble, type Assembly } from './assembler.js';
export {
  COMPARE_SITE,
  STORE_TEXT,
  SYNC_CORE,
  lowerProtocol,
  type LoweredProtocol,
  type WordPlace,
} from './lower-protocol.js';
