import { randomUUID } from 'node:crypto'
import { cpus, freemem, hostname, totalmem, uptime } from 'node:os'
import type { Logger } from 'pino'
import { type CommandType, commandTypes } from '../protocol/commands.ts'
import type { HostStatus } from '../protocol/messages.ts'
import { readAgentConfig } from './config.ts'
import { Executor } from './executor.ts'
import { builtInHandlers, type Handlers } from './handlers.ts'
import { Ledger } from './ledger.ts'
import { Link } from './link.ts'
import { Pipes } from './pipes.ts'
import { loadIdentity, lockState } from './state.ts'

export const AGENT_VERSION = '0.1.0'
/** `status` at most so often (protocol.md). */
const STATUS_MS = 5_000

export interface AgentOptions {
  hub: string
  enrollToken?: string | undefined
  configFile: string
  stateDir: string
  logger: Logger
  /** Command types of the owner's own, each with its handler. */
  types?: readonly CommandType[]
  handlers?: Handlers
  /** The hub will not have this agent again. */
  refused(why: string): void
}

export interface RunningAgent {
  agentId: string
  reload(): void
  stop(): Promise<void>
}

/** Runs an agent: takes its state directory, enrols where it has to, and keeps its link to the hub. */
export async function startAgent(options: AgentOptions): Promise<RunningAgent> {
  const { logger } = options
  let config = readAgentConfig(options.configFile)
  await lockState(options.stateDir)
  const identity = await loadIdentity(options.stateDir, {
    hub: options.hub,
    token: options.enrollToken,
    agentId: config.settings.agent_id,
    labels: config.settings.labels,
  })
  const ledger = await Ledger.open(options.stateDir)
  let statusDue = true
  const pipes = new Pipes(() => {
    statusDue = true
  })
  const reload = () => {
    config = readAgentConfig(options.configFile)
    return pipes.apply(config)
  }
  const handlers: Handlers = { ...builtInHandlers({ config: () => config, reload, pipes }), ...options.handlers }
  const executor = new Executor({
    ledger,
    types: commandTypes(options.types),
    handlers,
    logger,
    send: (message) => link.send(message),
  })
  const bootId = randomUUID()
  const link = new Link({
    url: options.hub,
    credential: identity.credential,
    ledger,
    executor,
    logger,
    hello: () => ({
      t: 'hello',
      agent_id: identity.agent_id,
      boot_id: bootId,
      ledger_id: ledger.ledgerId,
      last_link_epoch: ledger.lastLinkEpoch,
      max_seq: ledger.maxSeq,
      version: AGENT_VERSION,
      hostname: hostname(),
      platform: `${process.platform} ${process.arch}`,
      labels: config.settings.labels,
      command_types: Object.keys(handlers),
      config: { hash: config.hash },
      pipes: pipes.statuses(),
      open_count: ledger.open().length,
    }),
    configHash: () => config.hash,
    refused: options.refused,
    ready: () => {
      statusDue = true
    },
  })
  pipes.apply(config)
  await executor.recover()
  link.connect()
  const cpu = cpuMeter()
  const timer = setInterval(() => {
    link.send({
      t: 'status',
      host: { cpu: cpu(), memory: 1 - freemem() / totalmem(), uptime_s: uptime() },
      ...(statusDue ? { pipes: pipes.statuses() } : {}),
    })
    statusDue = false
  }, STATUS_MS)
  return {
    agentId: identity.agent_id,
    reload() {
      reload()
    },
    async stop() {
      clearInterval(timer)
      pipes.stopAll()
      await link.close('the agent was stopped')
      await ledger.close()
    },
  }
}

/** Share of all cores in use since the call before. */
function cpuMeter(): () => HostStatus['cpu'] {
  const read = () => {
    const times = cpus().map((core) => core.times)
    const idle = times.reduce((sum, t) => sum + t.idle, 0)
    const all = times.reduce((sum, t) => sum + t.idle + t.user + t.sys + t.nice + t.irq, 0)
    return { idle, all }
  }
  let last = read()
  return () => {
    const now = read()
    const share = now.all === last.all ? 0 : 1 - (now.idle - last.idle) / (now.all - last.all)
    last = now
    return Math.min(1, Math.max(0, share))
  }
}
