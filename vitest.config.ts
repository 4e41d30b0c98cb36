import { defineConfig } from 'vitest/config'

const project = (name: string, options: object = {}) => ({
  test: { name, include: [`test/${name}/**/*.test.ts`], testTimeout: 30_000, hookTimeout: 60_000, ...options },
})

export default defineConfig({
  test: {
    // Two cores: more workers than that only make processes under test wait for each other.
    maxWorkers: 2,
    projects: [
      project('unit'),
      project('contract'),
      project('integration'),
      project('fault', { testTimeout: 600_000, fileParallelism: false }),
    ],
  },
})
