// @ts-check
import { z } from 'zod'

/** A command whose effect shows when it happens twice. Hub and agent of the fault tests both add it. */
export const counterType = {
  name: 'counter',
  lane: /** @type {const} */ ('work'),
  summary: 'Leaves a begin and an end in a log that neither hub nor agent can touch.',
  args: z.strictObject({}),
  result: z.object({ done: z.boolean() }),
  timeoutS: 60,
  repeatable: false,
  supersedeKey: () => null,
}
