import type { Timeline } from './timeline.js';
export function pageOf(timeline: Timeline): string { return timeline.heading; }
