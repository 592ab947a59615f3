// A cut of what `npm run test:long` does: jobs of real programs with every function of every module traced.
import { after, test } from 'node:test';
import { USUAL_JOBS, jobPlace, removePlace, runsAlike } from './real-jobs.test.support.js';

const place = jobPlace();
after(() => {
  removePlace(place);
});

for (const [i, job] of USUAL_JOBS.entries()) {
  // From inside every second one, from outside the others: all ways would take minutes.
  const way = i % 2 === 0 ? [] : ['--inside'];
  test(`with every function of every module traced ${way.join('')}: ${job.name}`, () => {
    runsAlike(job, place, way);
  });
}
