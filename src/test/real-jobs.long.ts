// All jobs in all ways: npm run test:long.
import { after, test } from 'node:test';
import {
  FURTHER_JOBS,
  JOB_WAYS,
  USUAL_JOBS,
  jobPlace,
  removePlace,
  runsAlike,
} from './real-jobs.test.support.js';

const place = jobPlace();
after(() => {
  removePlace(place);
});

for (const job of [...USUAL_JOBS, ...FURTHER_JOBS])
  for (const way of JOB_WAYS)
    void test(`with every function of every module traced ${way.join(' ')}: ${job.name}`, () => {
      runsAlike(job, place, way);
    });
