// @ts-check
import { closeSync, fsyncSync, openSync, writeSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { pino } from 'pino'
import { startAgent } from '../../../dist/agent/agent.js'
import { counterType } from './counter.mjs'

const flag = (/** @type {string} */ name) => process.argv[process.argv.indexOf(name) + 1] ?? ''
const log = process.env.HANDLER_LOG ?? ''

/** @param {string} what @param {string} execId */
function record(what, execId) {
  const fd = openSync(log, 'a')
  writeSync(fd, `${what} ${execId}\n`)
  fsyncSync(fd)
  closeSync(fd)
}

await startAgent({
  hub: flag('--hub'),
  enrollToken: flag('--enroll'),
  configFile: flag('--config'),
  stateDir: path.join(path.dirname(flag('--config')), 'agent-state'),
  logger: pino({ level: 'info' }),
  types: [counterType],
  handlers: {
    counter: {
      async run(_args, { execId }) {
        record('begin', execId)
        await pause(Math.random() * 20)
        record('end', execId)
        return { done: true }
      },
    },
  },
  refused(why) {
    process.stderr.write(`refused: ${why}\n`)
    process.exit(3)
  },
})
