import path from 'node:path'
import type { Logger } from 'pino'
import { type CommandType, commandTypes } from '../protocol/commands.ts'
import { uuidv7 } from '../protocol/ids.ts'
import { Access } from './access/access.ts'
import { createApi } from './api/app.ts'
import { LocalBus } from './bus/local.ts'
import { framedRoute } from './carriers/framed-socket.ts'
import { operatorSocket } from './carriers/operator-socket.ts'
import { agentSocket } from './carriers/websocket.ts'
import { systemClock } from './clock.ts'
import { Commands } from './commands/commands.ts'
import { lockDataFolder, prepareDataFolder, readSecretKey, writePrivate } from './data-folder.ts'
import { Fleet } from './fleet/fleet.ts'
import { Gateway } from './gateway.ts'
import { LIMITS } from './limits.ts'
import type { Settings } from './settings.ts'
import type { ExecutionChange } from './store/operations/lanes.ts'
import { openSqlite } from './store/sqlite.ts'
import { WebEngine } from './web/engine.ts'
import { honoHandler } from './web/hono-bridge.ts'

export interface RunningHub {
  port: number
  /** Only on the run that made it. */
  newAdminToken: string | null
  /** Stops accepting, tells agents, finishes commits. */
  stop(): Promise<void>
}

/** The composition root: builds the parts and joins them. `extraTypes` are command types of the owner's own. */
export async function startHub(
  settings: Settings,
  logger: Logger,
  extraTypes: readonly CommandType[] = [],
): Promise<RunningHub> {
  prepareDataFolder(settings.data)
  const lock = lockDataFolder(settings.data)
  const clock = systemClock()
  const store = await openSqlite(path.join(settings.data, 'hub.db'), clock)
  await store.resetLinks()
  const access = new Access({ store, clock, logger, secretKey: readSecretKey(settings) })
  const newAdminToken = await ensureAdministrator(access, settings, (await store.listTokens()).length === 0)

  const bus = new LocalBus<ExecutionChange>()
  const fleet = new Fleet(clock)
  const parts = { store, fleet, bus, logger, clock }
  const gateway = new Gateway({ ...parts, replica: uuidv7() })
  const commands = new Commands({ ...parts, types: commandTypes(extraTypes) })

  let draining = false
  const engine = new WebEngine()
  logger.info({ engine: engine.why }, 'web engine')
  const authenticate = (bearer: string | undefined) => access.agentOf(bearer)
  engine.socket(framedRoute(agentSocket({ acceptor: gateway, authenticate, clock })))
  engine.socket(framedRoute(operatorSocket({ ...parts, access, commands })))
  engine.http('/*', honoHandler(createApi({ ...parts, access, commands, draining: () => draining })))
  const port = await engine.listen(settings.host, settings.port)

  const startedAt = clock.now()
  let sweeping = false
  const timer = setInterval(() => {
    gateway.checkSilence(clock.now())
    // While the store is away the sweep waits with it (R9).
    if (sweeping) return
    sweeping = true
    commands
      .sweep(startedAt)
      .catch((error: Error) => logger.error({ err: error.message }, 'sweep failed'))
      .finally(() => {
        sweeping = false
      })
  }, LIMITS.sweepMs)

  return {
    port,
    newAdminToken,
    async stop() {
      draining = true
      clearInterval(timer)
      engine.stopListening()
      gateway.drain()
      // Closing the links queues their last writes; closing the store waits for them.
      await store.close()
      engine.close()
      lock.release()
    },
  }
}

async function ensureAdministrator(access: Access, settings: Settings, first: boolean): Promise<string | null> {
  const request = { name: 'administrator', role: 'administrator', createdBy: 'first run' } as const
  if (settings.adminToken !== undefined) {
    await access.createToken({ ...request, fixed: settings.adminToken })
    return null
  }
  if (!first) return null
  const { token } = await access.createToken(request)
  writePrivate(path.join(settings.data, 'admin-token'), `${token}\n`)
  return token
}
