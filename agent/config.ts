import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import path from 'node:path'
import { isMap, isScalar, LineCounter, parseDocument, visit } from 'yaml'
import { z } from 'zod'
import { CodedError } from '../protocol/errors.ts'
import { agentIdSchema } from '../protocol/ids.ts'
import { labelsSchema } from '../protocol/messages.ts'

const driven = z.looseObject({
  driver: z.string().min(1),
  uri: z.string().min(1),
  disabled: z.boolean().default(false),
})

/** agent.yaml as stock Fustor's, with `labels` of ours. Keys that only a driver knows are left to it. */
const agentConfigSchema = z.looseObject({
  agent_id: agentIdSchema.default(() =>
    hostname()
      .replace(/[^A-Za-z0-9_.-]/g, '-')
      .slice(0, 64),
  ),
  labels: labelsSchema.default({}),
  sources: z.record(z.string(), driven).default({}),
  senders: z.record(z.string(), driven).default({}),
  pipes: z
    .record(z.string(), z.looseObject({ source: z.string(), sender: z.string(), disabled: z.boolean().default(false) }))
    .default({}),
})
type AgentSettings = z.infer<typeof agentConfigSchema>

export interface AgentConfig {
  settings: AgentSettings
  /** SHA-256 of the raw bytes. */
  hash: string
  text: string
  fileName: string
}

const MAX_BYTES = 262_144
const SECRET = /^(key|passwd|password|secret|token|passphrase|api_key|access_key|secret_key)$/i

/** Reads and checks agent.yaml. Throws `bad_config` that names every problem with file and line. */
export function readAgentConfig(file: string): AgentConfig {
  let raw: Buffer
  try {
    raw = readFileSync(file)
  } catch (error) {
    throw new CodedError('bad_config', `${file}: ${(error as Error).message}`)
  }
  if (raw.length > MAX_BYTES) throw new CodedError('bad_config', `${file}: over ${MAX_BYTES} bytes`)
  const text = raw.toString('utf8')
  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines, uniqueKeys: true })
  const problems = document.errors.map(
    (error) => `${file}:${lines.linePos(error.pos[0]).line}: ${error.message.split('\n')[0]}`,
  )
  if (problems.length > 0) throw new CodedError('bad_config', problems.join('\n'))
  const lineOf = (keys: readonly PropertyKey[]) => {
    for (let depth = keys.length; depth > 0; depth--) {
      const node = document.getIn(keys.slice(0, depth), true) as { range?: [number, number, number] } | undefined
      if (node?.range) return lines.linePos(node.range[0]).line
    }
    return 1
  }
  const parsed = agentConfigSchema.safeParse(document.toJS({ maxAliasCount: 100 }) ?? {})
  if (!parsed.success) {
    throw new CodedError(
      'bad_config',
      parsed.error.issues
        .map((issue) => `${file}:${lineOf(issue.path)}: ${issue.path.join('.')}: ${issue.message}`)
        .join('\n'),
    )
  }
  const found = referenceProblems(parsed.data).map((problem) => `${file}:${lineOf(problem.path)}: ${problem.message}`)
  if (found.length > 0) throw new CodedError('bad_config', found.join('\n'))
  return {
    settings: parsed.data,
    hash: createHash('sha256').update(raw).digest('hex'),
    text,
    fileName: path.basename(file),
  }
}

function referenceProblems(settings: AgentSettings): { path: string[]; message: string }[] {
  const problems: { path: string[]; message: string }[] = []
  const pairs = new Map<string, string>()
  for (const [id, pipe] of Object.entries(settings.pipes)) {
    if (!Object.hasOwn(settings.sources, pipe.source))
      problems.push({
        path: ['pipes', id, 'source'],
        message: `Agent Pipe '${id}' references unknown Source '${pipe.source}'`,
      })
    if (!Object.hasOwn(settings.senders, pipe.sender))
      problems.push({
        path: ['pipes', id, 'sender'],
        message: `Agent Pipe '${id}' references unknown Sender '${pipe.sender}'`,
      })
    const pair = JSON.stringify([pipe.source, pipe.sender])
    const twin = pairs.get(pair)
    if (twin !== undefined)
      problems.push({
        path: ['pipes', id],
        message: `Redundant Agent Pipe: ${twin} and ${id} share same Source/Sender.`,
      })
    pairs.set(pair, id)
  }
  return problems
}

/** The text with the values of secret keys replaced, everything else as it was. */
export function maskSecrets(text: string): string {
  const document = parseDocument(text)
  const cuts: [number, number][] = []
  visit(document, {
    Pair(_key, pair) {
      const secret = isScalar(pair.key) && SECRET.test(String(pair.key.value))
      const value = pair.value as { range?: [number, number, number] } | null
      if (secret && !isMap(pair.value) && value?.range) cuts.push([value.range[0], value.range[1]])
    },
  })
  let masked = text
  for (const [start, end] of cuts.sort((a, b) => b[0] - a[0]))
    masked = `${masked.slice(0, start)}"***"${masked.slice(end)}`
  return masked
}
