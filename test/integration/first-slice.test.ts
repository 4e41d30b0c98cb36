import { cpSync, statSync } from 'node:fs'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { WebSocket } from 'ws'
import {
  removeFolder,
  start,
  startAgent,
  startHub,
  type TestAgent,
  type TestHub,
  temporaryFolder,
} from '../support/processes.ts'

interface Answer {
  command_id: string
  code: string
  detail: string
  execution: {
    state: string
    result: Record<string, unknown> | null
    error: { code: string; may_have_run: boolean } | null
  }
}

describe('a hub and an agent as processes', () => {
  const folder = temporaryFolder()
  let hub: TestHub
  let agent: TestAgent
  const command = (body: unknown, headers = {}) =>
    hub.call<Answer>('POST', '/agents/nas-07/command?wait=10', body, headers)

  beforeAll(async () => {
    hub = await startHub(path.join(folder, 'data'))
    agent = await startAgent(hub, 'nas-07', path.join(folder, 'agent'))
  })
  afterAll(async () => {
    await agent.process.kill('SIGKILL')
    await hub.process.kill('SIGKILL')
    removeFolder(folder)
  })

  it('keeps the administrator token where only its owner reads it', () => {
    expect(statSync(path.join(hub.data, 'admin-token')).mode & 0o777).toBe(0o600)
  })

  it('scans a real directory and answers what is there', async () => {
    const { status, body } = await command({ type: 'scan', path: '/' })
    expect(status).toBe(200)
    expect(body.execution).toMatchObject({
      state: 'succeeded',
      result: { files: 2, directories: 2, bytes: 11, events: 0 },
    })
  })

  it('takes an absolute path inside a source and refuses one outside', async () => {
    expect((await command({ type: 'scan', path: path.join(agent.tree, 'sub') })).body.execution.result).toMatchObject({
      files: 1,
      bytes: 6,
    })
    expect((await command({ type: 'scan', path: '../..' })).body.execution).toMatchObject({
      state: 'rejected',
      error: { code: 'path_outside_sources' },
    })
    expect((await command({ type: 'scan', path: '/nix' })).body.execution).toMatchObject({
      state: 'failed',
      error: { code: 'path_not_found' },
    })
  })

  it('reports the configuration without its secrets', async () => {
    const { body } = await command({ type: 'report_config' })
    expect(body.execution.state).toBe('succeeded')
    expect(body.execution.result?.config_yaml).toContain('key: "***"')
    expect(JSON.stringify(body)).not.toContain('fk_docs')
  })

  it('stops and starts a pipe and reloads the configuration', async () => {
    expect((await command({ type: 'stop_pipe', pipe_id: 'docs-sync' })).body.execution.result).toEqual({
      pipe_id: 'docs-sync',
      state: 'STOPPED',
    })
    expect((await command({ type: 'reload_config' })).body.execution.result).toMatchObject({
      pipes: { started: [], stopped: [], unchanged: ['docs-sync'] },
    })
    expect((await command({ type: 'start_pipe', pipe_id: 'docs-sync' })).body.execution.result).toEqual({
      pipe_id: 'docs-sync',
      state: 'RUNNING',
    })
    expect((await command({ type: 'stop_pipe', pipe_id: 'none' })).body.execution).toMatchObject({
      state: 'rejected',
      error: { code: 'unknown_pipe' },
    })
  })

  it('rejects what the agent cannot do yet', async () => {
    expect((await command({ type: 'upgrade', version: '2' })).body.execution).toMatchObject({
      state: 'rejected',
      error: { code: 'unsupported', may_have_run: false },
    })
  })

  it.each([
    ['an unknown type', { type: 'nope' }, 422, 'unknown_command_type'],
    ['bad arguments', { type: 'scan' }, 422, 'bad_args'],
    ['a body that is no JSON', '{', 400, 'bad_json'],
  ])('refuses %s', async (_name, body, status, code) => {
    const answer = await command(body)
    expect([answer.status, answer.body.code]).toEqual([status, code])
  })

  it('knows no agent that it has never seen', async () => {
    const answer = await hub.call<Answer>('POST', '/agents/ghost/command', { type: 'scan', path: '/' })
    expect([answer.status, answer.body.detail]).toEqual([404, "No active sessions found for agent 'ghost'"])
  })

  it('answers the same idempotency key with the first command, and another body with 409', async () => {
    const first = await command({ type: 'scan', path: '/' }, { 'idempotency-key': 'k1' })
    const again = await command({ type: 'scan', path: '/' }, { 'idempotency-key': 'k1' })
    expect(again.body.command_id).toBe(first.body.command_id)
    const other = await command({ type: 'scan', path: '/sub' }, { 'idempotency-key': 'k1' })
    expect([other.status, other.body.code]).toEqual([409, 'idempotency_conflict'])
  })

  it('refuses a missing and a wrong token, and a viewer who wants to act', async () => {
    const agents = `${hub.url}/api/v1/management/agents`
    expect((await fetch(agents)).status).toBe(401)
    expect((await fetch(agents, { headers: { 'x-management-key': 'wrong' } })).status).toBe(403)
    const viewer = await hub.call<{ token: string }>('POST', '/tokens', { name: 'eve', role: 'viewer' })
    const headers = { authorization: `Bearer ${viewer.body.token}` }
    expect((await fetch(agents, { headers })).status).toBe(200)
    const denied = await hub.call<Answer>('POST', '/agents/nas-07/command', { type: 'scan', path: '/' }, headers)
    expect([denied.status, denied.body.code]).toEqual([403, 'missing_scope'])
    const audit = await hub.call<{ audit: { actor: string; outcome: string }[] }>('GET', '/audit')
    expect(audit.body.audit).toContainEqual(
      expect.objectContaining({ actor: 'eve', outcome: 'denied', code: 'missing_scope' }),
    )
  })

  it('refuses a second hub on the same data folder in one line', async () => {
    const second = start('dist/server/main.js', ['serve', '--port', '0', '--data', hub.data])
    await second.line(/another hub runs on the data folder/)
    expect(await second.exited).toBe(2)
  })

  it('refuses an agent socket without a known credential, before the upgrade', async () => {
    const socket = new WebSocket(`${hub.url.replace('http', 'ws')}/api/v1/agent/socket`, 'fusion-hub.v1.json', {
      headers: { authorization: 'Bearer nobody' },
    })
    const status = await new Promise((resolve) =>
      socket.on('unexpected-response', (_request, response) => resolve(response.statusCode)),
    )
    socket.on('error', () => undefined)
    socket.terminate()
    expect(status).toBe(401)
  })

  it('runs a command on the operator socket and follows it to its end', async () => {
    const socket = new WebSocket(`${hub.url.replace('http', 'ws')}/api/v1/operator/socket`, 'fusion-hub.v1.json', {
      headers: { authorization: `Bearer ${hub.token}` },
    })
    const heard: Record<string, unknown>[] = []
    const ended = new Promise<void>((resolve, reject) => {
      socket.on('error', reject)
      socket.on('message', (data) => {
        const message = JSON.parse(String(data)) as Record<string, unknown>
        heard.push(message)
        if (message.t === 'error') reject(new Error(String(message.message)))
        if (message.t === 'execution' && message.state === 'succeeded') resolve()
      })
      socket.on('open', () => {
        const targets = { selector: 'site=berlin' }
        socket.send(
          JSON.stringify({ t: 'run', request_id: 'r1', type: 'scan', args: { path: '/' }, targets, follow: true }),
        )
      })
    })
    await ended
    socket.terminate()
    expect(heard[0]).toMatchObject({ t: 'submitted', request_id: 'r1', executions: [{ agent_id: 'nas-07' }] })
    expect(heard.at(-1)).toMatchObject({ t: 'execution', state: 'succeeded', result: { files: 2 } })
  })

  it('ends with 0 on SIGTERM, tells its agents, and has everything when it is back', async () => {
    const before = await command({ type: 'scan', path: '/' })
    expect(await hub.process.kill('SIGTERM')).toBe(0)
    const seen = agent.process.output().length
    hub = await startHub(hub.data, { port: hub.port })
    await agent.process.line(new RegExp(`^[^]{${seen},}link ready`))
    const { body } = await hub.call<{ executions: { state: string; result: unknown }[] }>(
      'GET',
      `/commands/${before.body.command_id}/executions`,
    )
    expect(body.executions).toMatchObject([{ state: 'succeeded', result: before.body.execution.result }])
    expect((await command({ type: 'scan', path: '/' })).body.execution.state).toBe('succeeded')
  })

  it('keeps a command for an agent that is away, and fails it at once where it says so', async () => {
    await agent.process.kill('SIGKILL')
    await expect
      .poll(async () => (await hub.call<{ status: string }>('GET', '/agents/nas-07')).body.status)
      .toBe('offline')
    const waiting = await hub.call<Answer>('POST', '/agents/nas-07/command', { type: 'scan', path: '/' })
    const failing = await hub.call<Answer>('POST', '/agents/nas-07/command', {
      type: 'scan',
      path: '/',
      offline: 'fail',
    })
    expect([waiting.status, failing.status, failing.body.code]).toEqual([200, 409, 'agent_offline'])
    agent = await startAgent(hub, 'nas-07', agent.folder)
    const { body } = await hub.call<{ executions: { state: string }[] }>(
      'GET',
      `/commands/${waiting.body.command_id}/executions?wait=20`,
    )
    expect(body.executions).toMatchObject([{ state: 'succeeded' }])
  })

  it('refuses a copy of an agent state that is behind what the hub has confirmed', async () => {
    const copy = path.join(folder, 'copy')
    cpSync(agent.folder, copy, { recursive: true })
    await agent.process.kill('SIGKILL')
    agent = await startAgent(hub, 'nas-07', agent.folder)
    const args = ['--hub', hub.url, '--config', path.join(copy, 'agent.yaml')]
    const clone = start('dist/agent/main.js', args)
    await clone.line(/will not have this agent: .*clone or was rolled back/)
    expect(await clone.exited).toBe(3)
    expect((await command({ type: 'scan', path: '/' })).body.execution.state).toBe('succeeded')
  })
})
