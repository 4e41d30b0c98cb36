import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const children = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL')
})

export function temporaryFolder(): string {
  return mkdtempSync(path.join(tmpdir(), 'fusion-hub-test-'))
}

export function removeFolder(folder: string): void {
  rmSync(folder, { recursive: true, force: true })
}

export interface Process {
  readonly child: ChildProcess
  /** Everything it printed so far. */
  output(): string
  /** Resolves when a line of its output matches; rejects when it ends before. */
  line(pattern: RegExp): Promise<RegExpExecArray>
  kill(signal: NodeJS.Signals): Promise<number | null>
  readonly exited: Promise<number | null>
}

/** Starts `node` on a file of the project. */
export function start(file: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Process {
  const child = spawn(process.execPath, [path.join(ROOT, file), ...args], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  children.add(child)
  let text = ''
  const exited = once(child, 'exit').then(([code]) => {
    children.delete(child)
    return code as number | null
  })
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on('data', (chunk: Buffer) => {
      text += chunk.toString('utf8')
      child.emit('said')
    })
  }
  return {
    child,
    output: () => text,
    exited,
    async line(pattern) {
      for (;;) {
        const match = pattern.exec(text)
        if (match) return match
        if (child.exitCode !== null || child.signalCode !== null)
          throw new Error(`${file} ended with ${child.exitCode}: ${text}`)
        await Promise.race([once(child, 'said'), exited])
      }
    },
    async kill(signal) {
      child.kill(signal)
      return exited
    },
  }
}

export interface TestHub {
  process: Process
  url: string
  port: number
  data: string
  token: string
  call<T = Record<string, unknown>>(
    method: string,
    route: string,
    body?: unknown,
    headers?: Record<string, string>,
  ): Promise<{ status: number; body: T; headers: Headers }>
}

/** A real hub as a process, on a free port or the one given. */
export async function startHub(data: string, options: { port?: number; entry?: string } = {}): Promise<TestHub> {
  const started = start(options.entry ?? 'dist/server/main.js', [
    'serve',
    '--port',
    String(options.port ?? 0),
    '--data',
    data,
    '--log-level',
    'warn',
  ])
  const [, port] = await started.line(/listening on http:\/\/[^:]+:(\d+)/)
  const url = `http://127.0.0.1:${port}`
  const token = readFileSync(path.join(data, 'admin-token'), 'utf8').trim()
  return {
    process: started,
    url,
    port: Number(port),
    data,
    token,
    async call(method, route, body, headers = {}) {
      const response = await fetch(`${url}/api/v1/management${route}`, {
        method,
        headers: { authorization: `Bearer ${token}`, ...headers },
        ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
      })
      return { status: response.status, body: (await response.json()) as never, headers: response.headers }
    },
  }
}

export interface TestAgent {
  process: Process
  id: string
  folder: string
  tree: string
}

/** A real agent as a process over a small real tree; `folder` keeps its identity and ledger between starts. */
export async function startAgent(
  hub: TestHub,
  id: string,
  folder: string,
  options: { entry?: string; env?: NodeJS.ProcessEnv } = {},
): Promise<TestAgent> {
  const tree = path.join(folder, 'tree')
  const config = path.join(folder, 'agent.yaml')
  mkdirSync(path.join(tree, 'sub'), { recursive: true })
  writeFileSync(path.join(tree, 'a.txt'), 'hello')
  writeFileSync(path.join(tree, 'sub', 'b.txt'), 'world!')
  writeFileSync(
    config,
    [
      `agent_id: ${id}`,
      'labels: {site: berlin}',
      `sources: {docs: {driver: fs, uri: ${tree}}}`,
      'senders: {hub: {driver: fusion, uri: "http://127.0.0.1:8102", credential: {key: fk_docs}}}',
      'pipes: {docs-sync: {source: docs, sender: hub}}',
      '',
    ].join('\n'),
  )
  const enrolled = await hub.call<{ token: string }>('POST', '/enrollments', {})
  const args = ['--hub', hub.url, '--enroll', enrolled.body.token, '--config', config]
  const started = start(options.entry ?? 'dist/agent/main.js', args, options.env)
  await started.line(/link ready/)
  return { process: started, id, folder, tree }
}
