import type { Finding } from '../../index.js';
import { marked, plain, text } from '../../text/index.js';
import type { RegisterCommand } from './index.js';

const MARKS: Readonly<Record<Finding['state'], string>> = {
  ok: 'ok     ',
  limited: 'limited',
  missing: 'MISSING',
};

export const registerDoctor: RegisterCommand = (program, terminal, setStatus) => {
  program
    .command('doctor')
    .description('what works on this machine and what does not, with the remedy')
    .action(async () => {
      const { examineMachine } = await import('../../index.js');
      const findings = examineMachine();
      const { green, yellow, red } = terminal.colors;
      const paint = { ok: green, limited: yellow, missing: red };
      for (const { what, state, found, remedy } of findings) {
        terminal.data(text`${marked(paint[state], plain(MARKS[state]))}  ${plain(what)}: ${plain(found)}\n`);
        if (remedy !== undefined) terminal.data(text`         ${plain(remedy)}\n`);
      }
      if (findings.some(({ state }) => state === 'missing')) setStatus(1);
    });
};
