// Colours of a terminal. A library for that would look at process.stdout, which changes the stream for everybody who shares it.

/** Marks up text, or is the identity. */
type Paint = (text: string) => string;

/** Colours for one stream: real on a terminal, identity functions in a pipe. */
export interface Colors {
  readonly bold: Paint;
  readonly dim: Paint;
  readonly red: Paint;
  readonly green: Paint;
  readonly yellow: Paint;
  readonly magenta: Paint;
}

/** Parameters of Select Graphic Rendition that begin and end each: ECMA-48, 8.3.117. */
const CODES = {
  bold: [1, 22],
  dim: [2, 22],
  red: [31, 39],
  green: [32, 39],
  yellow: [33, 39],
  magenta: [35, 39],
} as const;

function paint(name: keyof typeof CODES, isColored: boolean): Paint {
  if (!isColored) return (text) => text;
  const [begin, end] = CODES[name].map((code) => `\u001b[${code}m`);
  // What ends a part within ends the whole, which so begins again.
  return (text) => `${begin}${text.replaceAll(end, `${end}${begin}`)}${end}`;
}

export function makeColors(isColored: boolean): Colors {
  return {
    bold: paint('bold', isColored),
    dim: paint('dim', isColored),
    red: paint('red', isColored),
    green: paint('green', isColored),
    yellow: paint('yellow', isColored),
    magenta: paint('magenta', isColored),
  };
}
