import { randomBytes } from 'node:crypto'
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  statSync,
  writeSync,
} from 'node:fs'
import { createServer } from 'node:net'
import path from 'node:path'
import { CodedError } from '../protocol/errors.ts'
import { agentIdSchema } from '../protocol/ids.ts'
import { enrollResponseSchema } from '../protocol/messages.ts'

export interface Identity {
  agent_id: string
  credential: string
}

/** A state directory that cannot be used: one clear line, exit code 2. */
export class StateError extends Error {}

/**
 * Makes the state directory and keeps a second process off it. On Linux the lock is an abstract socket named after the
 * directory's inode: the system drops it with the process, however that ends.
 */
export async function lockState(folder: string): Promise<void> {
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  if (process.platform !== 'linux') return
  const { dev, ino } = statSync(folder)
  const server = createServer()
  await new Promise<void>((resolve, reject) => {
    server.once('error', () => reject(new StateError(`another agent runs on the state directory ${folder}`)))
    server.listen(`\0fusion-agent-${dev}-${ino}`, resolve)
  })
  server.unref()
}

/** Writes a private file that is whole or not there. */
function writeDurably(file: string, text: string): void {
  const fd = openSync(`${file}.tmp`, 'w', 0o600)
  writeSync(fd, text)
  fsyncSync(fd)
  closeSync(fd)
  renameSync(`${file}.tmp`, file)
  const folder = openSync(path.dirname(file), 'r')
  fsyncSync(folder)
  closeSync(folder)
}

/** The identity on disk; or enrols with the token. The key is kept before it is sent, so that a lost answer can be asked for again. */
export async function loadIdentity(
  folder: string,
  request: { hub: string; token: string | undefined; agentId: string; labels: Record<string, string> },
): Promise<Identity> {
  const file = path.join(folder, 'identity.json')
  if (existsSync(file)) {
    const { agent_id, credential } = enrollResponseSchema.parse(JSON.parse(readFileSync(file, 'utf8')))
    return { agent_id, credential }
  }
  if (request.token === undefined)
    throw new StateError('this agent is not enrolled; give it --enroll TOKEN (from "fusion-hub enroll create")')
  const keyFile = path.join(folder, 'enroll.key')
  if (!existsSync(keyFile)) writeDurably(keyFile, randomBytes(32).toString('hex'))
  const body = {
    token: request.token,
    agent_id: agentIdSchema.parse(request.agentId),
    labels: request.labels,
    key: readFileSync(keyFile, 'utf8'),
  }
  const response = await fetch(new URL('/api/v1/agent/enroll', request.hub), {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  })
  const answer = (await response.json()) as { detail?: string; code?: string }
  if (!response.ok)
    throw new CodedError('invalid_enrollment', `the hub did not enrol this agent: ${answer.detail ?? response.status}`)
  const identity = enrollResponseSchema.parse(answer)
  writeDurably(file, JSON.stringify(identity))
  return identity
}
