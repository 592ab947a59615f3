export {
  KIND_BITS,
  KIND_ENTRY,
  KIND_EXIT,
  KIND_LEAF,
  KIND_LOST,
  LOST_NOT_KEPT,
  KIND_MASK,
  KIND_NONE,
  KIND_PLACE,
  KIND_TAIL,
  KIND_UNWOUND,
  MAX_FUNCTION_INDEX,
  MAX_LOST,
  RECORD_BYTES,
  RECORD_SLOT_OFFSET,
  RECORD_TSC_OFFSET,
  RECORD_WHAT_OFFSET,
  RECORD_WORDS,
  SLOT_SHIFT,
  SLOT_WORD,
  TSC_HIGH_WORD,
  TSC_LOW_WORD,
  WHAT_WORD,
  writeRecord,
} from './record-layout.js';
export type { RecordKind } from './record-layout.js';
export type {
  ClockMessage,
  EndMessage,
  FunctionsMessage,
  LostMessage,
  RecordedFunction,
  RecordingHeader,
  RecordingMessage,
  RecordingMode,
  ThreadEndMessage,
  ThreadMessage,
} from './file-layout.js';
export { NewestWriter } from './newest-writer.js';
export { RecordingWriter } from './recording-writer.js';
export type { RecordingSink } from './recording-writer.js';
export { RecordingReader } from './recording-reader.js';
export type { RecordingListener } from './recording-reader.js';
export { TscClock } from './tsc-clock.js';
export { TraceInfo } from './trace-info.js';
export type { FunctionInfo, ThreadInfo } from './trace-info.js';
export {
  CallBuilder,
  builderOptions,
  END_LOST,
  END_OPEN,
  END_RETURNED,
  END_UNWOUND,
} from './call-builder.js';
export type { CallEnd, CallVisitor } from './call-builder.js';
export { LaneMerger, lostRecord } from './lane-merger.js';
export type { MergedRecords } from './lane-merger.js';
export { CallObjects, endingOf } from './call.js';
export type { Call, CallEnding } from './call.js';
export { MAGIC } from './file-layout.js';
