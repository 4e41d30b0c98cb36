// @ts-check
import { pino } from 'pino'
import { startHub } from '../../../dist/server/hub.js'
import { readSettings } from '../../../dist/server/settings.js'
import { counterType } from './counter.mjs'

const flag = (/** @type {string} */ name) => process.argv[process.argv.indexOf(name) + 1]
const settings = readSettings({ port: flag('--port'), data: flag('--data'), logLevel: 'warn' }, {})
const hub = await startHub(settings, pino({ level: 'warn' }), [counterType])
process.stdout.write(`listening on http://127.0.0.1:${hub.port}\n`)
