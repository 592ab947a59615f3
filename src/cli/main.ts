#!/usr/bin/env node
// Before anything is loaded: Node opens its inspector for SIGUSR1, to whoever reaches the machine's ports, as long as nobody else wants
// the signal. Sessions answer it with their status; nothing else does.
process.on('SIGUSR1', () => undefined);

const { main } = await import('./program.js');
process.exitCode = await main();
