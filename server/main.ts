#!/usr/bin/env node
import path from 'node:path'
import { Command } from 'commander'
import { type Logger, pino } from 'pino'
import { CodedError } from '../protocol/errors.ts'
import { Access, ROLES, type Role } from './access/access.ts'
import { systemClock } from './clock.ts'
import { prepareDataFolder, readSecretKey } from './data-folder.ts'
import { startHub } from './hub.ts'
import { readSettings, type Settings, SettingsError } from './settings.ts'
import type { Store } from './store/operations.ts'
import { openSqlite } from './store/sqlite.ts'

const VERSION = '0.1.0'
const say = (line: string) => process.stdout.write(`${line}\n`)

function withSettings(command: Command): Command {
  return command
    .option('--host <address>', 'address to listen on (FUSION_HUB_HOST; 127.0.0.1)')
    .option('--port <number>', 'port, 0 takes a free one (FUSION_HUB_PORT; 8101)')
    .option('--data <folder>', 'where everything is kept (FUSION_HUB_DATA; ./data)')
    .option('--log-level <level>', 'fatal, error, warn, info, debug, trace or silent (FUSION_HUB_LOG_LEVEL; info)')
}

async function serve(settings: Settings): Promise<void> {
  const logger: Logger = pino({ level: settings.logLevel })
  const hub = await startHub(settings, logger)
  say(`Fusion Hub ${VERSION} listening on http://${settings.host}:${hub.port}`)
  if (hub.newAdminToken) {
    say(`Administrator token: ${hub.newAdminToken}`)
    say(`It is shown once, and kept in ${path.join(settings.data, 'admin-token')}`)
  }
  const stop = () => {
    hub.stop().then(
      () => process.exit(0),
      (error: Error) => {
        logger.error({ err: error.message }, 'could not stop cleanly')
        process.exit(1)
      },
    )
  }
  process.once('SIGTERM', stop)
  process.once('SIGINT', stop)
}

/** Runs one action on the data folder's store; a hub may be running on it. */
async function withStore(settings: Settings, action: (access: Access, store: Store) => Promise<void>): Promise<void> {
  prepareDataFolder(settings.data)
  const clock = systemClock()
  const store = await openSqlite(path.join(settings.data, 'hub.db'), clock)
  try {
    await action(
      new Access({ store, clock, logger: pino({ level: 'silent' }), secretKey: readSecretKey(settings) }),
      store,
    )
  } finally {
    await store.close()
  }
}

const program = new Command('fusion-hub').version(VERSION).exitOverride()
withSettings(program.command('serve').description('run the hub')).action((flags) =>
  serve(readSettings(flags, process.env)),
)

const token = program.command('token').description('tokens of operators and programs')
withSettings(token.command('create <name>').requiredOption('--role <role>', Object.keys(ROLES).join(', '))).action(
  async (name: string, flags) => {
    if (!Object.hasOwn(ROLES, flags.role)) throw new SettingsError(`--role: one of ${Object.keys(ROLES).join(', ')}`)
    await withStore(readSettings(flags, process.env), async (access) => {
      const made = await access.createToken({ name, role: flags.role as Role, createdBy: 'command line' })
      say(made.token)
    })
  },
)
withSettings(token.command('list')).action((flags) =>
  withStore(readSettings(flags, process.env), async (_access, store) => {
    for (const row of await store.listTokens()) {
      say([row.token_id, row.role, row.revoked_at === null ? 'active' : 'revoked', row.name].join('\t'))
    }
  }),
)
withSettings(token.command('revoke <id>')).action((id: string, flags) =>
  withStore(readSettings(flags, process.env), async (_access, store) => {
    if (!(await store.revokeToken({ token_id: id }))) throw new SettingsError(`there is no active token ${id}`)
    say(`revoked ${id}`)
  }),
)
const enroll = program.command('enroll').description('enrolment tokens for agents')
withSettings(
  enroll
    .command('create')
    .option('--agent <id>', 'only for this agent id, which may exist')
    .option('--uses <n>', 'machines that may join with it', '1'),
).action((flags) => {
  const uses = Number(flags.uses)
  if (!Number.isInteger(uses) || uses < 1) throw new SettingsError('--uses: a whole number from 1 on')
  return withStore(readSettings(flags, process.env), async (access) => {
    const made = await access.createEnrollment({
      name: 'command line',
      uses,
      agentId: flags.agent,
      labels: {},
      createdBy: 'command line',
    })
    say(made.token)
  })
})

program.parseAsync().catch((error: Error & { code?: string; exitCode?: number }) => {
  // commander has already said what was wrong with a flag.
  if (error.code?.startsWith('commander.')) process.exit(error.exitCode === 0 ? 0 : 2)
  process.stderr.write(`fusion-hub: ${error.message}\n`)
  process.exit(error instanceof SettingsError || error instanceof CodedError ? 2 : 1)
})
