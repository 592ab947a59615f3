import type { CallVisitor } from '../recording/index.js';
import { concat, type Text } from '../text/index.js';

/** Where an output writes: pieces of text of any length, in order. A terminal may show them: names in them are escaped. */
export type TextSink = (text: Text) => void;

/** One format. It is fed with calls and writes as it goes; `finish` writes what can only be known at the end. */
export interface TextOutput extends CallVisitor {
  finish(): void;
}

/** How an output marks up text for a terminal; each may be the identity. */
export interface Palette {
  readonly dim: (text: string) => string;
  readonly yellow: (text: string) => string;
  readonly red: (text: string) => string;
  readonly bold: (text: string) => string;
}

const plain = (text: string): string => text;
export const NO_COLORS: Palette = { dim: plain, yellow: plain, red: plain, bold: plain };

/** Pieces of text are joined until there are this many characters: one write for some thousand lines. */
const BATCH_CHARACTERS = 1 << 16;

/** Joins small pieces of text into large ones. */
export class TextBatch {
  readonly #sink: TextSink;
  #pieces: Text[] = [];
  #characters = 0;

  constructor(sink: TextSink) {
    this.#sink = sink;
  }

  readonly write: TextSink = (text) => {
    this.#pieces.push(text);
    this.#characters += text.length;
    if (this.#characters >= BATCH_CHARACTERS) this.flush();
  };

  flush(): void {
    const pieces = this.#pieces;
    this.#pieces = [];
    this.#characters = 0;
    if (pieces.length > 0) this.#sink(concat(pieces));
  }
}
