import { realpath } from 'node:fs/promises'
import path from 'node:path'
import { CodedError, type ErrorCode } from '../protocol/errors.ts'
import type { Progress } from '../protocol/messages.ts'
import { type AgentConfig, maskSecrets } from './config.ts'
import type { Pipes, ReloadReport } from './pipes.ts'
import { walk } from './sources/fs.ts'

/** What a handler works with. */
export interface HandlerContext {
  execId: string
  /** Aborted by a cancel or the command's timeout. */
  signal: AbortSignal
  progress(progress: Omit<Progress, 'n'>): void
}

export interface Handler {
  /** The result, as its type's schema has it. Throws a Rejection where it will not, a CodedError where it failed. */
  run(args: Record<string, unknown>, context: HandlerContext): Promise<unknown>
}

export type Handlers = Readonly<Record<string, Handler>>

/** The agent will not run it: ends `rejected`, not `failed`. */
export class Rejection extends CodedError {}

export interface AgentParts {
  config(): AgentConfig
  reload(): ReloadReport
  pipes: Pipes
}

const PROGRESS_MS = 250

/** What this agent can do with its own parts. `update_config` and `upgrade` are not here yet, so hello does not name them. */
export function builtInHandlers(parts: AgentParts): Handlers {
  return {
    scan: { run: (args, context) => scan(parts.config(), args, context) },
    report_config: {
      async run(args) {
        const { text, hash } = parts.config()
        const filename = String(args.filename ?? 'default.yaml')
        if (filename !== 'default.yaml')
          throw new Rejection('unknown_file', `this agent has one file, known as default.yaml, and no "${filename}"`)
        return { filename, config_yaml: maskSecrets(text), config_hash: hash }
      },
    },
    reload_config: {
      async run() {
        const pipes = parts.reload()
        return { config_hash: parts.config().hash, pipes }
      },
    },
    start_pipe: pipeHandler('start', parts.pipes),
    stop_pipe: pipeHandler('stop', parts.pipes),
  }
}

function pipeHandler(action: 'start' | 'stop', pipes: Pipes): Handler {
  return {
    async run(args) {
      const id = String(args.pipe_id)
      const state = action === 'start' ? pipes.start(id) : pipes.stop(id)
      if (state === undefined) throw new Rejection('unknown_pipe', `this agent has no pipe "${id}"`)
      if (action === 'start' && state !== 'RUNNING') throw new CodedError('pipe_failed', `the pipe "${id}" is ${state}`)
      return { pipe_id: id, state }
    },
  }
}

async function scan(config: AgentConfig, args: Record<string, unknown>, context: HandlerContext): Promise<unknown> {
  const target = await resolveScanPath(
    config,
    String(args.path),
    args.pipe_id === undefined ? undefined : String(args.pipe_id),
  )
  const startedAt = performance.now()
  let toldAt = startedAt
  try {
    const { skipped, ...counts } = await walk(target, {
      recursive: args.recursive !== false,
      signal: context.signal,
      onProgress(now) {
        if (performance.now() - toldAt < PROGRESS_MS) return
        toldAt = performance.now()
        context.progress({
          phase: 'walking',
          counters: { files: now.files, directories: now.directories, bytes: now.bytes },
        })
      },
    })
    return { ...counts, events: 0, elapsed_ms: Math.round(performance.now() - startedAt), skipped }
  } catch (error) {
    throw asPathError(error, String(args.path))
  }
}

/** The path rules of `scan` (commands.md, The types). Both ends are resolved, so that no link leads out. */
async function resolveScanPath(config: AgentConfig, asked: string, pipeId: string | undefined): Promise<string> {
  const { sources, pipes } = config.settings
  if (asked.includes('\0') || asked.split('/').includes('..'))
    throw new Rejection('path_outside_sources', 'the path must not contain ".." or NUL')
  const pipe = pipeId === undefined ? undefined : pipes[pipeId]
  if (pipeId !== undefined && !pipe) throw new Rejection('unknown_pipe', `this agent has no pipe "${pipeId}"`)
  const candidates = Object.entries(sources).filter(
    ([id, source]) => source.driver === 'fs' && (!pipe || pipe.source === id),
  )
  const inside = candidates.find(([, source]) => isInside(source.uri, asked))
  const root = inside?.[1].uri ?? (candidates.length === 1 ? candidates[0]?.[1].uri : undefined)
  if (root === undefined) {
    if (candidates.length === 0) throw new Rejection('path_outside_sources', 'this agent has no file source')
    throw new Rejection('ambiguous_path', `a path relative to one of ${candidates.length} sources needs pipe_id`)
  }
  const target = inside ? asked : path.join(root, asked)
  try {
    const [realRoot, realTarget] = await Promise.all([realpath(root), realpath(target)])
    if (isInside(realRoot, realTarget)) return realTarget
  } catch (error) {
    throw asPathError(error, asked)
  }
  throw new Rejection('path_outside_sources', 'a link on the path leads out of the source')
}

function isInside(root: string, target: string): boolean {
  const base = path.resolve(root)
  return (
    path.isAbsolute(target) &&
    (path.resolve(target) === base || path.resolve(target).startsWith(base === '/' ? '/' : `${base}/`))
  )
}

function asPathError(error: unknown, asked: string): Error {
  const codes: Record<string, ErrorCode> = {
    ENOENT: 'path_not_found',
    ENOTDIR: 'path_not_found',
    EACCES: 'path_unreadable',
    EPERM: 'path_unreadable',
    ELOOP: 'path_not_found',
  }
  const code = codes[String((error as NodeJS.ErrnoException).code)]
  return code ? new CodedError(code, `${asked}: ${(error as Error).message}`) : (error as Error)
}
