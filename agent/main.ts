#!/usr/bin/env node
import path from 'node:path'
import { Command } from 'commander'
import { pino } from 'pino'
import { CodedError } from '../protocol/errors.ts'
import { AGENT_VERSION, startAgent } from './agent.ts'
import { StateError } from './state.ts'

const program = new Command('fusion-agent')
  .version(AGENT_VERSION)
  .option('--hub <url>', 'where the hub is (FUSION_AGENT_HUB)', process.env.FUSION_AGENT_HUB ?? 'http://127.0.0.1:8101')
  .option('--enroll <token>', 'joins with this token, once (FUSION_AGENT_ENROLL)', process.env.FUSION_AGENT_ENROLL)
  .option('--config <file>', 'agent.yaml (FUSION_AGENT_CONFIG)', process.env.FUSION_AGENT_CONFIG ?? 'agent.yaml')
  .option(
    '--state <folder>',
    'identity and ledger (FUSION_AGENT_STATE; agent-state beside the configuration)',
    process.env.FUSION_AGENT_STATE,
  )
  .option(
    '--log-level <level>',
    'fatal to trace, or silent (FUSION_AGENT_LOG_LEVEL)',
    process.env.FUSION_AGENT_LOG_LEVEL ?? 'info',
  )
  .exitOverride()

async function main(): Promise<void> {
  program.parse()
  const flags = program.opts<{ hub: string; enroll?: string; config: string; state?: string; logLevel: string }>()
  if (!URL.canParse(flags.hub)) throw new StateError(`--hub: "${flags.hub}" is not a URL`)
  if (!['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'].includes(flags.logLevel))
    throw new StateError(`--log-level: "${flags.logLevel}" is not a level`)
  const configFile = path.resolve(flags.config)
  const logger = pino({ level: flags.logLevel })
  const agent = await startAgent({
    hub: flags.hub,
    enrollToken: flags.enroll,
    configFile,
    stateDir: path.resolve(flags.state ?? path.join(path.dirname(configFile), 'agent-state')),
    logger,
    refused(why) {
      process.stderr.write(`fusion-agent: the hub will not have this agent: ${why}\n`)
      process.exit(3)
    },
  })
  logger.info({ agent_id: agent.agentId }, 'agent started')
  process.on('SIGHUP', () => {
    try {
      agent.reload()
    } catch (error) {
      logger.error({ err: (error as Error).message }, 'the configuration stays as it was')
    }
  })
  const stop = () => void agent.stop().then(() => process.exit(0))
  process.once('SIGTERM', stop)
  process.once('SIGINT', stop)
}

main().catch((error: Error & { code?: string; exitCode?: number }) => {
  // commander has already said what was wrong with a flag.
  if (error.code?.startsWith('commander.')) process.exit(error.exitCode === 0 ? 0 : 2)
  process.stderr.write(`fusion-agent: ${error.message}\n`)
  process.exit(error instanceof StateError || error instanceof CodedError ? 2 : 1)
})
