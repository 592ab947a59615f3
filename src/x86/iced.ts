// iced-x86, the one door to it. By `require`: the package is CommonJS, a megabyte of it, and `import` would search all of that
// for what it exports, which takes longer than to load it.
import { createRequire } from 'node:module';
import type * as Iced from 'iced-x86';

const iced = createRequire(import.meta.url)('iced-x86') as typeof Iced;

export const {
  BlockEncoder,
  BlockEncoderOptions,
  Code,
  ConditionCode,
  Decoder,
  DecoderOptions,
  FlowControl,
  Formatter,
  FormatterSyntax,
  Instruction,
  MemoryOperand,
  Mnemonic,
  OpKind,
  Register,
  RegisterExt,
} = iced;
export type Code = Iced.Code;
export type Decoder = Iced.Decoder;
export type Instruction = Iced.Instruction;
export type MemoryOperand = Iced.MemoryOperand;
export type Register = Iced.Register;
